"""Moves of the champion's alias: each is told once, by the process that sees it first."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.context import refresh_global_settings_context
from registry import NAME, DyingClient, Killed, alias, back, champions, claim, logged, promote

from flows import champion_moves
from tasks.contracts.errors import RegistryError
from tasks.register import claims, moves, version_tags
from tasks.register.moves import Move, untold


@pytest.fixture
def client(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """v1 and v2, of which nobody was told."""
    with champions(2, tmp_path_factory, home) as found:
        yield found


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "ALIAS_PAUSE_SECONDS", 0.01)


def tell(client: Any, *args: Any) -> list[tuple[int | None, int | None, str]]:
    """What is told now, as versions before and after, and why; it is noted."""
    found = untold(client, NAME, *args)
    for move in found:
        moves.note(client, move)
    return [short(move) for move in found]


def short(move: Move) -> tuple[int | None, int | None, str]:
    before, after = move.before, move.after
    return before and before.version, after and after.version, move.why


def test_promotions_and_rollbacks_are_told_once(client: Any) -> None:
    """In order, with digests and run; one that was not told before is told with the next."""
    first, second = untold(client, NAME)
    assert (short(first), short(second)) == ((None, 1, "promotion"), (1, 2, "promotion"))
    one, two = claims.versions(client, NAME)
    assert second.before
    assert second.after
    assert (second.before.digest, second.after.digest) == (one.digest, two.digest)
    assert second.run == two.run_id
    assert second.headline == f"{NAME} v2 is champion (promotion); it was v1"
    assert untold(client, NAME) == [first, second]  # another process, or a retry: the same events
    assert tell(client) == [(None, 1, "promotion"), (1, 2, "promotion")]
    assert tell(client) == []
    assert back(client).number == 3
    assert tell(client) == [(2, 3, "rollback")]
    assert tell(client) == []


def test_moves_by_hand_are_told_once_each(client: Any) -> None:
    """There, back, there again: three events; then a rollback from there, and the alias removed."""
    tell(client)
    ids = []
    for number, before in ((1, 2), (2, 1), (1, 2)):
        client.set_registered_model_alias(NAME, claims.ALIAS, str(number))
        (move,) = untold(client, NAME)
        ids.append(move.id)
        assert untold(client, NAME) == [move]
        assert tell(client) == [(before, number, "by hand")]
        assert tell(client) == []
    assert len(set(ids)) == 3
    assert back(client, to=1).number == 3
    assert tell(client) == [(1, 3, "rollback")]
    client.delete_registered_model_alias(NAME, claims.ALIAS)
    (move,) = untold(client, NAME)
    assert move.headline.startswith(f"{NAME} has no champion any more")
    assert tell(client) == [(3, None, "by hand")]
    assert tell(client) == []


def test_a_rollback_that_only_puts_the_alias_back(client: Any) -> None:
    """Nobody made a version: the flow says that it was a rollback."""
    tell(client)
    client.set_registered_model_alias(NAME, claims.ALIAS, "1")
    assert tell(client) == [(2, 1, "by hand")]
    back(client, to=2)
    assert (alias(client), len(claims.versions(client, NAME))) == (2, 2)
    assert tell(client, "rollback") == [(1, 2, "rollback")]


def test_a_version_that_precis_did_not_make(client: Any) -> None:
    """It has no digest that is known."""
    tell(client)
    run, source = logged(client)
    client.create_model_version(NAME, source, run_id=run)
    client.set_registered_model_alias(NAME, claims.ALIAS, "3")
    (move,) = untold(client, NAME)
    assert move.after == moves.Place(3, "")


@pytest.mark.parametrize("after", [False, True])
def test_a_promotion_is_told_when_it_is_finished(client: Any, after: bool) -> None:
    """Killed between alias and tag, it is no move by hand; the process that finishes it has it told."""
    tell(client)
    # Writes: the model, the version, the alias, the tag.
    dying = DyingClient(client, 3, after=after)
    run, source = logged(client)
    with pytest.raises(Killed):
        claim(dying, 2, run, source)
    assert untold(client, NAME) == []
    assert alias(client) == (3 if after else 2)
    claims.find_champion(client, NAME)
    assert tell(client) == [(2, 3, "promotion")]


def test_versions_of_before_are_not_told(client: Any) -> None:
    """They have no such tag: a new precis does not announce what happened long ago."""
    for number in ("1", "2"):
        client.delete_model_version_tag(NAME, number, version_tags.TOLD)
    assert tell(client) == []
    promote(client, 2)
    assert tell(client) == [(2, 3, "promotion")]


def test_an_edited_tag_is_named(client: Any) -> None:
    client.set_registered_model_tag(NAME, moves.BY_HAND, json.dumps({"at": "x"}))
    with pytest.raises(RegistryError, match="delete_registered_model_tag"):
        untold(client, NAME)


def test_where_prefect_is_away_it_is_logged_and_told_later(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What moved the alias does not fail; the move stays untold, for the next process that looks."""
    lines: list[str] = []
    champion_moves.notice(NAME, lines.append)  # no server is configured
    assert lines == []
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
        refresh_global_settings_context()
        champion_moves.notice(NAME, lines.append)
    refresh_global_settings_context()
    (line,) = lines
    assert f"the event {champion_moves.CHANGED} was not sent" in line
    assert "127.0.0.1:9" in line
    assert len(untold(client, NAME)) == 2
