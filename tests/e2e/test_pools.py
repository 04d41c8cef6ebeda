"""The base job templates in deployments/pools, on a real Prefect server."""

from __future__ import annotations

import asyncio
import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.workers.base import BaseJobConfiguration
from pydantic import ConfigDict, SecretStr
from stack import PRECIS, ROOT, Stack

pytestmark = pytest.mark.full
ENV = {"PRECIS_GPU_LIMIT": "precis-gpu"}


class Rendered(BaseJobConfiguration):
    """Prefect's own rendering; the workers' classes, in packages of their own, only add checks."""

    model_config = ConfigDict(extra="allow")


@pytest.fixture(scope="module", params=["docker", "kubernetes"])
def pool(
    request: pytest.FixtureRequest, prefect_server: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """A pool made as docs/servers.md says, read back from the server."""
    kind = request.param
    own = Stack(tmp_path_factory.mktemp(kind), env={"PREFECT_API_URL": prefect_server})
    words = ["work-pool", "create", f"precis-{kind}", "--type", kind, "--base-job-template"]
    subprocess.run(
        [str(PRECIS.with_name("prefect")), *words, str(file_of(kind))],
        env=own.environment(),
        check=True,
        capture_output=True,
    )
    return asked(f"{prefect_server}/work_pools/precis-{kind}")


def test_a_pool_keeps_what_its_file_says(pool: dict[str, Any]) -> None:
    """The server takes the template whole: jobs, variables, defaults."""
    assert pool["base_job_template"] == json.loads(file_of(pool["type"]).read_text())


def test_a_deployment_asks_for_gpus_and_nonsense_is_refused(
    pool: dict[str, Any], prefect_server: str
) -> None:
    """`gpus: 2` is a job variable; `gpus: two` is refused when it is deployed."""
    flow = asked(f"{prefect_server}/flows/", {"name": "pools"})["id"]
    deployment = {"name": pool["name"], "flow_id": flow, "work_pool_name": pool["name"]}
    good = asked(f"{prefect_server}/deployments/", deployment | {"job_variables": {"gpus": 2}})
    assert good["job_variables"] == {"gpus": 2}
    with pytest.raises(urllib.error.HTTPError, match="422"):
        asked(f"{prefect_server}/deployments/", deployment | {"job_variables": {"gpus": "two"}})


def test_a_job_gets_its_gpus_and_its_environment(pool: dict[str, Any], prefect_server: str) -> None:
    """Two GPUs and the team's image; a deployment's environment adds to the pool's."""
    job = rendered(pool, {"gpus": 2, "image": "team/precis:7", "env": ENV}, prefect_server)
    environment = pool["base_job_template"]["variables"]["properties"]["env"]["default"]
    assert job["env"] == environment | ENV
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"
    if pool["type"] == "docker":
        requested = [{"count": 2, "capabilities": [["gpu"]]}]
        assert job["container_create_kwargs"]["device_requests"] == requested
        assert job["image"] == "team/precis:7"
        return
    pod = job["job_manifest"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 2}
    assert container["image"] == "team/precis:7"
    assert {mount["name"] for mount in container["volumeMounts"]} == {
        volume["name"] for volume in pod["volumes"]
    }
    assert container["envFrom"] == [{"secretRef": {"name": "precis"}}]


def test_scratch_may_be_a_claim(pool: dict[str, Any], prefect_server: str) -> None:
    """Scratch that outlives the job: a host folder for Docker, a claim for Kubernetes."""
    if pool["type"] == "docker":
        job = rendered(pool, {"volumes": ["/scratch:/work"]}, prefect_server)
        assert job["volumes"] == ["/scratch:/work"]
        return
    claim = {"name": "work", "persistentVolumeClaim": {"claimName": "precis-work"}}
    job = rendered(pool, {"work_volume": claim}, prefect_server)
    assert claim in job["job_manifest"]["spec"]["template"]["spec"]["volumes"]


def test_a_password_comes_from_a_secret_block(pool: dict[str, Any], prefect_server: str) -> None:
    """A deployment names the block; only the job holds its value."""
    name = f"mlflow-{pool['type']}"
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        Secret(value=SecretStr("a-password")).save(name, overwrite=True)
    env = {"MLFLOW_TRACKING_PASSWORD": f"{{{{ prefect.blocks.secret.{name} }}}}"}
    job = rendered(pool, {"env": env}, prefect_server)
    assert job["env"]["MLFLOW_TRACKING_PASSWORD"] == "a-password"


def rendered(pool: dict[str, Any], values: dict[str, Any], url: str) -> dict[str, Any]:
    async def render() -> Rendered:
        async with get_client() as client:
            template = pool["base_job_template"]
            return await Rendered.from_template_and_values(template, values, client=client)

    with temporary_settings({PREFECT_API_URL: url}):
        return asyncio.run(render()).model_dump()


def file_of(kind: str) -> Path:
    return ROOT / "deployments" / "pools" / f"{kind}.json"


def asked(url: str, body: Any = None) -> dict[str, Any]:
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        contents: dict[str, Any] = json.loads(answer.read())
        return contents
