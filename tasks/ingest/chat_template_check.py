"""Whether a chat template can write conversations, found with a probe before any row is read."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from tasks.contracts.errors import RecipeError

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

PROBE = ("Who?", "I.")  # question and answer


def rendered_tokens(
    tokenizer: Any, messages: list[dict[str, str]], settings: SummarizerSettings
) -> int:
    """Tokens of a conversation as the chat template writes it."""
    from tasks.serving.summarizer import render

    text = render(tokenizer, messages, settings)
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_chat_template(tokenizer: Any, settings: SummarizerSettings) -> None:
    """Raises RecipeError when the template cannot write two turns, or is alone too long for a prompt.

    Also when prompt and answer, rendered together, do not begin with the prompt that generation sees.
    """
    from tasks.serving.summarizer import encode_answer, messages_of

    question, answer = PROBE
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        unlimited = replace(settings, max_source_tokens=sys.maxsize)
        encode_answer(tokenizer, [*turns, turns[0]], answer, unlimited)
        template_tokens = rendered_tokens(tokenizer, messages_of("", settings.system), settings)
    except TemplateError as error:
        what = "a system message and two turns" if settings.system else "two turns"
        raise RecipeError(
            f"the chat template cannot write {what} ({error}); name another in "
            "prompt.chat_template" + (", or unset prompt.system" * bool(settings.system))
        ) from error
    except ValueError as error:
        raise RecipeError(str(error)) from error
    if template_tokens > settings.max_source_tokens:
        raise RecipeError(
            f"the chat template alone is {template_tokens} tokens, and a prompt may have "
            f"{settings.max_source_tokens}; shorten prompt.system, or raise "
            "prompt.max_source_tokens"
        )
