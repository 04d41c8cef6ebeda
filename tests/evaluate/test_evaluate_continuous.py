"""Continuous decoding writes what `generate` writes of each document alone, or leaves it to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny
import torch

from tasks import continuous, package
from tasks.recipe import Base
from tasks.summarizer import DECODER_FILE, Generator, Summary, SummarizerSettings

SETTINGS = SummarizerSettings(
    "Summarize:\n{document}\nSummary: ", 200, "tail", 24, 3, decoding="continuous"
)
LONG = "\n".join(row.document for row in tiny.make_rows(4, seed=3))
# Of very different lengths, and more than there are slots.
DOCUMENTS = [LONG, "x", *(row.document for row in tiny.make_rows(6)), LONG[200:420], ""]
# Windows are another matter: see test_what_is_not_known_is_left_to_generate.
WHOLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "layer_types": ["full_attention"] * 2},
    "qwen3": {},
    "phi": {},
    "phi3": {"sliding_window": None},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Small matrices on a busy machine: two threads would wait for each other most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def packaged(base: Path, folder: Path, settings: SummarizerSettings = SETTINGS) -> Path:
    ref = package.find_base(Base(model=str(base)))
    return Path(package.package_base(ref, settings, folder).path)


def unbatched(generator: Generator, documents: list[str]) -> list[Summary]:
    """By transformers' generate, one at a time."""
    kept = generator.settings
    generator.settings = replace(kept, decoding="generate", batch_size=1)
    found = generator.summarize(documents)
    generator.settings = kept
    return [replace(summary, batch=0) for summary in found]


def continuously(generator: Generator, documents: list[str] = DOCUMENTS) -> list[Summary]:
    assert generator.decoder() is not None, generator.refusal
    return [replace(summary, batch=0) for summary in generator.summarize(documents)]


@pytest.mark.parametrize("model_type", WHOLE)
def test_every_token_is_that_of_unbatched_generate(model_type: str, tmp_path: Path) -> None:
    """For each shape, with slots that are taken over and prompts from 10 to 200 tokens."""
    base = shapes.make_base(tmp_path / "base", model_type, **WHOLE[model_type])
    generator = Generator(packaged(base, tmp_path / "package"), "cpu")
    found = continuously(generator)
    assert found == unbatched(generator, DOCUMENTS)
    assert len({summary.text for summary in found}) > 3
    assert generator.model.config._attn_implementation == "sdpa"


def test_the_types_that_are_known_are_those_tested() -> None:
    assert set(WHOLE) == continuous.TESTED
