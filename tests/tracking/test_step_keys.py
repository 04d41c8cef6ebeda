"""What makes a step's work another's: changed, it is done again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.records import AdapterRef, DatasetRef
from tasks.merge import task as merging
from tasks.train import task as training

DATASET = DatasetRef("uri", "d", "t", "e", 1, 1, 0)
ADAPTER = AdapterRef("uri", "a", "b")
CHANGES: list[dict[str, Any]] = [
    {"adapter": {"kind": "dora"}},
    {"adapter": {"kind": "rslora"}},
    {"base": {"quantization": "fp4"}},
    {"base": {"quantization": "int8"}},
    {"base": {"quantization": "none"}},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return tiny.make_tiny_base(folder)


def keys(base: Path, /, **parts: Any) -> tuple[str, str]:
    """Of training, and of merging."""
    recipe = tiny.make_recipe(base, **parts)
    prepared = tiny.prepared(base, recipe)
    return (
        training.step_key(DATASET, prepared, recipe),
        merging.step_key(ADAPTER, prepared, DATASET, recipe),
    )


def test_kind_and_quantization_change_both_keys(base: Path) -> None:
    """Every kind and quantization has keys of its own; naming the default changes nothing."""
    found = [keys(base), *(keys(base, **change) for change in CHANGES)]
    assert all(len(set(of_step)) == len(found) for of_step in zip(*found, strict=True))
    same = keys(base, adapter={"kind": "lora"}, base={"quantization": "nf4"})
    assert same == found[0]


def test_what_does_not_change_the_weights_changes_no_key(base: Path) -> None:
    """A run that logs more often finds the adapter that is there."""
    assert keys(base, training={"logging_steps": 1}) == keys(base)
