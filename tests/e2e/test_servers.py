"""The same job on real servers: Prefect's and MLflow's over HTTP, and MLflow's model server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import once
import pytest
from clean_environment import installed, linked
from stack import Stack, free_port, judged_store, prefect_server_in, served

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.tracking import artifacts, checked_package

pytestmark = [pytest.mark.full, pytest.mark.timeout(1500)]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A folder whose runs use an MLflow server with proxied artifacts and a Prefect server.

    SMALL's challenger was trained and judged before, elsewhere. That all of it is done over HTTP too:
    test_browser.py and test_postgres.py.
    """
    folder = tmp_path_factory.mktemp("servers")
    judged = judged_store(tmp_path_factory)
    once.give_store_to_server(judged, folder / "server.db", folder / "artifacts")
    mlflow_port = free_port()
    mlflow_url = f"http://127.0.0.1:{mlflow_port}"
    own = Stack(folder / "client")
    store = ["--backend-store-uri", f"sqlite:///{folder}/server.db"]
    artifacts = ["--artifacts-destination", str(folder / "artifacts"), "--serve-artifacts"]
    mlflow_words = [str(BIN / "mlflow"), "server", *store, *artifacts, "--port", str(mlflow_port)]
    mlflow_words += ["--workers", "1"]  # each takes 7 s of CPU to start
    with (
        served(mlflow_words, f"{mlflow_url}/health", folder, own.environment()),
        prefect_server_in(folder, own.environment()) as prefect_url,
    ):
        own.env = {"MLFLOW_TRACKING_URI": mlflow_url, "PREFECT_API_URL": prefect_url}
        yield own


@pytest.fixture(scope="module")
def promoted(stack: Stack) -> dict[str, Any]:
    return stack.run()


def test_the_job_runs_on_servers_and_another_machine_knows_what_is_done(
    stack: Stack, promoted: dict[str, Any], tmp_path: Path
) -> None:
    """Promoted over HTTP; clients with an empty disk skip training and evaluation."""
    assert (promoted["verdict"], promoted["version"]) == ("PROMOTE", 1)
    assert {"train", "evaluate.challenger", "evaluate.base"} <= set(promoted["skipped"])
    assert "merge" not in promoted["skipped"]
    assert not (stack.folder / "mlruns/mlflow.db").exists()
    other = Stack(tmp_path / "other", env=stack.env)
    again = other.run()
    assert (again["verdict"], again["reasons"]) == ("REJECT", ["same model"])
    # merged models of losers are not stored: this machine merged again, to the same bytes
    assert again["model_digest"] == promoted["model_digest"]
    assert {"train", "evaluate.challenger", "evaluate.champion"} <= set(again["skipped"])


def test_the_runs_are_linked_both_ways(stack: Stack, promoted: dict[str, Any]) -> None:
    """MLflow's run names Prefect's page, Prefect's artifacts name MLflow's; the verdict is the state."""
    api = stack.env["PREFECT_API_URL"]
    flow_run = _json(f"{api}/flow_runs/{promoted['prefect_flow_run_id']}")
    assert flow_run["state"]["name"] == "PROMOTE"
    assert flow_run["state"]["message"].startswith("PROMOTED demo v1: rougeL +")
    artifacts_of_run = _json(
        f"{api}/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}}
    )
    by_key = {artifact["key"]: artifact for artifact in artifacts_of_run}
    assert {"mlflow-run", "report"} <= set(by_key)
    assert promoted["mlflow_run_id"] in by_key["mlflow-run"]["data"]
    url = f"{stack.env['MLFLOW_TRACKING_URI']}/api/2.0/mlflow/runs/get?run_id={promoted['mlflow_run_id']}"
    tags = {tag["key"]: tag["value"] for tag in _json(url)["run"]["data"]["tags"]}
    assert tags["precis.prefect_url"].endswith(f"/runs/flow-run/{flow_run['id']}")


def test_a_run_at_a_terminal_gives_signs_of_life(stack: Stack, promoted: dict[str, Any]) -> None:
    """Heartbeats of the run, which the zombie automation knows as ours by its tag."""
    resource = f"prefect.flow-run.{promoted['prefect_flow_run_id']}"
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [resource]}}
    heartbeats = _json(f"{stack.env['PREFECT_API_URL']}/events/filter", {"filter": wanted})[
        "events"
    ]
    assert heartbeats
    related = [
        (each["prefect.resource.role"], each["prefect.resource.id"])
        for each in heartbeats[0]["related"]
    ]
    assert ("tag", "prefect.tag.precis") in related


def test_a_kept_copy_serves_until_it_is_not_what_was_recorded(
    stack: Stack, promoted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fetched once; again when its digest is another's, or its run stores it again; not kept for ever."""
    import mlflow

    before = mlflow.get_tracking_uri()
    monkeypatch.setenv("PRECIS_WORK", str(tmp_path))
    mlflow.set_tracking_uri(stack.env["MLFLOW_TRACKING_URI"])
    try:
        uri = f"runs:/{promoted['mlflow_run_id']}/gate"
        copy = artifacts.fetch(uri)
        whole = digest.of_folder(copy)
        (copy / "decision.json").write_text("of an earlier try")
        assert artifacts.fetch(uri) == copy  # not fetched again
        reference = types.SimpleNamespace(uri=uri)

        def intact(found: Any) -> bool:
            return digest.of_folder(artifacts.fetch(found.uri)) == whole

        assert artifacts.intact(reference, intact)
        artifacts.forget(f"{uri}/decision.json")
        assert not list((tmp_path / "fetched").iterdir())
        old = artifacts.fetch(uri)
        os.utime(old, (0, 0))
        artifacts.forget_old()
        assert not old.exists()
    finally:
        mlflow.set_tracking_uri(before)


def test_a_torn_copy_of_a_model_is_fetched_once_more(
    promoted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its digest tells; where the store's own is another, the model is not what was judged."""
    import mlflow

    monkeypatch.setenv("PRECIS_WORK", str(tmp_path))
    uri = mlflow.MlflowClient().get_model_version("demo", "1").source
    folder = checked_package.package(uri, promoted["model_digest"])
    weights = next(folder.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert checked_package.package(uri, promoted["model_digest"]) == folder
    assert digest.of_folder(folder) == promoted["model_digest"]
    with pytest.raises(RegistryError, match="is not what was judged"):
        checked_package.package(uri, "0" * 64)


@pytest.mark.parametrize(
    "fill", [linked, pytest.param(installed, marks=pytest.mark.long)], ids=lambda how: how.__name__
)
def test_a_model_server_with_only_the_models_requirements_gives_the_stored_summaries(
    stack: Stack, promoted: dict[str, Any], tmp_path: Path, fill: Callable[[Path, Path], None]
) -> None:
    """`mlflow models serve` in an environment of the model's requirements.txt and nothing else."""
    import mlflow.artifacts

    env = stack.environment() | {"PATH": "/usr/bin:/bin"}
    tracking = stack.env["MLFLOW_TRACKING_URI"]
    requirements = mlflow.artifacts.download_artifacts(
        "models:/demo/1/requirements.txt", dst_path=str(tmp_path), tracking_uri=tracking
    )
    fill(tmp_path / "venv", Path(requirements))
    found = (
        "from importlib.util import find_spec as f; print(f('tasks'), f('peft'), bool(f('torch')))"
    )
    words = [tmp_path / "venv/bin/python", "-c", found]
    there = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert there.stdout.split() == ["None", "None", "True"]
    table = mlflow.artifacts.load_text(f"runs:/{promoted['mlflow_run_id']}/gate/challenger.json")
    rows = [
        dict(zip(json.loads(table)["columns"], row, strict=True))
        for row in json.loads(table)["data"]
    ]
    port = free_port()
    words = ["models", "serve", "-m", "models:/demo@champion", "--env-manager", "local"]
    serve = [str(tmp_path / "venv/bin/mlflow"), *words, "--port", str(port)]
    env["PATH"] = f"{tmp_path}/venv/bin:{env['PATH']}"
    with served(serve, f"http://127.0.0.1:{port}/health", tmp_path, env):
        asked = {"inputs": [row["document"] for row in rows[:5]]}
        answer = _json(f"http://127.0.0.1:{port}/invocations", asked)
    assert answer["predictions"] == [row["text"] for row in rows[:5]]


def _json(url: str, body: Any = None) -> Any:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


@pytest.fixture(autouse=True)
def _on_the_server(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stack.env["MLFLOW_TRACKING_URI"])
    mlflow.set_tracking_uri(stack.env["MLFLOW_TRACKING_URI"])
    yield
    mlflow.set_tracking_uri(None)
