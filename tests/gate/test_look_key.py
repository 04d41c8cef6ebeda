"""What is another look: the same challenger counts again where its verdict is made of something else."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from gate.gate_tables import record, two_models
from prefect.logging import disable_run_logger

from tasks.contracts.digest import of_file, of_value
from tasks.contracts.recipe import Evaluation, Gate, Recipe
from tasks.contracts.records import DatasetRef, Prediction, Scores
from tasks.gate import task as steps
from tasks.gate.look_key import decided_from, judged_by
from tasks.tracking import connection, history, mlflow_run
from tasks.tracking.predictions_table import write_table

Rows = list[Prediction]
WORDS = (
    "amber",
    "birch",
    "cedar",
    "delta",
    "ember",
    "frost",
    "grove",
    "haven",
    "ivory",
    "jetty",
    "kelp",
)
ROWS = 40
QUICK = {"bootstrap_samples": 1000, "feedback": "open"}


def rows_of_both() -> tuple[Rows, Rows]:
    """A challenger's table and an opponent's, of documents that no two are alike, two references each."""
    draw = random.Random(0)
    ours, theirs = two_models(1, rows=ROWS)
    texts = [" ".join(draw.choices(WORDS, k=30)) + f" number {n}" for n in range(ROWS)]
    both = ("challenger's words", "opponent's words")
    return tuple(  # type: ignore[return-value]  # two of them
        [
            replace(
                row, document=text, references=(f"Answer {text[:20]}.", "Other."), text=f"{who} {n}"
            )
            for n, (row, text) in enumerate(zip(rows, texts, strict=True))
        ]
        for who, rows in zip(both, (ours, theirs), strict=True)
    )


def renamed(rows: Rows) -> Rows:
    """As ingest numbers them: in another order, other ids."""
    return [replace(row, id=f"new{n:05}", source=f"new{n}") for n, row in enumerate(reversed(rows))]


def first(rows: Rows, **changes: Any) -> Rows:
    """The first row changed."""
    return [replace(rows[0], **changes), *rows[1:]]


CHANGES: dict[str, tuple[Callable[[Rows], Rows], int]] = {
    "nothing": (list, 1),
    "order, ids and a blank": (lambda rows: renamed(first(rows, document=f"{rows[0].document} ")), 1),
    "another case": (lambda rows: first(rows, document=str(rows[0].document).upper()), 1),
    "a row less": (lambda rows: rows[1:], 2),
    "a row twice": (lambda rows: [*rows, replace(rows[0], id="twice")], 2),
    "a reference edited": (lambda rows: first(rows, references=("Answer.", "Other.")), 2),
    "an accent in a reference": (lambda rows: first(rows, references=("Ånswer.", "Other.")), 2),
    "a reference less": (lambda rows: first(rows, references=rows[0].references[:1]), 2),
    "other outputs": (lambda rows: first(rows, text="something else"), 2),
    "other scores": (lambda rows: first(rows, scores={**rows[0].scores, "rougeL": 0.99}), 2),
    "two documents are one source": (lambda rows: first(rows, source=rows[1].source), 2),
}  # fmt: skip


@pytest.fixture
def ask(home_with_store: Path) -> Iterator[Callable[..., int]]:
    """Let the gate judge tables, in a run of its own; which look it was."""
    connection.connect()
    trials = iter(range(1000))

    def judge(tables: Sequence[Rows], flow_run: str = "", **changes: dict[str, object]) -> int:
        recipe = Recipe(
            name="demo",
            base={"model": "base"},
            data={"train": "t", "evaluation": "e"},
            gate=QUICK | changes.get("gate", {}),
            evaluation=changes.get("evaluation", {}),
        )
        with mlflow_run.run_for("demo", flow_run or f"run {next(trials)}", {}) as run:
            scores = [_stored(run, rows, who) for who, rows in enumerate(tables)]
            rows = of_value([[row.id, row.document, row.references] for row in tables[0]])
            dataset = DatasetRef("runs:/none", "d", "t", rows, 10, ROWS, 0)
            with disable_run_logger():
                decision = steps.gate.fn(*scores, scores[1], scores[1], None, dataset, recipe)
        return int(decision.looks)

    def _stored(run: Any, rows: Rows, who: int) -> Scores:
        path = home_with_store / f"table{who}.json"
        write_table(path, rows)
        uri = run.log_file(path, "predictions")
        return replace(record(rows, f"model{who}"), uri=uri, table_digest=of_file(path))

    yield judge
    mlflow.set_tracking_uri(None)


def test_the_same_challenger_asked_otherwise_is_another_look(ask: Callable[..., int]) -> None:
    """A row dropped or a reference edited, other references or words; not order, a blank or a retry."""
    tables = rows_of_both()
    assert ask(tables, "killed") == 1
    assert ask(tables, "killed") == 1
    blank = [renamed(first(rows, document=f" {rows[0].document}")) for rows in tables]
    assert ask(blank) == 1
    assert ask([rows[1:] for rows in tables]) == 2
    assert ask([first(rows, references=("Answer.", "Other.")) for rows in tables]) == 3
    assert ask(tables, evaluation={"references": "first"}) == 4
    assert ask(tables, evaluation={"words": "unicode"}) == 5
    assert ask(tables, gate={"slices": ["length"]}) == 5


def test_a_retry_across_an_upgrade_counts_once(home_with_store: Path) -> None:
    """A run that was counted without `decided_from` keeps its look; a new run is one more."""
    connection.connect()

    def count(flow_run: str, decided: str = "") -> int:
        with mlflow_run.run_for("demo", flow_run, {}) as run:
            return history.count_look(run, "m", "rougeL", "base", "rows", ["a document"], decided)

    assert [count("before"), count("before", "d" * 64), count("after", "d" * 64)] == [1, 1, 2]
    assert count("after", "e" * 64) == 2  # its own retry, whose outputs were made again on a GPU
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(("change", "looks"), CHANGES.values(), ids=CHANGES)
def test_what_is_compared_is_known_by_its_content(
    change: Callable[[Rows], Rows], looks: int
) -> None:
    """Whatever could give the same challenger another verdict is told apart."""
    tables = rows_of_both()
    gate = Gate()
    known = {
        decided_from(ours, theirs, gate, {})
        for ours, theirs in (tables, [change(rows) for rows in tables])
    }
    assert len(known) == looks


def test_labels_count_where_slices_decide() -> None:
    """Another label is another look under slice_loss: veto alone, whatever the ids."""
    ours, theirs = rows_of_both()
    veto, report = (Gate(slices=("topic",), slice_loss=how) for how in ("veto", "report"))
    labels = {"topic": {row.id: ("a" if n % 2 else "b",) for n, row in enumerate(ours)}}
    other = {"topic": labels["topic"] | {ours[0].id: ("a",)}}
    asked = [
        decided_from(ours, theirs, gate, used)
        for gate in (veto, report)
        for used in (labels, other)
    ]
    assert (asked[0] == asked[1], asked[2] == asked[3]) == (False, True)
    moved = {
        "topic": {f"new{ROWS - 1 - n:05}": labels["topic"][row.id] for n, row in enumerate(ours)}
    }
    assert decided_from(renamed(ours), renamed(theirs), veto, moved) == asked[0]


def test_settings_that_decide_nothing_are_in_no_look() -> None:
    """Slices that are reported, the layer of a BERTScore that is shown, references: best. Vetoes are."""
    shown = {"nli_model": "x", "bertscore_model": "x", "bertscore_layer": 3, "slices": ["length"]}
    assert judged_by(Gate.model_validate(shown), None, Evaluation(references="best")) == "rougeL"
    assert judged_by(Gate(slice_loss="veto"), None, Evaluation(max_new_tokens=9)) == "rougeL"
    others = [shown | {"max_bertscore_drop": 0.1}, shown | {"slice_loss": "veto"}]
    others += [others[0] | {"bertscore_layer": 4}, others[1] | {"slices": ["language"]}]
    assert len({judged_by(Gate.model_validate(one)) for one in others}) == 4


def test_a_looks_name_stays_as_it_is() -> None:
    """Over versions: by another name the same settings would be another look."""
    assert judged_by(Gate(min_delta=0.01, alpha=0.01)) == "rougeL-bc301f3c"
    assert (
        judged_by(Gate(), None, Evaluation(words="latin", references="first")) == "rougeL-4aa62b4b"
    )
