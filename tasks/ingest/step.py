"""What the ingest tasks run in a step process: the flow's own process need not import transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef, to_json
from tasks.ingest.fresh import prepare_fresh
from tasks.ingest.prepare import prepare
from tasks.models.prepared_base import PreparedBase


def rows(recipe: dict[str, Any], base: dict[str, Any], folder: str) -> Any:
    """`prepare` for a recipe and a base as JSON; the DatasetRef as JSON."""
    of, known = Recipe.model_validate(recipe), PreparedBase.from_json(base)
    return _json(
        prepare(of.data, of.prompt, known.settings, known.path, Path(folder), of.gate.slices)
    )


def fresh_rows(
    recipe: dict[str, Any], base: dict[str, Any], fresh: str, seen: list[str], folder: str
) -> Any:
    """`prepare_fresh` likewise; `seen`: files of canonical rows."""
    of, known = Recipe.model_validate(recipe), PreparedBase.from_json(base)
    files = [Path(file) for file in seen]
    return _json(
        prepare_fresh(
            of.data,
            fresh,
            of.prompt,
            known.settings,
            known.path,
            files,
            Path(folder),
            of.gate.slices,
        )
    )


def _json(dataset: DatasetRef) -> Any:
    return json.loads(to_json(dataset))
