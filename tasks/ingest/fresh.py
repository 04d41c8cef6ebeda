"""Fresh rows: labelled, newer than the evaluation set, and about documents that are new."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts import digest
from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef
from tasks.ingest.build import EVALUATION, REJECTS, canonical, too_many_rejects
from tasks.ingest.opened_sources import open_input
from tasks.ingest.overlap import OverlapIndex
from tasks.ingest.prepare import REPORT
from tasks.ingest.split_writer import Side, Tally, collect, measured
from tasks.ingest.token_lengths import meter_for

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

KEY = "evaluation.fresh"
SCHEMA_VERSION = 1


def prepare_fresh(
    data: Data,
    fresh: str,
    prompt: Prompt,
    settings: SummarizerSettings,
    tokenizer_folder: Path,
    seen: Sequence[Path],
    folder: Path,
) -> DatasetRef:
    """Read the source `fresh` in the columns of `data`, and write `folder` as evaluation rows.

    Rows are checked, measured and freed of duplicates as `prepare` does it. `seen`: files of
    canonical rows (training and sealed evaluation); a fresh row whose document is one of theirs, or
    nearly one (data.near_duplicate_jaccard), is dropped, as the sealed rows have none like them in
    training either. The same input gives the same bytes.

    Raises DataError for rows or sources that cannot be used, and when no row is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meter = meter_for(tokenizer_folder, settings, prompt)
    split, side = data.evaluation_split, Side(folder / "fresh.partial", None)
    with tempfile.TemporaryDirectory(prefix="precis-fresh-") as scratch, side:
        source = open_input(KEY, fresh, split, data, Path(scratch))
        with (folder / REJECTS).open("wb") as rejects:
            tally = collect(measured(source, meter), lambda _: side, (side,), rejects.write)
        side.close()
        if tally.rejected / tally.read > data.max_rejected_share:
            raise DataError.of(too_many_rejects(data, KEY, fresh, tally))
        kept, overlap = _drop_seen(side.path, seen, data, folder / EVALUATION)
    if not kept:
        raise DataError(
            f"{KEY}: no row of {fresh} is new: each of {side.rows} is, or nearly is, a training or "
            "evaluation document; name rows that came later"
        )
    report = _report(fresh, tally, side, kept, overlap)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return _reference(folder, kept, tally.rejected)


def _drop_seen(
    rows: Path, seen: Sequence[Path], data: Data, kept_rows: Path
) -> tuple[int, dict[str, int]]:
    """Copy the rows with documents unlike the seen ones; how many, and how many were dropped."""
    index = OverlapIndex(data.near_duplicate_jaccard)
    for path in seen:
        for _, row in canonical(path):
            index.add(row.source, row.id, row.document)
    kept, exact, near = 0, 0, 0
    with kept_rows.open("wb") as out:
        for line, row in canonical(rows):
            if index.exact(row.source):
                exact += 1
            elif index.near(row.document, any_will_do=True):
                near += 1
            else:
                kept += 1
                out.write(line)
    return kept, {"exact_dropped": exact, "near_dropped": near}


def _report(
    fresh: str, tally: Tally, side: Side, kept: int, overlap: dict[str, int]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source": fresh,
        "rows": kept,
        "rows_read": tally.read,
        "rejected": tally.rejected,
        "first_rejects": [str(reject) for reject in tally.first_rejects],
        "duplicates_dropped": side.duplicates,
        "overlap": overlap,
    }


def _reference(folder: Path, rows: int, rejected: int) -> DatasetRef:
    found = digest.of_file(folder / EVALUATION)
    return DatasetRef(
        uri=str(folder),
        digest=digest.of_value(["", found]),
        train_digest="",
        evaluation_digest=found,
        train_rows=0,
        evaluation_rows=rows,
        rejected=rejected,
    )
