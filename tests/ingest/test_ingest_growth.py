"""Four times the data takes four times the work and memory: counted, not timed."""

from __future__ import annotations

import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from ingest_files import Ingest, jsonl

from tasks.ingest.overlap import OverlapIndex, jaccard

pytestmark = pytest.mark.full

SIZES = (300, 1200)


def texts(count: int, common: int = 0) -> list[str]:
    """Documents of 60 words, of which the first `common` are the same in all."""
    chance = random.Random(0)
    form = [f"form{n}" for n in range(common)]
    return [
        " ".join([*form, *(f"w{chance.randrange(5000)}" for _ in range(60 - common))])
        for _ in range(count)
    ]


@contextmanager
def counted(wanted: Callable[[Any, str], bool]) -> Iterator[list[int]]:
    """How often Python calls a function, of Python or C, that `wanted` says yes to."""
    found = [0]

    def see(frame: Any, event: str, _: Any) -> None:
        found[0] += event in ("call", "c_call") and wanted(frame, event)

    sys.setprofile(see)
    try:
        yield found
    finally:
        sys.setprofile(None)


def any_call(_: Any, __: str) -> bool:
    return True


def test_ingest_grows_with_its_rows(tmp_path: Path, ingest: Ingest) -> None:
    """Calls, and memory at its peak, for rows that all differ: no worse than in proportion."""
    calls, peaks = [], []
    ingest(train=jsonl(tmp_path / "first.jsonl", rows(20)), evaluation_share=0.3)  # imports
    for count in SIZES:
        path = jsonl(tmp_path / f"{count}.jsonl", rows(count))
        with counted(any_call) as found:
            ingest(train=path, evaluation_share=0.3)
        calls.append(found[0])
        tracemalloc.start()
        ingest(train=path, evaluation_share=0.3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert calls[0] > 100 * SIZES[0]  # the profile did see the work
    assert calls[1] / calls[0] < 4.2
    assert peaks[1] / peaks[0] < 4.2


def rows(count: int) -> list[dict[str, str]]:
    return [{"document": text, "summary": text[:20]} for text in texts(count)]


def test_near_duplicates_of_each_other_are_not_all_compared() -> None:
    """Documents of one form, all alike: each needs one comparison to be dropped, and not all."""
    compared = []
    for count in SIZES:
        index = OverlapIndex(0.8)
        held, asked = texts(count, common=58), texts(2 * count, common=58)[count:]
        for number, text in enumerate(held):
            index.add(str(number), str(number), text)
        index.near(asked[0])  # sets up what is searched
        with counted(
            lambda frame, event: event == "call" and frame.f_code is jaccard.__code__
        ) as found:
            assert all(index.near(text, any_will_do=True) for text in asked)
        compared.append(found[0])
    assert compared == list(SIZES)
