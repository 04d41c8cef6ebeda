"""Succession and alias as `precis verify` reads them; the advice about a moved alias, followed literally."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from registry import NAME, alias, back, champions

from tasks.contracts.errors import ChampionMoved
from tasks.contracts.findings import Findings
from tasks.register import claims, verify, version_tags


@pytest.fixture
def store(
    tmp_path_factory: pytest.TempPathFactory, home: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    """Three champions in a row: v1, v2, v3."""
    monkeypatch.setattr(claims, "ALIAS_PAUSE_SECONDS", 0.0)  # nobody else is between two writes
    with champions(3, tmp_path_factory, home) as client:
        yield client


def found_in(client: Any) -> Findings:
    found = Findings()
    verify.check_succession(client, NAME, verify.readable_versions(client, NAME, found), found)
    return found


def foreign(client: Any) -> int:
    source = client.get_model_version(NAME, "1").source
    return int(client.create_model_version(NAME, source).version)


def move(client: Any, number: int) -> None:
    client.set_registered_model_alias(NAME, claims.ALIAS, str(number))


BY_HAND: dict[str, tuple[Callable[[Any], Any], list[int], int]] = {
    "to a former champion": (lambda client: move(client, 1), [1, 3], 1),
    "to a former champion, undone": (lambda client: move(client, 1), [1, 3], 3),
    "to a version of somebody else": (lambda client: move(client, foreign(client)), [3], 3),
    "removed": (lambda client: client.delete_registered_model_alias(NAME, claims.ALIAS), [3], 3),
}


@pytest.mark.parametrize(("change", "to", "target"), BY_HAND.values(), ids=BY_HAND)
def test_the_advice_after_a_moved_alias_works(
    change: Callable[[Any], Any], to: list[int], target: int, store: Any
) -> None:
    """Each command that is named is carried out; verify names the move before, and nothing after."""
    change(store)
    [difference] = found_in(store).differences
    with pytest.raises(ChampionMoved) as moved:
        claims.find_champion(store, NAME)
    assert str(moved.value) == difference
    advised = [int(n) for n in re.findall(rf"precis rollback {NAME} --to (\d+)", difference)]
    assert advised == to
    version = back(store, target)
    assert (alias(store), claims.find_champion(store, NAME)) == (version.number, version)
    assert version.digest == f"digest-{store.get_model_version(NAME, str(target)).run_id}"
    assert found_in(store).differences == []


def test_the_advice_where_precis_promoted_nothing_works(store: Any) -> None:
    """The alias was set on a version of somebody else, and is removed."""
    for number in (1, 2, 3):
        store.delete_model_version(NAME, str(number))
    run = store.create_run("0").info.run_id
    model = store.create_logged_model("0", source_run_id=run)
    number = store.create_model_version(NAME, f"models:/{model.model_id}").version
    move(store, int(number))
    with pytest.raises(ChampionMoved, match="remove the alias") as moved:
        claims.find_champion(store, NAME)
    command = re.search(r"mlflow\.MlflowClient\(\)\.(\w+)\('(\w+)', '(\w+)'\)", str(moved.value))
    assert command
    getattr(store, command[1])(command[2], command[3])
    assert claims.find_champion(store, NAME) is None


def tagged(number: int, tag: str, value: str) -> Callable[[Any], None]:
    return lambda client: client.set_model_version_tag(NAME, str(number), tag, value)


def untagged(number: int, *tags: str) -> Callable[[Any], None]:
    def delete(client: Any) -> None:
        for tag in tags:
            client.delete_model_version_tag(NAME, str(number), tag)

    return delete


EDITS: dict[str, tuple[Callable[[Any], None], str]] = {
    "an earlier predecessor": (tagged(3, claims.SUCCEEDS, "1"), "holds 1, and version 2 was champion"),
    "no predecessor": (tagged(2, claims.SUCCEEDS, "0"), "version 2: its tag .* holds 0, and version 1"),
    "itself": (tagged(2, claims.SUCCEEDS, "2"), "holds '2' instead of the number"),
    "predecessor's digest": (tagged(3, version_tags.SUCCEEDS_DIGEST, "x"), "name another model"),
    "predecessor's run": (tagged(3, version_tags.SUCCEEDS_RUN, "x"), "name another model"),
    "finished gone": (untagged(2, claims.FINISHED), "version 2: its promotion is not finished"),
    "both gone": (untagged(2, claims.FINISHED, claims.SUCCEEDS), "are gone, so precis does not know"),
    "a digest gone": (untagged(2, claims.DIGEST), "precis.model_digest is missing"),
    "rolled back to another": (tagged(3, claims.ROLLBACK_TO, "1"), "whose model is another one"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "says"), EDITS.values(), ids=EDITS)
def test_an_edited_succession_is_named(edit: Callable[[Any], None], says: str, store: Any) -> None:
    """By the version, the tag, and what to do; nothing is written."""
    edit(store)
    before = [dict(version.tags) for version in claims.entries(store, NAME)]
    assert re.search(says, "\n".join(found_in(store).differences))
    assert [dict(version.tags) for version in claims.entries(store, NAME)] == before


def test_a_succession_with_rollbacks_and_deleted_versions_is_sound(store: Any) -> None:
    """What was deleted from the registry is a remark."""
    back(store)
    back(store, 1)
    assert found_in(store) == Findings(
        checked=["alias 'champion' on version 5, the last promotion"]
    )
    store.delete_model_version(NAME, "2")
    found = found_in(store)
    assert found.differences == []
    assert any("succeeded version 2, which was deleted" in remark for remark in found.remarks)
