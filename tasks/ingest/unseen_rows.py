"""How many training rows have come that a model has not seen: reading only, no tokenizer."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.ingest.build import TRAIN, build, canonical
from tasks.ingest.split_writer import identity


def count_new(data: Data, seen: Sequence[Path]) -> int:
    """Training rows that a run over `data` would use now and that are in none of the files `seen`.

    `seen`: files of canonical rows. A row is its document and references, but for white space:
    a known document with another summary is new. Duplicates, rejects, rows beyond
    data.train_rows, and documents that are (nearly) evaluation documents are no training rows,
    so they never count. Nothing is measured in tokens: rows that only `prompt.truncate: error`
    would reject count as new each time.

    Reads every source, and writes to a temporary folder. Raises DataError with all problems of the
    input at once.
    """
    known = {identity(row.source, row.references) for path in seen for _, row in canonical(path)}
    with tempfile.TemporaryDirectory(prefix="precis-newer-") as name:
        folder = Path(name)
        built = build(data, None, folder, folder)
        if built.problems:
            raise DataError.of(built.problems)
        rows = canonical(folder / TRAIN)
        return sum(identity(row.source, row.references) not in known for _, row in rows)
