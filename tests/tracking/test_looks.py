"""The ledger of looks forgets nothing that deleting runs or touching the evaluation file could hide."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest

from tasks.contracts import digest
from tasks.tracking import connection, history, mlflow_run
from tasks.tracking.looks import EvaluationSet

MAX_TAG_CHARACTERS = 5000


def documents(count: int, first: int = 0) -> list[str]:
    """Distinct documents."""
    return [
        f"Ann: shall we meet at {n}?\nBob: no, I am at number {n * 7}."
        for n in range(first, first + count)
    ]


@pytest.fixture
def look(home_with_store: Path) -> Iterator[Callable[..., int]]:
    """Judge a model on documents in a run that is then deleted for good; which look it was."""
    client = connection.connect()
    trials = iter(range(1000))

    def count(model: str, texts: list[str], metric: str = "rougeL") -> int:
        with mlflow_run.run_for("demo", f"flow run {next(trials)}", {}) as run:
            looks = history.count_look(run, model, metric, digest.of_value(texts), texts)
        client.delete_run(run.id)
        return looks

    yield count
    mlflow.set_tracking_uri(None)


def test_looks_are_counted_though_their_runs_were_deleted(look: Callable[..., int]) -> None:
    """Each further challenger is one more look, and the same one again is none."""
    texts = documents(50)
    assert [look(model, texts) for model in ("a", "b", "c", "b")] == [1, 2, 3, 3]


CHANGES: dict[str, Callable[[list[str]], list[str]]] = {
    "another order": lambda texts: random.Random(1).sample(texts, len(texts)),
    "a blank": lambda texts: [f"{texts[0]} ", *texts[1:]],
    "other case and punctuation": lambda texts: [text.upper().replace("?", "??") for text in texts],
    "a row less": lambda texts: texts[1:],
    "a row more": lambda texts: [*texts, "Cid: and one more."],
    "a row twice": lambda texts: [*texts, texts[0]],
    "a subset": lambda texts: texts[:10],
    "a third of the rows is new": lambda texts: [*texts[:40], *documents(20, first=1000)],
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_touched_evaluation_set_is_the_same_set(
    change: Callable[[list[str]], list[str]], look: Callable[..., int]
) -> None:
    """The count goes on."""
    texts = documents(60)
    look("a", texts)
    look("b", texts)
    assert look("c", change(texts)) == 3


def test_a_new_evaluation_set_starts_the_count(look: Callable[..., int]) -> None:
    """Where more than half the documents of both are new."""
    look("a", documents(60))
    assert look("b", documents(60, first=500)) == 1
    assert look("c", [*documents(25), *documents(35, first=2000)]) == 1


def test_another_metric_is_another_look(look: Callable[..., int]) -> None:
    """A challenger that is judged by ROUGE and then by loss had two chances."""
    texts = documents(30)
    assert [look("a", texts, metric) for metric in ("rougeL", "loss", "rougeL")] == [1, 2, 2]


def test_challengers_judged_at_once_are_both_counted(home_with_store: Path) -> None:
    """Of two at the same time neither is lost: the next one sees both."""
    connection.connect()
    texts = documents(20)

    def judge(model: str) -> int:
        with mlflow_run.run_for("demo", f"of {model}", {}) as run:
            return history.count_look(run, model, "rougeL", digest.of_value(texts), texts)

    judge("first")
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(judge, ("a", "b")))
    assert max(together) == 3
    assert judge("c") == 4
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize("count", [1, 400, 401, 3000])
def test_a_set_of_any_size_fits_a_tag(count: int) -> None:
    """Of large sets a share is stored, the same documents of every set, and comparing still works."""
    texts = documents(count)
    stored = EvaluationSet.of(texts)
    assert len(stored.as_text()) < MAX_TAG_CHARACTERS
    assert EvaluationSet.from_text(stored.as_text()) == stored
    assert stored.same(EvaluationSet.of(texts[: max(1, count * 2 // 3)]))
    assert not stored.same(EvaluationSet.of(documents(count, first=100_000)))
    if count >= 400:
        assert stored.same(EvaluationSet.of([*texts, *documents(count // 2, first=100_000)]))
