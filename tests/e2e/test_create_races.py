"""Everything that precis creates where it is not there yet, raced: all go on, and there is one.

| what | where | in |
|---|---|---|
| slot of a model | Prefect, unique name | tasks/orchestration/concurrency.py `_create` |
| limit of GPU steps | Prefect, unique name | deployments/automations.py `_gpu_limit` |
| automations | Prefect, names are not unique: one is kept | deployments/automations.py `_put` |
| deployments, flows, work pool | Prefect's own commands: upserts | `prefect deploy`, `prefect worker start` |
| tables of a new store | MLflow, under its own file lock | tasks/tracking/connection.py |
| experiment | MLflow, unique name | tasks/tracking/mlflow_run.py `_experiment` |
| registered model, version | MLflow, unique name, atomic number | tasks/register/claims.py `succeed` |
| databases, S3 keys, bucket | PostgreSQL, S3: one owner a folder (test_owner.py) | flows/stack/owner.py |
| checkpoints | S3: the last put counts, a lock keeps writers apart | tasks/train/checkpoints |
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pytest
from prefect.client.orchestration import get_client
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.settings import PREFECT_API_URL, temporary_settings

from deployments import automations
from tasks.orchestration import concurrency
from tasks.register import claims
from tasks.tracking import connection, mlflow_run

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]
RACERS = 6


def race(act: Callable[[int], Any]) -> list[Any]:
    """What each of several threads that start together gets; none may fail."""
    together, results, failures = threading.Barrier(RACERS), [], []

    def run(number: int) -> None:
        together.wait()
        try:
            results.append(act(number))
        except Exception as error:  # noqa: BLE001 - all are shown below
            failures.append(repr(error))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    return results


@pytest.mark.parametrize("what", ["slot", "gpu", "automation"])
def test_on_prefect(prefect_server: str, what: str) -> None:
    """Three times, each with a new name where there can be one."""
    trigger = EventTrigger(
        posture=Posture.Reactive, expect={"raced"}, threshold=1, within=timedelta(0)
    )
    for number in range(3):
        name = f"race-{what}-{number}"
        automation = AutomationCore(name=name, trigger=trigger, actions=[DoNothing()])

        def act(_: int, name: str = name, automation: AutomationCore = automation) -> None:
            with (
                temporary_settings({PREFECT_API_URL: prefect_server}),
                get_client(sync_client=True) as client,
            ):
                if what == "slot":
                    concurrency._create(name)
                elif what == "gpu":
                    automations._gpu_limit(client)
                else:
                    automations._put(client, automation)

        race(act)
        with (
            temporary_settings({PREFECT_API_URL: prefect_server}),
            get_client(sync_client=True) as client,
        ):
            if what == "automation":
                assert len(client.read_automations_by_name(name)) == 1
            else:
                limit = name if what == "slot" else automations.GPU_LIMIT
                assert client.read_global_concurrency_limit_by_name(limit).limit == 1


@pytest.fixture
def _forget() -> Iterator[None]:
    yield
    mlflow.set_tracking_uri(None)


@pytest.mark.usefixtures("_forget")
def test_on_a_new_mlflow_store(home: Path) -> None:
    """The first runs of a model, started together in an empty folder: one experiment, one champion."""

    def act(number: int) -> tuple[str, int | None]:
        client = connection.connect()
        with mlflow_run.run_for("m", f"flow run {number}", {}) as run:
            model = client.create_logged_model(run.experiment_id, source_run_id=run.id)
            tags = {claims.DIGEST: f"d{number}", claims.RUN_ID: run.id}
            uri = f"models:/{model.model_id}"
            won = claims.succeed(client, "m", None, source=uri, tags=tags, description="d")
            return run.experiment_id, won.number if won else None

    results = race(act)
    assert len({experiment for experiment, _ in results}) == 1
    assert [number for _, number in results].count(None) == RACERS - 1
    champion = claims.find_champion(connection.connect(), "m")
    assert champion is not None
    assert champion.number in {number for _, number in results}
