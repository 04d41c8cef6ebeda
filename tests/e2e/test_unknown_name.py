"""A name that nobody knows: every command that takes one ends with 1 and names the nearest."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import pytest
from warm import WarmPrecis

from flows.cli.app import app
from tasks.register import claims
from tasks.tracking import connection

pytestmark = pytest.mark.full
KNOWN, TYPED = "dialogs", "dialgs"
# What follows the name, of the commands that take one; the others take a recipe or nothing.
COMMANDS = {
    "champion": [],
    "history": [],
    "ask": ["What is it?"],
    "pull": ["copy"],
    "verify": [],
    "lineage": [],
    "who-learned": ["row-1"],
    "page": [],
    "notify-data": [],
    "prune": ["--keep", "1"],
    "rollback": [],
    "serve": [],
}
OTHERS = {"run", "evaluate", "check", "up"}


def test_every_command_names_the_nearest(
    home_with_store: Path, prefect_server: str, warm_precis: WarmPrecis
) -> None:
    """Without a traceback, and nothing is made: no experiment, no page, no folder."""
    verbs = {
        str(one.callback.__name__).replace("_", "-")
        for one in app.registered_commands
        if one.callback
    }
    assert verbs == COMMANDS.keys() | OTHERS
    client = connection.connect()
    run = client.create_run(client.create_experiment(KNOWN))
    model = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
    tags = {claims.DIGEST: "d", claims.RUN_ID: run.info.run_id}
    claims.succeed(
        client, KNOWN, None, source=f"models:/{model.model_id}", tags=tags, description=""
    )
    mlflow.set_tracking_uri(None)
    before = made(home_with_store)
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    for verb, words in COMMANDS.items():
        name = ["--model", TYPED] if verb == "who-learned" else [TYPED]
        done = warm_precis(
            [verb, *name, *words], home_with_store, env | {"PREFECT_API_URL": prefect_server}
        )
        assert done.returncode == 1, (verb, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr, (verb, done.stderr)
        if verb != "notify-data":  # nothing is deployed on this server
            assert f"nearest: '{KNOWN}'" in done.stderr, (verb, done.stderr)
        assert TYPED in done.stderr, (verb, done.stderr)
    assert made(home_with_store) == before
    assert client.get_experiment_by_name(TYPED) is None


def made(home: Path) -> set[str]:
    """What stands in a folder, but for the Prefect client's own."""
    return {path.name for path in home.iterdir()} - {"prefect"}
