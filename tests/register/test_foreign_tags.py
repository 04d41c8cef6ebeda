"""Registries that others have edited: tags that hold something else, models deleted and made again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from registry import NAME, alias, champions, claim, logged, promote

from tasks.contracts.errors import RegistryError
from tasks.register import claims, version_tags
from tasks.register.task import history_of

GARBAGE = ["", "x", "-1", "1.0", "²", "1 ", "None", "9" * 40]


@pytest.fixture
def store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Two champions: v1, v2."""
    with champions(2, tmp_path_factory, home) as client:
        yield client


def test_a_claim_on_a_number_of_another_model_is_sent_back(store: Any) -> None:
    """Judged against v1; the registered model was deleted and made again; its v1 is not beaten."""
    store.delete_model_version(NAME, "2")
    store.set_registered_model_alias(NAME, claims.ALIAS, "1")
    (judged,) = claims.versions(store, NAME)
    run, source = logged(store)
    tags = {claims.DIGEST: "challenger", claims.RUN_ID: run}
    store.delete_registered_model(NAME)
    other = promote(store, claims.NOBODY)
    assert other is not None
    assert other.number == judged.number
    for _ in range(2):  # a retry gives the same answer
        won = claims.succeed(store, NAME, judged, source=source, tags=tags, description="d")
        assert won is None
    assert alias(store) == 1
    assert claims.find_champion(store, NAME) == other
    store.delete_registered_model(NAME)
    assert claims.succeed(store, NAME, judged, source=source, tags=tags, description="d") is None


def test_an_open_claim_on_another_model_is_withdrawn_not_finished(store: Any) -> None:
    """Its process was killed after the claim, or slept while the model was deleted and made again."""
    _, judged = claims.versions(store, NAME)
    run, source = logged(store)
    store.delete_registered_model(NAME)
    promote(store, claims.NOBODY)
    promote(store, 1)
    tags = {claims.DIGEST: "x", claims.RUN_ID: run} | version_tags.claim_tags(judged)
    stale = store.create_model_version(NAME, source, tags=tags)
    assert claims.SUCCEEDS in stale.tags
    now = claims.find_champion(store, NAME)
    assert now is not None
    assert (now.number, alias(store)) == (2, 2)
    assert [v.number for v in claims.versions(store, NAME)] == [1, 2]


@pytest.mark.parametrize("same", [{}, {"digest": "d"}, {"run": "r"}])
def test_a_claim_of_the_version_before_has_a_number_alone(store: Any, same: dict[str, str]) -> None:
    """It is finished as it was; any of digest and run that it does name must fit."""
    last = claims.versions(store, NAME)[-1]
    tags = {claims.DIGEST: "x", claims.RUN_ID: logged(store)[0], claims.SUCCEEDS: "2"}
    tags |= {version_tags.SUCCEEDS_DIGEST: last.digest} if "digest" in same else {}
    tags |= {version_tags.SUCCEEDS_RUN: last.run_id} if "run" in same else {}
    store.create_model_version(NAME, logged(store)[1], tags=tags)
    now = claims.find_champion(store, NAME)
    assert now is not None
    assert now.number == alias(store) == 3


@pytest.mark.parametrize("tag", [claims.SUCCEEDS, claims.ROLLBACK_TO, claims.DIGEST, claims.RUN_ID])
def test_garbage_in_a_tag_is_named_with_its_version_and_the_fix(store: Any, tag: str) -> None:
    """Reading and claiming both refuse; nothing is changed; once it is set right all goes on."""
    was = store.get_model_version(NAME, "2").tags.get(tag)
    for text in GARBAGE if tag in (claims.SUCCEEDS, claims.ROLLBACK_TO) else [""]:
        store.set_model_version_tag(NAME, "2", tag, text)
        for use in (claims.find_champion, claims.versions, claims.settle, history_of):
            with pytest.raises(RegistryError) as caught:
                use(store, NAME)
            message = str(caught.value)
            assert f"model 'summ', version 2: its tag {tag} holds" in message
            assert f"set_model_version_tag('summ', '2', '{tag}'" in message
    assert (alias(store), len(store.search_model_versions(f"name = '{NAME}'"))) == (2, 2)
    if was is None:
        store.delete_model_version_tag(NAME, "2", tag)
    else:
        store.set_model_version_tag(NAME, "2", tag, was)
    assert promote(store, 2) is not None


@pytest.mark.parametrize("tag", [claims.SUCCEEDS, claims.DIGEST, claims.RUN_ID])
def test_a_tag_that_was_deleted_is_missed(store: Any, tag: str) -> None:
    """The champion is not quietly the version before."""
    store.delete_model_version_tag(NAME, "2", tag)
    with pytest.raises(RegistryError, match=rf"version 2: its tag {tag} is missing"):
        claims.find_champion(store, NAME)


def test_all_tags_that_are_wrong_are_named_at_once(store: Any) -> None:
    """Of every version."""
    store.set_model_version_tag(NAME, "1", claims.SUCCEEDS, "one")
    store.set_model_version_tag(NAME, "2", claims.SUCCEEDS, "2")  # itself
    store.set_model_version_tag(NAME, "2", claims.ROLLBACK_TO, "7")
    with pytest.raises(RegistryError) as caught:
        claims.find_champion(store, NAME)
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "party"}', "x" * 4000])
def test_garbage_in_a_history_entry_is_named_with_its_run_or_version(store: Any, text: str) -> None:
    """And how to be rid of it; then the rest is shown, the standing champions among it."""
    experiment = store.create_experiment(NAME)
    run = store.create_run(experiment).info.run_id
    store.set_tag(run, claims.RECORD, text or " ")
    store.set_model_version_tag(NAME, "2", claims.RECORD, text or " ")
    with pytest.raises(RegistryError) as caught:
        history_of(store, NAME)
    message = str(caught.value)
    assert f"run {run} of experiment 'summ': its tag precis.history holds" in message
    assert "model 'summ', version 2: its tag precis.history holds" in message
    assert "delete_tag" in message
    assert "delete_model_version_tag" in message
    store.delete_tag(run, claims.RECORD)
    store.delete_model_version_tag(NAME, "2", claims.RECORD)
    assert [entry.version for entry in history_of(store, NAME)] == [1, 2]
    assert claim(store, 2, *logged(store)) is not None
