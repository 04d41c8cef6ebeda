"""The data report: rows read, rejected and used, and how long they are in tokens."""

from __future__ import annotations

import re
from array import array
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tasks.contracts.recipe import Data, Prompt
from tasks.ingest.columns import Columns
from tasks.ingest.drop_overlap import Overlap
from tasks.ingest.gathering import missing_shards
from tasks.ingest.row_types import SourceFile, shown
from tasks.ingest.sources import Input
from tasks.ingest.split_writer import SplitWriter, Tally

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

SCHEMA_VERSION = (
    2  # 1 had first_rejects in place of reject_reasons, and neither remarks nor seen_rows
)
HELD_OUT = re.compile(r"(test|valid|validation|dev|eval|evaluation)\b", re.IGNORECASE)
USUAL_FORMS = ("JSONL", "CSV", "Parquet", "a JSON array")


def full_report(
    data: Data,
    prompt: Prompt,
    inputs: dict[str, Input],
    tallies: dict[str, Tally],
    train: SplitWriter,
    evaluation: SplitWriter,
    overlap: Overlap,
    settings: SummarizerSettings | None,
) -> dict[str, Any]:
    """What `report.json` holds of the rows: numbers, names and digests, the same each time.

    `prepare` adds what the tokenizer and the chat template do to them, and the first rows as the model
    sees them.
    """
    all_rows = np.ones(evaluation.rows, dtype=bool)
    judged = _split(evaluation, all_rows, overlap.evaluation_documents, settings)
    if settings is not None and settings.summarize == "map_reduce":
        # Evaluation summarizes too long documents in parts; only training rows are cut.
        too_long = judged.pop("truncated_prompts")
        judged["prompts_in_parts"] = {name: too_long[name] for name in ("count", "share", "limit")}
    judged["document_forms"] = dict(sorted(evaluation.facts.forms.items()))
    return {
        "schema_version": SCHEMA_VERSION,
        "split": "named files"
        if len(inputs) > 1
        else f"hash of the document, evaluation share {data.evaluation_share}",
        "train": _split(train, overlap.kept, overlap.train_documents, settings),
        "evaluation": judged,
        "overlap": {
            "near_duplicate_jaccard": data.near_duplicate_jaccard,
            "exact_dropped": overlap.exact,
            "near_dropped": overlap.near.total(),
            "near_dropped_by_kind": dict(sorted(overlap.near.items())),
            "near_duplicate_containment": data.near_duplicate_containment,
            "shared_references": overlap.shared_references,
            "examples": overlap.examples,
        },
        "rejected": sum(tally.rejected for tally in tallies.values()),
        "reject_reasons": [row for tally in tallies.values() for row in tally.rejects.table()],
        "remarks": [
            *remarks(inputs, tallies),
            *train.facts.remarks("training rows", prompt),
            *evaluation.facts.remarks("evaluation rows", prompt),
        ],
        "inputs": {key: _input(inputs[key], tallies[key]) for key in inputs},
    }


def remarks(inputs: dict[str, Input], tallies: dict[str, Tally]) -> list[str]:
    """What a reader should know of how the rows came to be: a line each, for check, log and report."""
    lines = []
    for key, source in inputs.items():
        tally = tallies[key]
        if tally.rejected:
            lines.append(f"{key}: {tally.rejected} of {tally.read} rows rejected")
            lines += [f"rejected: {line}" for line in tally.rejects.lines()]
        lines += tally.placeholders.lines()
        for file, read_as in zip(source.gathered.files, source.read_as, strict=True):
            if len(read_as) > 1 or read_as[0] not in USUAL_FORMS:
                lines.append(f"{file.name}: read as {'; '.join(read_as)}")
        lines += _other_splits(key, [file.name for file in source.gathered.files])
        if left_out := list(source.gathered.ignored):
            lines.append(f"{key}: not read: {shown(left_out, 10)}")
        lines += missing_shards(source.gathered)
    return lines


def _other_splits(key: str, names: list[str]) -> list[str]:
    """Files of a folder whose names are of splits: `test.jsonl` is read like the files beside it."""
    held_out = [name for name in names if HELD_OUT.match(PurePath(name).name)]
    if key != "data.train" or not 0 < len(held_out) < len(names):
        return []
    return [
        f"{key}: {shown(held_out, 10)}: read like the files beside it, though the name is of a set to judge "
        "by; name the files you mean in data.train and data.evaluation"
    ]


def _split(
    split: SplitWriter,
    kept: NDArray[np.bool_],
    documents: int,
    settings: SummarizerSettings | None,
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "rows": int(kept.sum()),
        "documents": documents,
        "duplicates_dropped": split.duplicates,
    }
    if settings is None:
        return report
    cuts = _numbers(split.cuts)[kept]
    tokens_cut = cuts[cuts > 0]
    mean = round(float(tokens_cut.mean()), 1) if len(tokens_cut) else 0.0
    prompts, references = _numbers(split.prompts), _numbers(split.references)
    summaries = _numbers(split.summaries)[np.repeat(kept, references)]
    fitting = np.minimum(prompts, settings.max_source_tokens)
    return report | {
        "prompt_tokens": distribution(prompts[kept]),
        "summary_tokens": distribution(summaries),
        "sequences": {  # each reference after its prompt, and an end-of-text
            "count": len(summaries),
            "tokens": int((fitting * references)[kept].sum() + summaries.sum()) + len(summaries),
            "completion_tokens": int(summaries.sum()) + len(summaries),
        },
        "truncated_prompts": _over(cuts, 0, report["rows"])
        | {
            "limit": settings.max_source_tokens,
            "tokens_cut": distribution(tokens_cut) | {"mean": mean},
        },
        "summaries_over_max_new_tokens": _over(summaries, settings.max_new_tokens, len(summaries))
        | {"limit": settings.max_new_tokens},
    }


def _over(values: NDArray[np.int64], limit: int, of: int) -> dict[str, Any]:
    count = int((values > limit).sum())
    return {"count": count, "share": _share(count, of)}


def _input(source: Input, tally: Tally) -> dict[str, Any]:
    return {
        "source": source.gathered.spec,
        "rows_read": tally.read,
        "rejected": tally.rejected,
        "rejected_share": _share(tally.rejected, tally.read),
        "missing_references": {
            "rows": tally.rows_missing_references,
            "references": tally.missing_references,
        },
        "files": [
            _file(file, used, tally.by_file.get(file.name, 0)) | {"read_as": read_as}
            for (file, used), read_as in zip(source, source.read_as, strict=True)
        ],
        "ignored": list(source.gathered.ignored),
    }


def _file(file: SourceFile, columns: Columns, rows: int) -> dict[str, Any]:
    return {
        "name": file.name,
        "bytes": file.size,
        "sha256": file.sha256,
        "verified": list(file.verified),
        "rows_read": rows,
        "fields": columns.as_reported(),
    }


def distribution(values: NDArray[np.int64]) -> dict[str, int]:
    """Median, 95th percentile (nearest rank: a value that occurs) and maximum; zeros for none."""
    if not len(values):
        return {"p50": 0, "p95": 0, "max": 0}
    p50, p95 = np.percentile(values, [50, 95], method="inverted_cdf")
    return {"p50": int(p50), "p95": int(p95), "max": int(values.max())}


def _numbers(values: array[int]) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0
