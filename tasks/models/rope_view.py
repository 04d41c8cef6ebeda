"""A model folder seen with other JSON files: links to all that is large, so nothing of it is copied."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Base
from tasks.models import rope


def scaled(path: Path, config: rope.Config, base: Base, folder: Path) -> Path:
    """A base's folder as its recipe reads it: `path` itself, or one below `folder` with scaled RoPE.

    `config` is the base's config.json, without `context.problems`. Only the JSON files that say how
    long a text may be are new. Whatever reads a base (training, merge, evaluation, the served model,
    its digest) so finds the scaled positions in the folder, and needs to know nothing of the recipe.
    """
    if base.rope is None or base.context_tokens is None:
        return path
    own = {"config.json": _text(rope.scaled(config, base.context_tokens, base.rope))}
    own |= _longer(path, base.context_tokens)
    view = folder / digest.of_value([str(path.resolve()), own])[:16]
    link_files(path, view, own)
    wanted = {file.relative_to(path) for file in digest.visible_files(path)}
    for file in digest.visible_files(view):  # of a base that was saved anew since
        if file.relative_to(view) not in wanted:
            file.unlink(missing_ok=True)
    return view


def link_files(source: Path, folder: Path, own: dict[str, str]) -> None:
    """Links in `folder` to every file of `source`, but for those in `own`: files with these texts.

    Each is put in place at once: other runs may be reading it, or doing the same.
    """
    for file in digest.visible_files(source):
        place = folder / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".{place.name}.{os.getpid()}")
        partial.unlink(missing_ok=True)
        name = file.relative_to(source).as_posix()
        if name in own:
            partial.write_text(own[name])
        else:
            partial.symlink_to(file.resolve())
        partial.replace(place)


def _longer(path: Path, tokens: int) -> dict[str, str]:
    """Other files that name a length below `tokens`, with this one: readers would warn, or cut there."""
    found = {}
    for name, key in (
        ("tokenizer_config.json", "model_max_length"),
        ("generation_config.json", "max_length"),
    ):
        values = json.loads((path / name).read_text()) if (path / name).is_file() else {}
        if (values.get(key) or tokens) < tokens:
            found[name] = _text(values | {key: tokens})
    return found


def _text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, sort_keys=True) + "\n"
