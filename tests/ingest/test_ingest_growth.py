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

from tasks.contracts import similar_documents
from tasks.contracts.similar_documents import DocumentIndex

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


def test_boilerplate_that_all_documents_share_is_not_counted_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where 5-grams stand in very many evaluation documents, the rarest propose; the match is the same."""
    held, asked = texts(40, common=58), texts(80, common=58)[40:]
    index = DocumentIndex(0.8, 0.5)
    for number, text in enumerate(held):
        index.add(str(number), str(number), text)
    all_counted = [index.near(text) for text in asked]
    monkeypatch.setattr(similar_documents, "MAX_MATCHES", 200)
    assert [index.near(text) is not None for text in asked] == [m is not None for m in all_counted]
    assert all(all_counted)
    copy = index.near(held[7])
    assert copy is not None
    assert (copy.id, copy.jaccard) == ("7", 1.0)
