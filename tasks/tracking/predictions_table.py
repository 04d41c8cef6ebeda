"""The predictions table: MLflow's `log_table` form (pandas "split"), with every digit of a float.

pandas' own to_json rounds floats; scores must be recomputable exactly, so Python's json writes
them. `mlflow.load_table` and the MLflow UI read the result.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.metrics import LOSS, MODEL_BASED
from tasks.contracts.records import ROUGE_NAMES, Prediction

FIELD_COLUMNS = ("id", "source", "document", "references", "text", "finished")
COUNT_COLUMNS = ("prompt_tokens", "output_tokens", "batch")
COLUMNS = (*FIELD_COLUMNS, *COUNT_COLUMNS, *ROUGE_NAMES)  # of every table, old ones too
OPTIONAL_COLUMNS = ("cut_tokens", "parts")  # of tables since map_reduce
OPTIONAL_SCORES = (LOSS, *MODEL_BASED)
SCORES = (*ROUGE_NAMES, *OPTIONAL_SCORES)


def write_table(path: Path, predictions: Sequence[Prediction]) -> None:
    """Write predictions, a row each, in their order; with a column `loss`, `nli` or `bertscore` where they
    have one.

    Raises KeyError when only some of them have.
    """
    columns = [
        *COLUMNS,
        *OPTIONAL_COLUMNS,
        *(name for name in OPTIONAL_SCORES if any(name in p.scores for p in predictions)),
    ]
    data = [
        [p.scores[name] if name in SCORES else getattr(p, name) for name in columns]
        for p in predictions
    ]
    text = json.dumps({"columns": columns, "data": data}, ensure_ascii=False, allow_nan=False)
    path.write_text(text, encoding="utf-8")


def read_table(path: Path) -> list[Prediction]:
    """The predictions back, equal to those written. Raises ValueError for another file's columns."""
    table = json.loads(path.read_text(encoding="utf-8"))
    columns = table["columns"]
    if not set(COLUMNS) <= set(columns) <= {*COLUMNS, *OPTIONAL_COLUMNS, *OPTIONAL_SCORES}:
        raise ValueError(f"{path} has columns {columns}; a predictions table has {COLUMNS}")
    return [_prediction(dict(zip(columns, row, strict=True))) for row in table["data"]]


def _prediction(row: dict[str, object]) -> Prediction:
    scores = {name: row.pop(name) for name in SCORES if name in row}
    row["references"] = tuple(row["references"])  # type: ignore[arg-type]
    return Prediction(**row, scores=scores)  # type: ignore[arg-type]
