"""Whether a folder is a base model, from the names of its files; no weights are read."""

from __future__ import annotations

import json
from pathlib import Path


def file_problems(path: Path) -> list[str]:
    """What keeps a folder from being a base model, each with its fix."""
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
    folders = sorted(str(inner) for inner in path.glob("snapshots/*") if inner.is_dir())
    return f" ({' or '.join(folders)})" if folders else ""


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
