"""An evaluation on a Dask cluster is the evaluation of one process; real workers, a real Prefect API."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny
from prefect import flow, tags
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.context import FlowRunContext

from flows.stack import embedded
from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef, ModelRef, Scores
from tasks.evaluate.task import evaluate, preflight
from tasks.models import package
from tasks.models.prepared_base import PreparedBase
from tasks.orchestration import cluster_worker, task_runners
from tasks.serving.summarizer import SummarizerSettings
from tasks.tracking import artifacts, mlflow_run

SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 8, 2)
LIMIT_SECONDS = 60


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a base and rows in it, and a Prefect server for the flows that run there."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PRECIS_WORK"):
            patch.delenv(name, raising=False)
        tiny.make_tiny_base(folder / "base")
        tiny.write_rows(folder / "rows/evaluation.jsonl", tiny.make_rows(7))
        with embedded.server() as ready:
            ready()
            yield folder


@pytest.fixture
def base(home: Path) -> PreparedBase:
    return tiny.prepared(home / "base")


def recipe_for(home: Path, name: str, devices: int, where: str | None) -> Recipe:
    parts = {"devices": devices, "cluster": where}
    changed = tiny.make_recipe(home / "base", evaluation=parts, gate={"metric": "loss"})
    return changed.model_copy(update={"name": name})


@flow(validate_parameters=False)
def judged(
    home: Path, model: ModelRef, base: PreparedBase, recipe: Recipe
) -> tuple[Scores, list[str], str]:
    """Scores, steps not done again, the flow run's id."""
    context = FlowRunContext.get()
    assert context
    assert context.flow_run
    with mlflow_run.run_for(recipe.name, str(uuid.uuid4()), {}) as run:
        uri = run.log_folder(home / "rows", "dataset")
        rows = digest.of_file(home / "rows/evaluation.jsonl")
        dataset = DatasetRef(uri, "d", "t", rows, 1, 7, 0)
        scores = evaluate(model, dataset, base, recipe, "challenger")
        return scores, run.skipped, str(context.flow_run.id)


def shares(flow_run: str) -> list[Any]:
    """The task runs of a flow run's shares, in order."""
    wanted = TaskRunFilter(name=TaskRunFilterName(like_="share"))
    end = time.monotonic() + LIMIT_SECONDS
    while True:  # what a worker says of its runs comes a moment later than its answer
        with get_client(sync_client=True) as client:
            found = client.read_task_runs(task_run_filter=wanted)
        mine = [run for run in found if str(run.flow_run_id) == flow_run]
        if len(mine) == 2 and all(run.state_name == "Completed" for run in mine):
            return sorted(mine, key=lambda run: run.name)
        assert time.monotonic() < end, [(run.name, run.state_name) for run in mine]
        time.sleep(0.5)


@pytest.mark.full
def test_two_workers_write_the_table_of_one_process(home: Path, base: PreparedBase) -> None:
    """Byte for byte, from a cluster that starts and ends with it; its shares are the flow run's tasks."""
    model = package.package_base(base, SETTINGS, home / "package")
    with tags("by-cluster"):
        many, _, flow_run = judged(home, model, base, recipe_for(home, "many", 2, "dask"))
    one, _, _ = judged(home, model, base, recipe_for(home, "one", 1, None))
    same = {"uri": "", "seconds": 0.0}
    assert replace(many, **same) == replace(one, **same)
    assert artifacts.fetch(many.uri).read_bytes() == artifacts.fetch(one.uri).read_bytes()
    first, second = shares(flow_run)
    assert first.name == "evaluate challenger, share 1 of 2"
    assert second.name == "evaluate challenger, share 2 of 2"
    assert all("by-cluster" in run.tags for run in (first, second))
    again, skipped, _ = judged(home, model, base, recipe_for(home, "one", 2, "dask"))
    assert (again, skipped) == (one, ["evaluate.challenger"])


@pytest.mark.full
def test_a_failing_share_ends_the_others(home: Path, base: PreparedBase, tmp_path: Path) -> None:
    """On a cluster that is there and stays: the error of the share, soon, no table, no process left."""
    distributed = pytest.importorskip("distributed")
    folder = Path(package.package_base(base, SETTINGS, tmp_path / "package").path)
    before = "        prompts = [encode("
    told = "        __import__('time').sleep(500) if batch == 0 else 1 / 0\n"
    tiny.edit_package(folder, before, told + before)
    model = ModelRef(str(folder), digest.of_folder(folder), base.digest)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    before_it = tables(home)
    with distributed.LocalCluster(**options) as there:
        where = f"dask:{there.scheduler_address}"
        with pytest.raises(EvaluationError, match=r"batch 2 of 4 failed \(ZeroDivisionError"):
            judged(home, model, base, recipe_for(home, "failing", 2, where))
        assert tables(home) == before_it
        end = time.monotonic() + LIMIT_SECONDS
        while left := writers():
            assert time.monotonic() < end, left
            time.sleep(0.5)
        assert len(there.scheduler_info["workers"]) == 2


def tables(home: Path) -> set[Path]:
    return set((home / "mlruns").rglob("challenger.json"))


def writers() -> list[psutil.Process]:
    """The processes below this one that write summaries."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "tasks.processes.step_process" in process.cmdline():
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.full
def test_a_cluster_that_is_not_there_is_named(home: Path, base: PreparedBase) -> None:
    """Nothing waits for it."""
    dask = pytest.importorskip("dask")
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(
            EvaluationError, match=r"evaluation.cluster is dask:tcp://127.0.0.1:9, and it"
        ),
    ):
        task_runners.run("dask:tcp://127.0.0.1:9", evaluate, [{}], "evaluation.cluster")


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By precis check, and by the evaluation itself."""
    monkeypatch.setitem(task_runners.LIBRARIES, "dask", "prefect_dusk")
    recipe = tiny.make_recipe(Path("base"), evaluation={"cluster": "dask"})
    [problem] = preflight(recipe)
    assert "pip install -c constraints.txt prefect-dusk" in problem
    with pytest.raises(EvaluationError, match=re.escape(problem)):
        task_runners.run("dask", evaluate, [{}], "evaluation.cluster")
    assert preflight(tiny.make_recipe(Path("base"))) == []


def test_a_worker_that_would_write_other_summaries_is_refused() -> None:
    """Other versions, or another kind of processor, than the flow's machine."""
    flows = replace(cluster_worker.origin(), made_with=("cuda", "2.0", "5.0"), host="gpu-1")
    with pytest.raises(EvaluationError, match=r"the flow's machine gpu-1 with on cuda, torch 2\.0"):
        flows.join()


def test_a_worker_without_the_flows_store_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SQLite store of another machine: an empty one is not made in its place."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    flows = replace(cluster_worker.origin(), store=f"sqlite:///{tmp_path}/mlruns/mlflow.db")
    with pytest.raises(EvaluationError, match="set MLFLOW_TRACKING_URI there to a server"):
        flows.join()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_a_worker_does_not_see_wants_a_shared_one(tmp_path: Path) -> None:
    """A challenger is a folder of the flow's machine."""
    with pytest.raises(EvaluationError, match="set PRECIS_WORK to a folder of a shared file"):
        cluster_worker.package(str(tmp_path / "model"), "d")


def test_each_worker_of_this_machine_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its variables, so that a share's process finds it as its first."""
    monkeypatch.setattr(task_runners.device, "count", lambda: 3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-a, 6")
    assert [env["CUDA_VISIBLE_DEVICES"] for env in task_runners.gpu_each(2)] == ["4", "GPU-a"]
    assert "each with a GPU, and this machine has 3" in task_runners.problems("s", "dask", 4)[0]
    assert task_runners.problems("s", "dask:tcp://host:8786", 4) == []
