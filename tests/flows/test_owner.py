"""`precis up`: one owner a folder, its own Prefect history, private files, and names that are known."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest

from flows import home_folder, registry
from flows.stack import owner, services
from tasks.contracts.errors import NoSuchChampion, PrecisError
from tasks.tracking import connection

ADDRESS = "http://127.0.0.1:4200"


def test_a_second_stack_is_told_who_owns_the_folder(tmp_path: Path) -> None:
    """In the folder, and on its Prefect home from another folder; afterwards it is free."""
    mine, home = tmp_path / "a/mlruns", tmp_path / "prefect"
    with owner.own(mine, home, ADDRESS):
        for folder, prefect in ((mine, tmp_path / "other"), (tmp_path / "b/mlruns", home)):
            with pytest.raises(PrecisError) as caught, owner.own(folder, prefect, "x"):
                pass
            message = str(caught.value)
            assert f"at {ADDRESS}, pid {os.getpid()} on " in message
            assert f"folder {mine}" in message
        with owner.own(tmp_path / "c/mlruns", None, "x"):  # on PostgreSQL: nothing is shared
            pass
    with owner.own(mine, home, ADDRESS):
        pass


def test_a_killed_stack_owns_nothing(tmp_path: Path) -> None:
    """kill -9: what it wrote names a process that is gone, and stops nobody."""
    hold = (
        "import sys; from pathlib import Path; from flows.stack import owner\n"
        "with owner.own(Path(sys.argv[1]), None, 'x'): print('owned', flush=True); sys.stdin.read()"
    )
    words = [sys.executable, "-c", hold, str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "owned\n"
    with (
        pytest.raises(PrecisError, match=f"pid {process.pid} "),
        owner.own(tmp_path, None, ADDRESS),
    ):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / owner.OWNER).exists()
    with owner.own(tmp_path, None, ADDRESS):
        pass


def test_stores_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    """Neither this folder with another history nor this history with another folder; told how to go on."""
    folders = [tmp_path / name / "mlruns" for name in "ab"]
    homes = [tmp_path / name / "prefect" for name in "ab"]
    for folder, home in zip(folders, homes, strict=True):
        with owner.own(folder, home, ADDRESS):
            pass
    for folder, home in ((folders[0], homes[1]), (folders[0], tmp_path / "new")):
        with (
            pytest.raises(PrecisError, match=rf"{folder} belongs .*set PREFECT_HOME={homes[0]}"),
            owner.own(folder, home, ADDRESS),
        ):
            pass
    third = tmp_path / "c/mlruns"
    told = rf"{homes[0]} belongs .*set PREFECT_HOME={third}/prefect .*delete {homes[0]}/"
    with pytest.raises(PrecisError, match=told), owner.own(third, homes[0], ADDRESS):
        pass
    (homes[0] / owner.PARTNER).unlink()
    (homes[1] / owner.PARTNER).write_text("{")  # cut off
    with owner.own(third, homes[0], ADDRESS), owner.own(folders[1], homes[1], ADDRESS):
        pass


@pytest.mark.parametrize("usual", [0o022, 0o002, 0o077, 0])
def test_files_are_not_for_all(tmp_path: Path, usual: int) -> None:
    """Whatever the umask was; what it took from the group stays taken."""
    before = os.umask(usual)
    try:
        home_folder.keep_private()
        (tmp_path / "data").write_text("a document")
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o666 & ~(usual | 0o007)
    finally:
        os.umask(before)


def test_the_s3_server_keeps_its_cache_in_the_stack(tmp_path: Path) -> None:
    """And writes it out at once: nothing that was acknowledged is only there."""
    command = services.s3_server(tmp_path / "s3", 9000)
    assert command[command.index("--cache-dir") + 1] == str(tmp_path / "s3-cache")
    assert command[command.index("--vfs-write-back") + 1] == "0s"


def test_the_history_of_an_unknown_name_names_the_nearest(home_with_store: Path) -> None:
    """A name that has only refused runs is known."""
    client = connection.connect()
    client.create_experiment("dialogs")
    try:
        assert registry.history("dialogs") == []
        with pytest.raises(
            NoSuchChampion, match="no model 'dialog'; nearest: 'dialogs'; it has: dia"
        ):
            registry.history("dialog")
    finally:
        mlflow.set_tracking_uri(None)
