"""Base models and packages on disk: finding, describing, digesting them. Imports no torch.

A package is a model folder in Hugging Face format with `summarizer.json` and `summarizer.py` added:
all that is judged, registered and served. The untuned base becomes a package too, by links.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base, Recipe
from tasks.contracts.records import BaseRef, ModelRef
from tasks.models import chat_templates, hub, rope, rope_view
from tasks.processes import workspace
from tasks.serving import summarizer
from tasks.serving.summarizer import SummarizerSettings


@dataclass(frozen=True)
class Looked:
    """Where a base is on this machine (None: a run would fetch it), facts, and what is wrong."""

    path: Path | None
    facts: list[str]
    problems: list[str]


def find_base(base: Base) -> BaseRef:
    """The base on this machine, its RoPE scaled as the recipe says.

    A local folder as it is, a hub name from the cache or the hub. Raises BaseModelError with all that
    is missing.
    """
    path = _here(base) or hub.fetch(base)
    problems = problems_of(path) or rope.problems(config_of(path), base, path)
    if problems:
        raise BaseModelError("\n".join(problems))
    path = rope_view.scaled(path, config_of(path), base, workspace.work_folder() / "scaled")
    return BaseRef(str(path), digest.of_folder(path), base.model, base.revision)


def look_for(base: Base, scratch: Path) -> Looked:
    """The base as `find_base` would find it, and why it would not. Downloads nothing.

    A scaled base is laid out in `scratch`.
    """
    try:
        found = _here(base)
    except BaseModelError as error:
        return Looked(None, [], [str(error)])
    if found is None:
        return Looked(None, *hub.ask(base))
    if problems := problems_of(found) or rope.problems(config_of(found), base, found):
        return Looked(found, [], problems)
    return Looked(rope_view.scaled(found, config_of(found), base, scratch), [], [])


def _here(base: Base) -> Path | None:
    """The folder that `base.model` names, or the hub's snapshot in this machine's cache, if whole."""
    path = Path(base.model)
    if path.is_dir():
        return path
    snapshot = hub.cached(base)
    # The cache knows of files that are missing only from a listing, which other tools leave out.
    return None if snapshot is None or problems_of(snapshot) else snapshot


def problems_of(path: Path) -> list[str]:
    """What keeps a folder from being a base model, each with its mend."""
    problems = []
    if not (path / "config.json").is_file():
        problems.append(
            f"{path} has no config.json; point base.model at a Hugging Face model folder"
            + _snapshots(path)
        )
    elif not _is_json(path / "config.json"):
        problems.append(f"{path}/config.json is not valid JSON; fetch it again")
    if not any(path.glob("*.safetensors")):
        problems.append(f"{path} has no .safetensors weights; save the model as safetensors")
    elif missing := _missing_shards(path):
        problems.append(f"{path} lacks weights that its index names: {missing}; fetch them again")
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer.model").is_file():
        problems.append(f"{path} has no tokenizer.json; save the tokenizer beside the model")
    return problems


def _snapshots(path: Path) -> str:
    """A cached repository's own folder holds its models two folders deeper."""
    found = sorted(str(inner) for inner in path.glob("snapshots/*") if inner.is_dir())
    return f" ({' or '.join(found)})" if found else ""


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_text()), dict)
    except ValueError:
        return False


def _missing_shards(path: Path) -> str:
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        return ""
    named = set(json.loads(index.read_text())["weight_map"].values())
    return ", ".join(sorted(name for name in named if not (path / name).is_file()))


def config_of(path: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def context_for(recipe: Recipe, base: Path) -> int:
    """The most tokens of a row, prompt and completion: of base, base.context_tokens, max_length.

    Raises BaseModelError where rows never get past what the base reads unscaled, or where `base` is
    not the scaled folder that `find_base` names.
    """
    config, longest = config_of(base), recipe.training.max_length
    reads, wanted = rope.length(config), recipe.base.context_tokens
    if recipe.base.rope and reads != wanted:
        raise BaseModelError(
            f"{base} reads {reads} tokens and not the {wanted} of base.context_tokens: its RoPE is not "
            "scaled; take the folder that package.find_base names"
        )
    if recipe.base.rope and longest <= (rope.own_length(config) or 0):
        # Scaling costs the base some of what it knows: none of it would be made use of.
        raise BaseModelError(
            f"base.rope is {recipe.base.rope}, but training.max_length ({longest}) cuts every row within "
            f"the {rope.own_length(config)} tokens that the base reads unscaled; raise it (up to "
            f"base.context_tokens, {wanted}), or leave base.rope out"
        )
    return min(n for n in (reads, wanted, longest) if n)


def limits(recipe: Recipe) -> dict[str, Any]:
    """The recipe's own limits of the context, for step keys; empty where it sets none."""
    return recipe.base.model_dump(include={"context_tokens", "rope"}, exclude_none=True)


def settings_for(recipe: Recipe, base: Path) -> SummarizerSettings:
    """The served model's settings: what the recipe says, fitted to the base's context.

    Raises BaseModelError when prompt and summary cannot fit the context together, RecipeError when
    format chat has no chat template.
    """
    most, summary = context_for(recipe, base), recipe.evaluation.max_new_tokens
    room, wanted = most - summary, recipe.prompt.max_source_tokens
    limits = (
        f"the base reads {rope.length(config_of(base))} tokens, base.context_tokens is "
        f"{recipe.base.context_tokens}, training.max_length {recipe.training.max_length}"
    )
    if room <= 0:
        raise BaseModelError(
            f"evaluation.max_new_tokens ({summary}) leaves no room for a document: {limits}; lower "
            f"the first or raise what is {most}"
        )
    if wanted is not None and wanted > room:
        raise BaseModelError(
            f"prompt.max_source_tokens ({wanted}) and evaluation.max_new_tokens ({summary}) together "
            f"exceed {most} tokens ({limits}); lower one"
        )
    chat = recipe.prompt.format == "chat"
    return SummarizerSettings(
        # Chat does not use it: another default must not change the seal.
        template="{document}" if chat else recipe.prompt.template,
        max_source_tokens=wanted or room,
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
        chat_template=chat_templates.chosen(recipe.prompt.chat_template, base) if chat else None,
    )


def add_summarizer(package: Path, settings: SummarizerSettings) -> None:
    """Make a model folder a package: write `summarizer.json` and copy `summarizer.py`.

    A chat template also goes where transformers and other servers look for one.
    """
    # What stands there may be a link to the base's own, if that is a package itself.
    for name in (summarizer.SETTINGS_FILE, summarizer.CODE_FILE, summarizer.DECODER_FILE):
        (package / name).unlink(missing_ok=True)
    settings.save(package)
    if settings.chat_template is not None:
        file = package / chat_templates.FILE
        file.unlink(missing_ok=True)
        file.write_text(settings.chat_template, encoding="utf-8")
    code = Path(summarizer.__file__)
    shutil.copyfile(code, package / summarizer.CODE_FILE)
    if settings.decoding != "generate":
        decoder = code.with_name(summarizer.DECODER_FILE)
        shutil.copyfile(decoder, package / summarizer.DECODER_FILE)


def package_base(base: BaseRef, settings: SummarizerSettings, folder: Path) -> ModelRef:
    """The untuned base as a package: links to its files, so no weights are copied."""
    config = Path(base.path) / "config.json"
    rope_view.link_files(Path(base.path), folder, {config.name: config.read_text()})
    add_summarizer(folder, settings)
    return ModelRef(str(folder), digest.of_folder(folder), base.digest)


def load_code(package: Path) -> ModuleType:
    """The package's own summarizer.py: the file that is served, whatever this project's says now."""
    # A dotted name gives it a __package__, so that it only defines and registers nothing with MLflow.
    name = "precis_package.summarizer"
    spec = importlib.util.spec_from_file_location(name, package / summarizer.CODE_FILE)
    if spec is None or spec.loader is None:
        raise ImportError(f"{package / summarizer.CODE_FILE} is not Python code")
    code = importlib.util.module_from_spec(spec)
    sys.modules[name] = code  # dataclasses look their module up while it is being executed
    try:
        spec.loader.exec_module(code)
    finally:
        del sys.modules[name]
    return code
