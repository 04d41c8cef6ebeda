"""`precis serve` says what it cannot serve, before it serves anything."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import served_models
from served_models import NAME

from flows.cli.entry import main
from flows.serve.plan import ServePlan
from tasks.processes import workspace
from tasks.register import claims


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served_models.store(tmp_path_factory, tmp_path_factory.mktemp("serve")) as client:
        yield client


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuch", "--port", "0"], "no model 'nosuch' is registered"),
        ([f"{NAME}/9", "--port", "0"], "has no version 9"),
        ([f"{NAME}@other", "--port", "0"], "has no alias 'other'"),
        ([NAME, "--port", "0", "--vllm", "./no-such"], "./no-such is no command on this machine"),
        ([NAME, "--port", "0", "--api-key-file", "none"], "name a file that holds the key"),
        (["models:/m-1", "--port", "0"], "write NAME, NAME@ALIAS or NAME/VERSION"),
    ],
)
def test_what_cannot_be_served_is_told(
    store: Any, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert main(["serve", *words]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert message in capsys.readouterr().err
    assert not (workspace.work_folder() / "serve").exists()  # nothing is kept for a port 0


def test_who_follows_the_champion() -> None:
    """A name alone, or with the champion's alias; another alias or a version is not told as its move."""
    follow = (NAME, f"{NAME}@{claims.ALIAS}", f"models:/{NAME}@{claims.ALIAS}")
    assert [ServePlan(reference).follows_champion for reference in follow] == [True] * 3
    assert not ServePlan(f"{NAME}@other").follows_champion
    assert not ServePlan(f"{NAME}/1").follows_champion


def test_handlers_of_others_stay_open(store: Any) -> None:
    """A log handler that was set up before is not closed: absl's would close the stream that it writes to."""
    closed = list[str]()

    class Other(logging.Handler):
        def close(self) -> None:
            closed.append("closed")
            super().close()

    other, before = Other(), signal.getsignal(signal.SIGTERM)
    assert main(["serve", "nosuch", "--port", "0"]) == 1
    signal.signal(signal.SIGTERM, before)
    assert closed == []
    other.close()


def test_a_taken_port_is_told(store: Any, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", NAME, "--port", port]) == 1
    signal.signal(signal.SIGTERM, before)
    assert "cannot be listened on" in capsys.readouterr().err
