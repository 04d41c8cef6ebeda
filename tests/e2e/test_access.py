"""Servers behind basic authentication: with the passwords everything works, without, the error says so."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from servers import Servers
from stack import PRECIS, Stack

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
PREFECT = {
    "PREFECT_SERVER_API_AUTH_STRING": "admin:of-prefect",
    "PREFECT_API_AUTH_STRING": "admin:of-prefect",
}
MLFLOW = {"MLFLOW_TRACKING_USERNAME": "team", "MLFLOW_TRACKING_PASSWORD": "password-of-mlflow"}
CONFIG = """[mlflow]
default_permission = READ
database_uri = sqlite:///{folder}/auth.db
admin_username = team
admin_password = password-of-mlflow
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    folder = tmp_path_factory.mktemp("access")
    (folder / "auth.ini").write_text(CONFIG.format(folder=folder))
    extra = {
        "TEST_MLFLOW_OPTIONS": "--app-name basic-auth",
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "of this test",
    }
    running = Servers(folder, extra=extra | PREFECT | MLFLOW)
    try:
        running.start("prefect", "mlflow")
        yield running
    finally:
        running.close()


@pytest.mark.long
def test_a_deployed_run_registers_behind_passwords(servers: Servers) -> None:
    """Worker, flow, trainer and artifacts all get through."""
    servers.start("worker")
    servers.deploy()
    run_id = servers.run("retrain")
    state = servers.wait(run_id)
    assert state["name"] == "PROMOTE", state["message"]
    assert servers.mlflow_runs()[run_id]["info"]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("missing", "named"),
    [("PREFECT_API_AUTH_STRING", "PREFECT_API_AUTH_STRING"),
     ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_USERNAME")],
)  # fmt: skip
def test_without_a_password_it_says_which_is_missing(
    servers: Servers, missing: str, named: str
) -> None:
    """No traceback: the server, that it refused, and the setting to correct."""
    stack = Stack(servers.folder / missing)
    stack.env = {k: v for k, v in servers.client.env.items() if k != missing}
    done = subprocess.run(
        [PRECIS, "run", "deployments/recipes/demo.yaml"],
        cwd=stack.folder,
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-3:]
    assert named in " ".join(last), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
