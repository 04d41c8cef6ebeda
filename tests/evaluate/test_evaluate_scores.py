"""Lead-3, predictions, their measures and their table."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pandas
import pytest

from tasks.contracts.errors import EvaluationError
from tasks.contracts.records import ROUGE_NAMES, Output, Row
from tasks.evaluate.lead3 import lead3
from tasks.evaluate.scores import (
    Scoring,
    batch_plan,
    lead3_predictions,
    measures,
    score_texts,
    scores_of,
)
from tasks.tracking.predictions_table import COLUMNS, read_table, write_table

ROWS = [
    Row("1", "doc-1", "Ann: Hi.\nBen: Yes?\nAnn: Nothing.\nBen: Fine.", ("Ann greets Ben.",)),
    Row("2", "doc-2", "One 'thing'. Two? Three! Four.", ("One two three.", "Three things.")),
    Row("3", "doc-3", "Übung macht\nden Meister 🙂", ("Practice",)),
]
OUTPUTS = [
    Output("Ann greets Benjamin.", True, 12, 5, 1),
    Output("", True, 30, 0, 0),
    Output("Practice and more of that", False, 30, 8, 0),
]


LEADS = {
    "#P1#: Hi.\n#P2#: A? B.\n\nDr. Lee: C\n#P1#: D": "#P1#: Hi.\n#P2#: A? B.\nDr. Lee: C",
    "[9:32] Ann: hi\n[9:33] Ben: yes\n[9:33] Ann: ok\n[9:34] Ann: bye": (
        "[9:32] Ann: hi\n[9:33] Ben: yes\n[9:33] Ann: ok"
    ),
    "no names here\nnor full stops\nas in a\nhasty chat": "no names here\nnor full stops\nas in a",
    "One. Two! Three? Four.": "One. Two! Three?",
    'He cried "no." They left (i.e. fled). It\'s over. End.': (
        'He cried "no." They left (i.e. fled). It\'s over.'
    ),
    "SEC. 1\r\n\r\n  This Act\r\n  may be cited. It is\r\nso. No more.": (
        "SEC. 1 This Act may be cited. It is so."
    ),
    "only this": "only this",
    " \n ": "",
    "": "",
}


@pytest.mark.parametrize("document", LEADS)
def test_lead3(document: str) -> None:
    """Three turns where speakers take turns, otherwise three sentences."""
    assert lead3(document) == LEADS[document]


def test_lead3_on_real_dialogues(shared: Path) -> None:
    """The first 100 dev dialogues give the figures measured with rouge_score (models/README.md)."""
    with (shared / "data/dialogsum/dev.jsonl").open() as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in islice(lines, 100)]
    means = measures(
        lead3_predictions(
            [Row(r["fname"], r["fname"], r["dialogue"], (r["summary"],)) for r in rows]
        )
    ).means
    assert [round(means[name], 3) for name in ROUGE_NAMES[:3]] == [0.294, 0.090, 0.228]


def test_measures_count_every_row() -> None:
    """An empty output counts in every mean: it is an output, not a failure."""
    found = measures(score_texts(ROWS, OUTPUTS))
    assert (found.rows, found.finished_share, found.empty_share) == (3, 2 / 3, 1 / 3)
    assert found.length_ratio == (3 + 0 + 5) / (3 + 3 + 1)
    assert found.means["rouge1"] == (2 / 3 + 0 + 2 / 6) / 3


def test_predictions_keep_row_and_output() -> None:
    predictions = score_texts(ROWS, OUTPUTS)
    for prediction, row, output in zip(predictions, ROWS, OUTPUTS, strict=True):
        assert vars(prediction) == vars(row) | vars(output) | {"scores": prediction.scores}


def test_scores_of_carries_where_and_what() -> None:
    predictions = score_texts(ROWS, OUTPUTS)
    scores = scores_of(predictions, "model", "seal", "runs:/1/table.json", 2.5)
    assert (scores.model_digest, scores.evaluation_digest) == ("model", "seal")
    assert (scores.uri, scores.seconds, scores.rows) == ("runs:/1/table.json", 2.5, 3)
    assert scores.means == measures(predictions).means


def test_an_empty_set_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="empty"):
        score_texts([], [])
    with pytest.raises(EvaluationError, match="no predictions"):
        measures([])


def test_a_missing_output_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="3 evaluation rows, but 2 outputs"):
        score_texts(ROWS, OUTPUTS[:2])


def test_a_row_without_reference_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="without a reference: bare"):
        score_texts([Row("bare", "s", "text", ())], OUTPUTS[:1])


def test_references_without_words_are_an_error() -> None:
    """A set on which every output would score 0 stops the run, and the way out is named."""
    with pytest.raises(EvaluationError, match=r"no reference of the 1 .* evaluation.words: latin"):
        score_texts([Row("1", "s", "text", (" ",))], OUTPUTS[:1])
    russian = Row("1", "s", "text", ("\u0434\u0430",))
    with pytest.raises(EvaluationError, match=r"set evaluation\.words: auto"):
        score_texts([russian], OUTPUTS[:1], scoring=Scoring(words="latin"))


def test_the_table_gives_back_every_digit(tmp_path: Path) -> None:
    """What is read equals what was written, floats and references included."""
    predictions = score_texts(ROWS, OUTPUTS)
    write_table(tmp_path / "table.json", predictions)
    assert read_table(tmp_path / "table.json") == predictions


def test_a_table_with_a_loss_gives_it_back(tmp_path: Path) -> None:
    """A column of its own; a table in which only some rows have one is not written."""
    predictions = score_texts(ROWS, OUTPUTS, [2.5, 1 / 3, 0.0])
    write_table(tmp_path / "table.json", predictions)
    assert read_table(tmp_path / "table.json") == predictions
    assert measures(predictions).means["loss"] == pytest.approx((2.5 + 1 / 3) / 3)
    with pytest.raises(KeyError, match="loss"):
        write_table(tmp_path / "other.json", [predictions[0], *score_texts(ROWS[1:], OUTPUTS[1:])])


@pytest.mark.parametrize("wrong", [[1.0, 2.0], [1.0, 2.0, float("nan")], [float("inf"), 1.0, 1.0]])
def test_a_loss_that_is_missing_or_no_number_is_an_error(wrong: list[float]) -> None:
    with pytest.raises(EvaluationError, match=r"2 losses|not a finite number, such as row '[13]'"):
        score_texts(ROWS, OUTPUTS, wrong)


def test_a_table_from_before_map_reduce_is_still_read(tmp_path: Path) -> None:
    """It has none of the later columns: cuts are unknown, and each document was one part."""
    predictions = score_texts(ROWS, OUTPUTS)
    write_table(tmp_path / "table.json", predictions)
    table = json.loads((tmp_path / "table.json").read_text())
    old = [name for name in table["columns"] if name not in {"cut_tokens", "parts"}]
    assert old == list(COLUMNS)
    data = [[row[table["columns"].index(name)] for name in old] for row in table["data"]]
    (tmp_path / "table.json").write_text(json.dumps({"columns": old, "data": data}))
    assert read_table(tmp_path / "table.json") == predictions
    assert {p.cut_tokens for p in predictions} == {None}


@pytest.mark.parametrize("columns", [COLUMNS[:-1], (*COLUMNS, "other")])
def test_another_table_is_an_error(tmp_path: Path, columns: tuple[str, ...]) -> None:
    """A column too few or too many."""
    (tmp_path / "table.json").write_text(json.dumps({"columns": columns, "data": []}))
    with pytest.raises(ValueError, match="a predictions table has"):
        read_table(tmp_path / "table.json")


def test_pandas_reads_the_table_as_mlflow_does(tmp_path: Path) -> None:
    """mlflow.load_table reads with pandas.read_json(orient="split")."""
    predictions = score_texts(ROWS, OUTPUTS)
    write_table(tmp_path / "table.json", predictions)
    frame = pandas.read_json(tmp_path / "table.json", orient="split")
    assert list(frame["text"]) == [p.text for p in predictions]
    assert list(frame["references"]) == [list(p.references) for p in predictions]
    assert list(frame["rougeL"]) == pytest.approx([p.scores["rougeL"] for p in predictions])


def test_the_batch_plan_is_in_the_table() -> None:
    """Batches in their order, each longest prompt first, then by row."""
    assert batch_plan(score_texts(ROWS, OUTPUTS)) == [[1, 2], [0]]
