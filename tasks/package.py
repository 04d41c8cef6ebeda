"""Base models and packages on disk: finding, describing, digesting them. Imports no torch.

A package is a model folder in Hugging Face format with `summarizer.json` and `summarizer.py` added:
all that is judged, registered and served. The untuned base becomes a package too, by links.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from tasks import chat_templates, digest, summarizer
from tasks.errors import BaseModelError
from tasks.recipe import Base, Recipe
from tasks.records import BaseRef, ModelRef
from tasks.summarizer import SummarizerSettings


def find_base(base: Base) -> BaseRef:
    """The base on this machine: a local folder as it is, a hub name from the cache or the hub.

    Raises BaseModelError with all that is missing.
    """
    path = Path(base.model)
    if not path.is_dir():
        path = _from_hub(base)
    problems = problems_of(path)
    if problems:
        raise BaseModelError("\n".join(problems))
    return BaseRef(str(path), digest.of_folder(path), base.model, base.revision)


def look_for(base: Base) -> tuple[Path | None, list[str]]:
    """Where the base is on this machine (None: a run would fetch it), and what is wrong with it.

    Downloads nothing.
    """
    path = Path(base.model)
    if path.is_dir():
        return path, problems_of(path)
    try:
        path = _from_hub(base, local_only=True)
    except BaseModelError as error:
        return None, _hub_problems(base, str(error))
    return path, problems_of(path)


def _hub_problems(base: Base, local_problem: str) -> list[str]:
    """What keeps the hub from giving a base that is not here; nothing when it would."""
    from huggingface_hub import HfApi, auth_check
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    if not base.revision or base.model.count("/") != 1:
        return [local_problem]
    try:
        HfApi().model_info(base.model, revision=base.revision)
        auth_check(base.model)
    except GatedRepoError:
        return [_gated(base)]
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return [local_problem]
    return []


def problems_of(path: Path) -> list[str]:
    """What keeps a folder from being a base model, each with its mend."""
    problems = []
    if not (path / "config.json").is_file():
        problems.append(
            f"{path} has no config.json; point base.model at a Hugging Face model folder"
        )
    if not any(path.glob("*.safetensors")):
        problems.append(f"{path} has no .safetensors weights; save the model as safetensors")
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer.model").is_file():
        problems.append(f"{path} has no tokenizer.json; save the tokenizer beside the model")
    return problems


def _from_hub(base: Base, *, local_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

    if base.model.count("/") != 1 or base.model.startswith((".", "/", "~")):
        raise BaseModelError(
            f"base.model {base.model!r}: no such folder (looked in {Path.cwd()}); correct the path"
        )
    if not base.revision:
        raise BaseModelError(
            f"base.model {base.model!r} is a hub name: pin it with base.revision (a commit), "
            "or point it at a local folder"
        )
    try:
        found = snapshot_download(
            base.model,
            revision=base.revision,
            allow_patterns=["*.json", "*.safetensors", "*.model", "*.jinja"],
        )
    except GatedRepoError as error:
        raise BaseModelError(_gated(base)) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BaseModelError(
            f"base.model {base.model!r}: neither a folder here ({Path.cwd()}) nor to be had from "
            f"the hub ({error}); correct the name, or download it and name the folder"
        ) from error
    return Path(found)


def _gated(base: Base) -> str:
    return f"{base.model} is gated: accept its licence on the hub and set HF_TOKEN"


def config_of(path: Path) -> dict[str, Any]:
    """A model folder's config.json."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


def settings_for(recipe: Recipe, base: Path) -> SummarizerSettings:
    """The served model's settings: what the recipe says, fitted to the base's context.

    Raises BaseModelError when prompt and summary cannot fit the context together, RecipeError when
    format chat has no chat template.
    """
    config = config_of(base)
    context = int(config.get("max_position_embeddings") or recipe.training.max_length)
    room = min(context, recipe.training.max_length) - recipe.evaluation.max_new_tokens
    if room <= 0:
        raise BaseModelError(
            f"evaluation.max_new_tokens ({recipe.evaluation.max_new_tokens}) leaves no room for a "
            f"document: the base's context is {context} tokens, training.max_length "
            f"{recipe.training.max_length}; lower the first or raise the last"
        )
    wanted = recipe.prompt.max_source_tokens
    if wanted is not None and wanted > room:
        raise BaseModelError(
            f"prompt.max_source_tokens ({wanted}) and evaluation.max_new_tokens "
            f"({recipe.evaluation.max_new_tokens}) together exceed {room + recipe.evaluation.max_new_tokens} "
            f"tokens (context {context}, training.max_length {recipe.training.max_length}); lower one"
        )
    chat = recipe.prompt.format == "chat"
    return SummarizerSettings(
        # Chat does not use it: another default must not change the seal.
        template="{document}" if chat else recipe.prompt.template,
        max_source_tokens=wanted or room,
        truncate="tail" if recipe.prompt.truncate == "error" else recipe.prompt.truncate,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        batch_size=recipe.evaluation.batch_size,
        stop=recipe.evaluation.stop,
        format=recipe.prompt.format,
        system=recipe.prompt.system,
        chat_template=chat_templates.chosen(recipe.prompt.chat_template, base) if chat else None,
    )


def add_summarizer(package: Path, settings: SummarizerSettings) -> None:
    """Make a model folder a package: write `summarizer.json` and copy `summarizer.py`.

    A chat template also goes where transformers and other servers look for one.
    """
    settings.save(package)
    if settings.chat_template is not None:
        file = package / chat_templates.FILE
        file.unlink(missing_ok=True)  # it may be a link to the base's
        file.write_text(settings.chat_template, encoding="utf-8")
    shutil.copyfile(summarizer.__file__, package / summarizer.CODE_FILE)


def package_base(base: BaseRef, settings: SummarizerSettings, folder: Path) -> ModelRef:
    """The untuned base as a package: links to its files, so nothing is copied."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in digest.visible_files(Path(base.path)):
        link = folder / source.relative_to(base.path)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(source.resolve())
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
