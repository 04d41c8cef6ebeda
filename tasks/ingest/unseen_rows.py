"""How many training rows are new to a model: reading only, without a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.ingest.canonical_rows import identity, read_lines
from tasks.ingest.prepare import TRAIN, build
from tasks.processes import workspace


def count_new(data: Data, prompt: Prompt, seen: Sequence[Path], slices: Sequence[str] = ()) -> int:
    """Training rows that a run over `data` would use now and that are in none of the files `seen`.

    `seen`: files of canonical rows. A row is its document and references, but for white space:
    a known document with another summary is new. Duplicates, rejects, rows beyond
    data.train_rows, and documents that are (nearly) evaluation documents are not trained on, so they
    never count. Nothing is measured in tokens: rows that only `prompt.truncate: error`
    would reject count as new each time.

    Reads every source, and writes to a temporary folder. Raises DataError with all problems of the
    input at once.
    """
    seen_rows = {
        identity(row.source, row.document, row.references)
        for path in seen
        for _, row in read_lines(path)
    }
    with workspace.temporary_folder("newer") as folder:
        built = build(data, prompt, None, folder, folder, slices=slices)
        if built.problems:
            raise DataError.of(built.problems)
        rows = read_lines(folder / TRAIN)
        return sum(
            identity(row.source, row.document, row.references) not in seen_rows for _, row in rows
        )
