"""Fresh rows: labelled, newer than the evaluation set, and about documents that are new."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.contracts import digest
from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef
from tasks.contracts.similar_documents import DocumentIndex
from tasks.ingest.drop_overlap import drop_seen
from tasks.ingest.prepare import EVALUATION, REJECTS, REPORT, too_many_rejects
from tasks.ingest.sources import open_input
from tasks.ingest.split_writer import SplitWriter, Tally, measured, write_splits
from tasks.ingest.token_lengths import meter_for
from tasks.processes import workspace

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
    slices: Sequence[str] = (),
) -> DatasetRef:
    """Read the source `fresh` in the columns of `data`, and write `folder` as evaluation rows.

    Rows are checked and measured, and duplicates dropped, as in `prepare`. `seen`: files of canonical
    rows (training and sealed evaluation); a fresh row whose document is one of theirs, or like one
    (data.near_duplicate_jaccard, near_duplicate_containment), is dropped: the sealed rows have none like
    them in training either. The same input gives the same bytes.

    Raises DataError for rows or sources that cannot be used, and when no row is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    meter = meter_for(tokenizer_folder, settings, prompt)
    split = SplitWriter(folder / "fresh.partial", None)
    with workspace.temporary_folder("fresh") as scratch, split:
        source = open_input(KEY, fresh, data.evaluation_split, data, prompt, scratch, slices)
        with (folder / REJECTS).open("wb") as rejects:
            tally = write_splits(
                measured(source, prompt, meter), lambda _: split, (split,), rejects.write
            )
        split.close()
        if tally.rejected / tally.read > data.max_rejected_share:
            raise DataError.of(too_many_rejects(data, KEY, fresh, tally))
        rows, overlap = drop_seen(
            split.path,
            seen,
            DocumentIndex(data.near_duplicate_jaccard, data.near_duplicate_containment),
            folder / EVALUATION,
        )
    if not rows:
        raise DataError(
            f"{KEY}: no row of {fresh} is new: each of {split.rows} is, or nearly is, a training or "
            "evaluation document; name rows that came later"
        )
    report = _report(fresh, tally, split, rows, overlap)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    return _reference(folder, rows, tally.rejected)


def _report(
    fresh: str, tally: Tally, split: SplitWriter, rows: int, overlap: dict[str, int]
) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "source": fresh,
        "rows": rows,
        "rows_read": tally.read,
        "rejected": tally.rejected,
        "reject_reasons": tally.rejects.table(),
        "duplicates_dropped": split.duplicates,
        "overlap": overlap,
    }


def _reference(folder: Path, rows: int, rejected: int) -> DatasetRef:
    rows_digest = digest.of_file(folder / EVALUATION)
    return DatasetRef(
        uri=str(folder),
        digest=digest.of_value(["", rows_digest]),
        train_digest="",
        evaluation_digest=rows_digest,
        train_rows=0,
        evaluation_rows=rows,
        rejected=rejected,
    )
