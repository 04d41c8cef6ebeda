"""A password in Prefect's Secret block reaches a run's environment, and nothing else that is written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from uuid import uuid4

import psutil
import pytest
import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import BIN, wait_for
from stack import Stack, prefect_server_in

from flows.stack import services

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
NAME, VARIABLE = "mlflow-password", "MLFLOW_TRACKING_PASSWORD"
FLOW = """
import hashlib, os, time
from pathlib import Path
from prefect import flow, get_run_logger

@flow
def tells(folder: str):
    value = os.environ["MLFLOW_TRACKING_PASSWORD"]
    get_run_logger().info("running with a password of %d characters", len(value))
    Path(folder, "digest").write_text(hashlib.sha256(value.encode()).hexdigest())
    while not Path(folder, "go").exists():
        time.sleep(0.1)
"""


def test_a_secret_block_is_a_variable_of_the_run_alone(tmp_path: Path) -> None:
    """By the pool's template, as in docs/servers.md; the deployment adds variables of its own."""
    secret = f"planted-{uuid4().hex}"
    (tmp_path / "tells.py").write_text(FLOW)
    pool = {"name": "secrets", "job_variables": {"env": {"OTHER": "1"}}}
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(tmp_path)}}]
    deployment = {"name": "one", "entrypoint": "tells.py:tells", "work_pool": pool,
                  "parameters": {"folder": str(tmp_path)}}  # fmt: skip
    plan = {"name": "secrets", "pull": pull, "deployments": [deployment]}
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump(plan))
    home = tmp_path / "server"
    home.mkdir()
    own = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_API")}
    with (
        prefect_server_in(home, own | {"PREFECT_HOME": str(home)}) as url,
        temporary_settings({PREFECT_API_URL: url}),
        get_client(sync_client=True) as client,
    ):
        Secret(value=secret).save(NAME)
        env = Stack(tmp_path / "own", env={"PREFECT_API_URL": url}).environment()
        words = [BIN / "prefect", "work-pool", "get-default-base-job-template", "--type", "process"]
        made = subprocess.run(
            words, cwd=tmp_path, env=env, check=True, capture_output=True, text=True
        )
        template = json.loads(made.stdout)
        value = {VARIABLE: f"{{{{ prefect.blocks.secret.{NAME} }}}}"}
        template["variables"]["properties"]["env"]["default"] = value
        (tmp_path / "pool.json").write_text(json.dumps(template))
        create = ["work-pool", "create", "secrets", "--type", "process"]
        for words in (
            [BIN / "prefect", *create, "--base-job-template", "pool.json"],
            [BIN / "prefect", "--no-prompt", "deploy", "--all"],
        ):
            subprocess.run(words, cwd=tmp_path, env=env, check=True, capture_output=True)
        found = client.read_deployment_by_name("tells/one")
        run = client.create_flow_run_from_deployment(found.id)
        with (tmp_path / "worker.log").open("w") as log:
            command = services.worker("secrets")
            worker = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=tmp_path)
        try:
            wait_for((tmp_path / "digest").exists, 240, "the run does not start")
            lines = [one.info["cmdline"] or [] for one in psutil.process_iter(["cmdline"])]
            (tmp_path / "go").touch()
            wait_for(
                lambda: client.read_flow_run(run.id).state_name == "Completed", 120, "it goes on"
            )
        finally:
            worker.terminate()
            worker.wait(60)
    assert (tmp_path / "digest").read_text() == hashlib.sha256(secret.encode()).hexdigest()
    assert not [line for line in lines if secret in " ".join(line)]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert (home / "prefect.db") in written
    assert [path for path in written if secret.encode() in path.read_bytes()] == []
    assert secret not in os.environ.values()
