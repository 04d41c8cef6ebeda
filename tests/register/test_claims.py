"""Succession by claims, against a real MLflow store: races, crashes, foreign hands.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from registry import NAME, DyingClient, Killed, alias, back, claim, logged, promote

from tasks.contracts.errors import ChampionMoved
from tasks.register import claims
from tasks.tracking import connection


class PausingClient(DyingClient):
    """A real client that lets another process act just before its n-th alias move."""

    def __init__(self, client: Any, meanwhile: Any) -> None:
        self.client, self.meanwhile = client, meanwhile

    def __getattr__(self, name: str) -> Any:
        if name == "set_registered_model_alias" and self.meanwhile:
            meanwhile, self.meanwhile = self.meanwhile, None
            meanwhile()
        return getattr(self.client, name)


@pytest.fixture
def store(home_with_store: Path) -> Any:
    return connection.connect()


def test_the_first_claim_becomes_champion_and_the_next_succeeds_it(store: Any) -> None:
    """Promotion moves the alias, and each champion names the one it succeeded."""
    assert claims.find_champion(store, NAME) is None
    first = promote(store, claims.NOBODY)
    assert first is not None
    second = promote(store, first.number)
    assert second is not None
    assert (first.number, second.number, second.succeeds) == (1, 2, 1)
    assert alias(store) == 2
    assert claims.find_champion(store, NAME) == second


def test_a_logged_model_s_page_names_its_versions(store: Any) -> None:
    """Those that it became, by promotion and by rollback, as MLflow's own server notes it; once each."""
    first = promote(store, claims.NOBODY)
    assert first is not None
    promote(store, 1)
    back(store)
    model = store.get_logged_model(first.source.removeprefix("models:/"))
    numbers = [entry["version"] for entry in json.loads(model.tags["mlflow.modelVersions"])]
    assert numbers == ["1", "3"]


def test_a_challenger_of_an_old_champion_is_sent_back(store: Any) -> None:
    """A claim on a champion already succeeded makes no version."""
    promote(store, claims.NOBODY)
    promote(store, 1)
    assert promote(store, 1) is None
    assert [v.number for v in claims.versions(store, NAME)] == [1, 2]
    assert alias(store) == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("write", [1, 2, 3, 4])
@pytest.mark.parametrize("expected", [0, 1], ids=["first", "successor"])
def test_a_crash_at_any_write_leaves_the_alias_where_it_was_or_fully_moved(
    store: Any, expected: int, write: int, after: bool
) -> None:
    """Kill the promotion around each of its writes; the next reader finds a sound registry."""
    if expected:
        promote(store, claims.NOBODY)
    run, source = logged(store)
    with contextlib.suppress(Killed):
        claim(DyingClient(store, write, after=after), expected, run, source)
    known = claims.versions(store, NAME) if store.search_registered_models() else []
    stands = alias(store) if store.search_registered_models() else None
    assert stands in {expected or None, expected + 1}  # never nowhere, never elsewhere
    now = claims.find_champion(store, NAME)  # the next reader finishes an unfinished claim
    claimed = any(v.number == expected + 1 for v in known)
    assert (now.number if now else 0) == (expected + 1 if claimed else expected)
    again = claim(
        store, expected, run, source
    )  # and the run itself, taken up again, is not twice there
    assert again is not None
    assert again.number == expected + 1
    assert [v.number for v in claims.versions(store, NAME)] == list(range(1, expected + 2))
    assert alias(store) == expected + 1


def test_a_slow_winner_never_takes_the_alias_back(store: Any) -> None:
    """A process that slept before moving the alias gives way to those who went on without it."""
    promote(store, claims.NOBODY)
    run, source = logged(store)

    def others_go_on() -> None:
        assert promote(connection.connect(), 1) is None  # finishes the sleeper's claim, v2
        third = promote(connection.connect(), 2)
        assert third is not None

    won = claim(PausingClient(store, others_go_on), 1, run, source)
    assert won is not None  # it was promoted, and has been succeeded since
    assert won.number == 2
    current = claims.find_champion(store, NAME)
    assert current is not None
    assert current.number == 3
    assert alias(store) == 3


def _race(home: str, run: str, source: str, start: Any, results: Any) -> None:
    import os

    os.chdir(home)
    client = connection.connect()
    start.wait()
    found = claim(client, 1, run, source)
    results.put((run, found.number if found else None))


def test_of_challengers_in_other_processes_exactly_one_succeeds(store: Any, home: Path) -> None:
    """Four processes claim the same succession at once: one version, one winner, alias on it."""
    promote(store, claims.NOBODY)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tasks.tracking.connection"]
    )  # mlflow is imported once, not by each
    start, results = context.Event(), context.Queue()
    racers = [
        context.Process(target=_race, args=(str(home), *logged(store), start, results))
        for _ in range(4)
    ]
    for racer in racers:
        racer.start()
    start.set()
    outcomes = [results.get(timeout=120) for _ in racers]
    for racer in racers:
        racer.join()
    won = [number for _, number in outcomes if number]
    assert len(won) == 1
    assert alias(store) == won[0]
    assert [v.number for v in claims.versions(store, NAME)] == [1, won[0]]


def test_an_alias_moved_by_other_hands_is_not_taken_for_a_champion(store: Any) -> None:
    """The error says what was found and both ways out; rolling back makes it official."""
    promote(store, claims.NOBODY)
    promote(store, 1)
    store.set_registered_model_alias(NAME, claims.ALIAS, "1")
    with pytest.raises(ChampionMoved, match=r"points at version 1.*rollback summ --to 1"):
        claims.find_champion(store, NAME)
    now = back(store, 1)
    assert (now.number, now.rollback_to, alias(store)) == (3, 1, 3)
    assert claims.find_champion(store, NAME) == now


def test_versions_of_other_tools_are_left_alone(store: Any) -> None:
    """A version that precis did not make is neither champion nor touched."""
    _, source = logged(store)
    store.create_registered_model(NAME)
    store.create_model_version(NAME, source)
    assert claims.find_champion(store, NAME) is None
    won = promote(store, claims.NOBODY)
    assert won is not None
    assert won.number == 2
    assert len(store.search_model_versions(f"name = '{NAME}'")) == 2


@pytest.fixture(autouse=True)
def _forget_uri() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(None)
