"""`precis up` on databases that another version of Prefect or MLflow made."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from flows.stack import database_versions
from tasks.contracts.errors import PrecisError

PRECIS = Path(sys.executable).parent / "precis"
AN_OLD_ONE_OF_MLFLOW = "451aebb31d03"  # its first


def stamp(database: Path, revision: str) -> str:
    """Have a database say that it is of a revision; its URI."""
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS alembic_version (version_num VARCHAR(32))")
        connection.execute("DELETE FROM alembic_version")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    return f"sqlite:///{database}"


def test_up_names_both_versions_and_both_ways_out(home_with_store: Path, tmp_path: Path) -> None:
    """Before a server starts, for both databases at once, without a traceback."""
    prefect = tmp_path / "prefect"
    prefect.mkdir()
    stamp(prefect / "prefect.db", "0123456789ab")
    stamp(home_with_store / "mlruns/mlflow.db", "ba9876543210")
    stack = home_with_store / "mlruns/stack"
    stack.mkdir()
    (stack / database_versions.RECORD).write_text(json.dumps({"prefect": "3.99.0"}))
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    done = subprocess.run(
        [PRECIS, "up", "--port", "4917", "--mlflow-port", "4918"], cwd=home_with_store,
        env=env | {"PREFECT_HOME": str(prefect)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "Traceback" not in done.stderr
    for message in (
        f"prefect.db was made by Prefect 3.99.0 (revision 0123456789ab), and Prefect {version('prefect')}",
        "pip install 'prefect==3.99.0'",
        f"another, most likely newer, MLflow (revision ba9876543210), and MLflow {version('mlflow')}",
        "put the database aside",
    ):
        assert message in done.stderr
    assert not (stack / "logs").exists()  # nothing was started


def test_an_older_mlflow_database_is_upgraded_by_hand(tmp_path: Path) -> None:
    """MLflow's server would refuse it; the command is named, and a password is not."""
    uri = stamp(tmp_path / "mlflow.db", AN_OLD_ONE_OF_MLFLOW)
    with pytest.raises(PrecisError, match=rf"an earlier MLflow .*mlflow db upgrade '{uri}'"):
        database_versions.require_known({"mlflow": uri}, tmp_path)


def test_a_database_of_this_version_and_a_new_one_are_taken(home_with_store: Path) -> None:
    """Nothing is told of what MLflow itself just made, and what was recorded is read again."""
    made = f"sqlite:///{home_with_store}/mlruns/mlflow.db"
    new = f"sqlite:///{home_with_store}/none.db"
    database_versions.record(home_with_store)
    database_versions.require_known({"mlflow": made, "prefect": new}, home_with_store)
    recorded = json.loads((home_with_store / database_versions.RECORD).read_text())
    assert recorded == {"prefect": version("prefect"), "mlflow": version("mlflow")}
    assert not (home_with_store / "none.db").exists()
