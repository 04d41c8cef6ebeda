"""Rollbacks on a real MLflow store: repeated after a kill, retried, overtaken, of what was deleted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry import NAME, DyingClient, Killed, alias, back, champions, logged, promote

from tasks.contracts.errors import NoSuchChampion, Overtaken, RegistryError
from tasks.register import claims, rollback
from tasks.register.task import history_of


@pytest.fixture
def store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three champions in a row: v1, v2, v3."""
    with champions(3, tmp_path_factory, home) as client:
        yield client


def champion(client: Any) -> claims.Version:
    found = claims.find_champion(client, NAME)
    assert found is not None
    assert alias(client) == found.number
    return found


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5, 6])
def test_a_rollback_killed_anywhere_and_repeated_goes_back_once(store: Any, write: int) -> None:
    """The command as told, in a run of its own: the model of v2 is champion, by one version, v4."""
    killed = logged(store)[0]
    died = False
    with contextlib.suppress(Killed):
        died = True
        back(DyingClient(store, write, after=True), run=killed)
        died = False
    assert died == (write < 6)  # its plan, the model, the version, the alias, the tag
    assert alias(store) in (3, 4)
    if not died:
        return
    again = back(store)
    assert (again.number, again.rollback_to) == (4, 2)
    assert champion(store).digest == again.digest
    further = back(store)  # a third command is a new one
    assert (further.number, further.rollback_to) == (5, 1)


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_repetition_that_is_killed_too_is_repeated(store: Any, write: int) -> None:
    """However often: one step back, until a command has ended well."""
    with contextlib.suppress(Killed):
        back(DyingClient(store, 3, after=True))
    for _ in range(2):
        run = logged(store)[0]
        with contextlib.suppress(Killed):
            plan = rollback.plan(DyingClient(store, write, after=True), NAME, None, run, False)
            assert plan.in_effect
            raise Killed  # before it could end well
        assert champion(store).rollback_to == 2
    assert back(store).rollback_to == 2
    assert back(store).rollback_to == 1


def test_two_who_go_back_at_once_go_back_once(store: Any) -> None:
    """The second finds the first one's rollback in effect while its command is still running."""
    first = logged(store)[0]
    plan = rollback.plan(store, NAME, None, first, False)
    rollback.restore(store, NAME, plan.target, first, expected=plan.expected)
    assert back(store).number == 4
    assert champion(store).rollback_to == 2


def test_a_retry_goes_back_to_what_the_first_try_chose(store: Any) -> None:
    """A champion that came meanwhile is not replaced unasked, nor is it what is put back."""
    run = logged(store)[0]
    assert rollback.plan(store, NAME, None, run, False).target.number == 2
    promote(store, 3)
    plan = rollback.plan(store, NAME, None, run, True)
    assert plan.expected is not None
    assert (plan.target.number, plan.expected.number) == (2, 3)
    with pytest.raises(
        Overtaken, match=r"v4 \(d\), and v3 was to be replaced; nothing was changed"
    ):
        rollback.restore(store, NAME, plan.target, run, expected=plan.expected)
    assert champion(store).number == 4


def test_a_retry_of_one_that_took_effect_changes_nothing(store: Any) -> None:
    """Also after another champion: it finds what it has done."""
    run = logged(store)[0]
    first = back(store, run=run)
    assert back(store, run=run, resumed=True) == first
    promote(store, 4)
    assert back(store, run=run, resumed=True) == first
    assert champion(store).number == 5


def test_it_goes_back_one_champion_at_a_time(store: Any) -> None:
    """Twice in a row reaches the champion before, not the one just left."""
    assert back(store).rollback_to == 2
    assert back(store).rollback_to == 1
    with pytest.raises(NoSuchChampion, match="no earlier champion"):
        back(store)
    with pytest.raises(NoSuchChampion, match=r"never champion, or .*champions were: 1, 2, 3, 4, 5"):
        back(store, 77)


def test_going_back_to_the_champion_makes_no_version(store: Any) -> None:
    """By its own number, or by that of the version whose model it has; an alias by hand is put right."""
    assert back(store, 3).number == 3
    assert back(store, 2).number == 4
    assert back(store, 2).number == 4
    assert back(store, 4).number == 4
    store.set_registered_model_alias(NAME, claims.ALIAS, "1")
    assert back(store, 4).number == 4
    assert champion(store).number == 4


def test_an_overtaken_rollback_leaves_an_alias_that_was_moved_by_hand(store: Any) -> None:
    """It was asked about another champion: nothing is written."""
    run = logged(store)[0]
    plan = rollback.plan(store, NAME, 1, run, False)
    promote(store, 3)
    store.set_registered_model_alias(NAME, claims.ALIAS, "2")
    with pytest.raises(Overtaken):
        rollback.restore(store, NAME, plan.target, run, expected=plan.expected)
    assert alias(store) == 2


def test_a_version_that_was_deleted_is_called_deleted(store: Any) -> None:
    """Asked for by number, or passed over: both are told; its model may not come back unnoticed."""
    store.delete_model_version(NAME, "2")
    with pytest.raises(NoSuchChampion, match=r"version 2 was champion, and was deleted.*: 1, 3"):
        rollback.plan(store, NAME, 2, logged(store)[0], False)
    plan = rollback.plan(store, NAME, None, logged(store)[0], False)
    assert (plan.target.number, plan.note) == (1, "v2 between was deleted from the registry")


def test_a_target_deleted_between_two_tries_is_named(store: Any) -> None:
    """A retry does not choose another one."""
    run = logged(store)[0]
    rollback.plan(store, NAME, None, run, False)
    store.delete_model_version(NAME, "2")
    with pytest.raises(
        NoSuchChampion, match="version 2, which this rollback was to put back, was del"
    ):
        rollback.plan(store, NAME, None, run, True)


def test_the_same_number_of_another_model_is_not_the_champion_asked_about(store: Any) -> None:
    """Deleted and made again between question and answer: numbers begin again, models do not."""
    run = logged(store)[0]
    plan = rollback.plan(store, NAME, None, run, False)
    store.delete_registered_model(NAME)
    for expected in range(3):
        promote(store, expected)
    with pytest.raises(Overtaken):
        rollback.restore(store, NAME, plan.target, run, expected=plan.expected)
    with pytest.raises(NoSuchChampion, match="was deleted since"):
        rollback.plan(store, NAME, None, run, True)
    assert champion(store).number == 3


@pytest.mark.parametrize("text", ["", "3", "[]", "{}", '{"version": 2, "digest": 1}', "{'version"])
def test_a_plan_that_was_edited_is_no_traceback(store: Any, text: str) -> None:
    """It says which tag of which run."""
    run = logged(store)[0]
    store.set_tag(run, rollback.PLAN, text or "x")
    with pytest.raises(RegistryError, match=rf"run {run}: its tag precis\.rollback_plan"):
        rollback.plan(store, NAME, None, run, True)


def test_deleted_runs_take_no_champion_from_the_history(store: Any) -> None:
    """Promotions of before entries were kept with versions, and rollbacks, also without experiment."""
    run = logged(store)[0]
    plan = rollback.plan(store, NAME, None, run, False)
    record = rollback.history_record(NAME, plan.target, None, run, "it was slow")
    text = json.dumps(vars(record))
    rollback.restore(store, NAME, plan.target, run, expected=plan.expected, record=text)
    for version in claims.versions(store, NAME):
        store.delete_run(version.run_id)
    entries = history_of(store, NAME)
    assert [(e.kind, e.version) for e in entries] == [
        *[("promotion", number) for number in (1, 2, 3)],
        ("rollback", 4),
    ]
    assert entries[-1].reasons == ("back to the model of v2", "it was slow")
    store.delete_experiment(store.get_experiment_by_name("e").experiment_id)
    assert history_of(store, NAME) == entries
