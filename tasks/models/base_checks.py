"""Whether a folder is a base model that can be trained: its files, their headers, config.json's values.

No weights are read here (tasks.models.finite_weights does), and nothing is imported that imports torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError
from tasks.models import config_checks, weight_files
from tasks.models.compatibility import SUPPORTED_MODEL_TYPES
from tasks.models.json_files import read_object
from tasks.models.safetensors_headers import read_whole, tensor_shapes

# JSON files that some step reads, where a base has them.
JSON_FILES = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "chat_template.json", "vocab.json"),
)
TOKENIZERS = ("tokenizer.json", "tokenizer.model")
MAX_TOKENIZER_BYTES = 256 * 2**20


def is_complete(path: Path) -> bool:
    """Whether a folder has all files of a base; a download that broke off leaves some out."""
    try:
        weight_files.weight_files(path)
    except BaseModelError:
        return False
    return (path / "config.json").is_file() and any((path / t).is_file() for t in TOKENIZERS)


def file_problems(path: Path) -> list[str]:
    """What keeps a folder from being a base model, each with its fix."""
    if problems := weight_files.adapter_problems(path):
        return problems
    problems = []
    if not (path / "config.json").is_file():
        problems.append(
            f"{path} has no config.json; point base.model at a Hugging Face model folder"
            + _snapshots(path)
        )
    for name in JSON_FILES:
        if (path / name).is_file():
            problems += _problem_of(read_object, path / name)
    weights = _weight_problems(path)
    problems += weights
    if not any((path / name).is_file() for name in TOKENIZERS):
        problems.append(f"{path} has no tokenizer.json; save the tokenizer beside the model")
    elif (path / "tokenizer.json").is_file():
        problems += _problem_of(_read_tokenizer, path / "tokenizer.json")
    # Values are looked at once the files are whole.
    return problems or _value_problems(path)


def _problem_of(read: Any, path: Path) -> list[str]:
    try:
        read(path)
    except BaseModelError as error:
        return [str(error)]
    return []


def _weight_problems(path: Path) -> list[str]:
    try:
        files = weight_files.weight_files(path)
    except BaseModelError as error:
        return [str(error)]
    problems = [problem for file in files for problem in _problem_of(read_whole, file)]
    return problems or _problem_of(tensor_shapes, path)


def _read_tokenizer(file: Path) -> None:
    """Raise BaseModelError for a tokenizer.json that the tokenizers library cannot read."""
    from tokenizers import Tokenizer

    if file.stat().st_size > MAX_TOKENIZER_BYTES:
        raise BaseModelError(
            f"{file} has {file.stat().st_size:,} bytes, more than any tokenizer's; fetch it again"
        )
    try:
        Tokenizer.from_file(str(file))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # noqa: BLE001 - it raises Exception; panics of Rust are less
        raise BaseModelError(
            f"{file} is no tokenizer that the tokenizers library reads ({str(error)[:200]}); fetch it "
            "again"
        ) from None


def _value_problems(path: Path) -> list[str]:
    """Values in the JSON files that do not fit each other, or the weights."""
    config = read_object(path / "config.json")
    known = str(config.get("model_type")) in SUPPORTED_MODEL_TYPES
    problems = config_checks.problems(config, path, known)
    if "transformers_weights" in config:
        problems.append(
            f"{path / 'config.json'} sets transformers_weights, which precis does not follow: name the "
            f"file {weight_files.SINGLE}, and remove the setting"
        )
    for name, key in (
        ("generation_config.json", "max_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        values = read_object(path / name) if (path / name).is_file() else {}
        if name == "generation_config.json":
            problems += config_checks.token_id_problems(values, path / name, config)
        if type(values.get(key)) not in (int, float, type(None)):
            problems.append(
                f"{path / name}: {key} must be a number (it is {str(values[key])[:60]!r}); correct it, "
                "or fetch the file again"
            )
    return problems or config_checks.problems_with(config, tensor_shapes(path), path, known)


def _snapshots(path: Path) -> str:
    """A cached repository's own folder holds its models two folders deeper."""
    folders = sorted(str(inner) for inner in path.glob("snapshots/*") if inner.is_dir())
    return f" ({' or '.join(folders)})" if folders else ""
