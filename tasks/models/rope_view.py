"""A model folder with other JSON files: links to the large files, so that no weights are copied."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Base
from tasks.models import rope, weight_files
from tasks.models.json_files import read_object


def scaled(path: Path, config: rope.Config, base: Base, folder: Path) -> Path:
    """A base's folder as its recipe reads it: `path` itself, or one below `folder` with scaled RoPE.

    `config` is the base's config.json, in which `rope.problems` finds none. Only the JSON files that say
    how long a text may be are new. So every reader of a base (training, merge, evaluation, the served
    model, its digest) finds the scaled positions in the folder, and does not need the recipe.
    """
    if base.rope is None or base.context_tokens is None:
        return path
    changed = {"config.json": _text(rope.scaled(config, base.context_tokens, base.rope))}
    changed |= _with_length(path, base.context_tokens)
    view = folder / digest.of_value([str(path.resolve()), changed])[:16]
    link_files(path, view, changed)
    expected = {file.relative_to(path) for file in weight_files.model_files(path)}
    for file in digest.visible_files(view):  # of a base that was saved again since
        if file.relative_to(view) not in expected:
            file.unlink(missing_ok=True)
    return view


def link_files(source: Path, folder: Path, changed: dict[str, str]) -> None:
    """Links in `folder` to all that `source` consists of, but for those in `changed`: files with these texts.

    Each is put in place atomically: other runs may read the folder, or make it too.
    """
    for file in weight_files.model_files(source):
        target = folder / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        name = file.relative_to(source).as_posix()
        if name in changed:
            partial.write_text(changed[name])
        else:
            partial.symlink_to(file.resolve())
        partial.replace(target)


def _with_length(path: Path, tokens: int) -> dict[str, str]:
    """Other files that name a length below `tokens`, with `tokens` in its place.

    Their readers would warn, or cut texts there.
    """
    changed = {}
    for name, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("generation_config.json", "max_length"),
    ):
        values = read_object(path / name) if (path / name).is_file() else {}
        if (values.get(key) or tokens) < tokens:
            changed[name] = _text(values | {key: tokens})
    return changed


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
