"""The ledger of looks forgets nothing that deleting runs or touching the evaluation file could hide."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest

from tasks.contracts import digest
from tasks.tracking import connection, history, looks, mlflow_run
from tasks.tracking.looks import EvaluationSet

MAX_TAG_CHARACTERS = 5000
LEDGER_BEFORE = Path(__file__).parent / "previous_ledger.json"


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

    def count(model: str, texts: list[str], metric: str = "rougeL", opponent: str = "base") -> int:
        with mlflow_run.run_for("demo", f"flow run {next(trials)}", {}) as run:
            rows = digest.of_value(texts)
            counted = history.count_look(run, model, metric, opponent, rows, texts)
        client.delete_run(run.id)
        return counted

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


def test_the_same_challenger_on_a_part_of_the_set_is_another_look(look: Callable[..., int]) -> None:
    """Who drops rows and asks again has had a further chance; the same documents in any form are none."""
    texts = documents(60)
    same = CHANGES["other case and punctuation"](CHANGES["another order"](texts))
    asked = (texts, same, texts[1:], texts[:-1], texts[1:])
    assert [look("a", each) for each in asked] == [1, 1, 2, 3, 3]


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
            rows = digest.of_value(texts)
            return history.count_look(run, model, "rougeL", "base", rows, texts)

    judge("first")
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(judge, ("a", "b")))
    assert max(together) == 3
    assert judge("c") == 4
    mlflow.set_tracking_uri(None)


def test_each_champion_starts_the_count_again(look: Callable[..., int]) -> None:
    """Looks against another opponent do not count; against the same again they do."""
    texts = documents(30)
    against = ("base", "base", "one", "one", "two", "one")
    counted = [look(f"m{i}", texts, opponent=name) for i, name in enumerate(against)]
    assert counted == [1, 2, 1, 2, 1, 3]


@pytest.mark.parametrize("part", [slice(0, 10), slice(2500, 2503), slice(0, None, 300)])
def test_a_small_part_of_a_large_set_is_the_same_set(part: slice, look: Callable[..., int]) -> None:
    """Three or ten of 3,000 documents, and the 3,000 again after a part of them."""
    texts = documents(3000)
    look("a", texts)
    assert look("b", texts[part]) == 2
    assert look("c", texts[::-1]) == 3


def test_looks_of_the_ledger_before_count_for_every_opponent(
    look: Callable[..., int], home_with_store: Path
) -> None:
    """Its entries name no opponent, and its sets stand in one tag."""
    texts = documents(20)
    look("a", texts, opponent="one")
    client = connection.connect()
    experiment = client.get_experiment_by_name("demo").experiment_id
    for key, value in json.loads(LEDGER_BEFORE.read_text()).items():
        client.set_experiment_tag(experiment, key, value)
    assert look("b", texts, opponent="one") == 4
    assert look("b", texts, opponent="two") == 3
    assert look("old1", texts[::-1], opponent="three") == 2  # no third: by rougeL it was before


@pytest.mark.parametrize("count", [1, 900, 901, 3000])
def test_a_set_of_any_size_fits_tags(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that is missing is no set; of very large sets a share is stored, the same of every set."""
    monkeypatch.setattr(looks, "MAX_STORED", 2000)
    texts = documents(count)
    stored = EvaluationSet.of(texts)
    written = stored.as_texts()
    assert max(map(len, written)) < MAX_TAG_CHARACTERS
    assert EvaluationSet.from_texts(written[::-1]) == stored
    assert EvaluationSet.from_texts(written[1:]) is None
    assert stored.same(EvaluationSet.of(texts[: max(1, count * 2 // 3)]))
    assert not stored.same(EvaluationSet.of(documents(count, first=100_000)))
    assert EvaluationSet.of(texts[::-1]).name == stored.name
    if count >= 400:
        assert stored.same(EvaluationSet.of([*texts, *documents(count // 2, first=100_000)]))
