"""A recipe's settings of prompt and decoding, fitted to the base's context. Imports no torch."""

from __future__ import annotations

from typing import Any

from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Recipe
from tasks.models import chat_templates, rope
from tasks.models.prepared_base import BaseFolder
from tasks.serving.summarizer import ONLY_DOCUMENT, SummarizerSettings


def max_row_tokens(recipe: Recipe, base: BaseFolder) -> int:
    """The most tokens of a row, prompt and completion: of base, base.context_tokens, max_length.

    Raises BaseModelError where rows never get past what the base reads unscaled, or where `base` is
    not the scaled folder that find_base gives.
    """
    longest, context_tokens = recipe.training.max_length, recipe.base.context_tokens
    reads, reads_unscaled = rope.length(base.config), rope.own_length(base.config)
    if recipe.base.rope and reads != context_tokens:
        raise BaseModelError(
            f"{base.path} reads {reads} tokens and not the {context_tokens} of base.context_tokens: its "
            "RoPE is not scaled; take the folder that tasks.models.find_base.locate names"
        )
    if recipe.base.rope and longest <= (reads_unscaled or 0):
        # Scaling makes the base somewhat worse, and no row would gain by it.
        raise BaseModelError(
            f"base.rope is {recipe.base.rope}, but training.max_length ({longest}) cuts every row within "
            f"the {reads_unscaled} tokens that the base reads unscaled; raise it (up to "
            f"base.context_tokens, {context_tokens}), or leave base.rope out"
        )
    return min(n for n in (reads, context_tokens, longest) if n)


def context_limits(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own limits of the context, for step keys; empty where it sets none."""
    return recipe.base.model_dump(include={"context_tokens", "rope"}, exclude_none=True)


def settings_for(recipe: Recipe, base: BaseFolder) -> SummarizerSettings:
    """The served model's settings: what the recipe says, fitted to the base's context.

    Raises BaseModelError when prompt and summary cannot fit the context together, RecipeError when
    format chat has no chat template.
    """
    most, summary = max_row_tokens(recipe, base), recipe.evaluation.max_new_tokens
    room, source = most - summary, recipe.prompt.max_source_tokens
    limits = (
        f"the base reads {rope.length(base.config)} tokens, base.context_tokens is "
        f"{recipe.base.context_tokens}, training.max_length {recipe.training.max_length}"
    )
    if room <= 0:
        raise BaseModelError(
            f"evaluation.max_new_tokens ({summary}) leaves no room for a document: {limits}; lower "
            f"the first or raise what is {most}"
        )
    if source is not None and source > room:
        raise BaseModelError(
            f"prompt.max_source_tokens ({source}) and evaluation.max_new_tokens ({summary}) together "
            f"exceed {most} tokens ({limits}); lower one"
        )
    chat, fields = recipe.prompt.format == "chat", recipe.data.fields
    inputs = fields.inputs or {}
    # Chat does not use the default: another one must not change the seal.
    without_template = chat and not (inputs and recipe.prompt.has_own_template)
    return SummarizerSettings(
        template=ONLY_DOCUMENT if without_template else recipe.prompt.template,
        max_source_tokens=source or room,
        truncate="tail" if recipe.prompt.truncate == "error" else recipe.prompt.truncate,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        # Under dynamic RoPE a batch's longest document would set the angles of all.
        batch_size=1 if recipe.base.rope == "dynamic" else recipe.evaluation.batch_size,
        stop=recipe.evaluation.stop,
        kv_cache=recipe.evaluation.kv_cache,
        decoding=recipe.evaluation.decoding,
        summarize=recipe.prompt.summarize,
        format=recipe.prompt.format,
        system=recipe.prompt.system,
        # What is learned is a part of the answer, and needs nothing of the server.
        reasoning="strip" if recipe.prompt.reasoning == "strip" else None,
        chat_template=chat_templates.chosen(
            recipe.prompt.chat_template, base.path, recipe.prompt.template_arguments
        )
        if chat
        else None,
        inputs=tuple(inputs),
        optional=fields.optional,
        columns=tuple(inputs.values()) or ((fields.document,) if fields.document else ()),
    )
