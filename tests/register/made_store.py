"""A real MLflow store with made-up runs: two versions, a rollback, a refusal, their rows and adapters.

Written as the flows write: tags of steps, history, claims. No model is trained.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import once
import pytest
import tiny
import yaml

from tasks.contracts import digest
from tasks.contracts.records import AdapterRef, DatasetRef, ModelRef, Row
from tasks.ingest.row_types import source_of
from tasks.processes import workspace
from tasks.register import claims
from tasks.tracking import artifacts, connection, history, mlflow_run, step_cache
from tasks.tracking.history import HistoryRecord
from tasks.tracking.looks import BASE, record_look

NAME = "summ"
REASON = "<script>alert('x')</script>"  # of the rollback: a user's own words


@dataclass(frozen=True)
class Made:
    """One run of the store."""

    run_id: str
    dataset: DatasetRef
    adapter: AdapterRef
    model: ModelRef
    version: int | None


def rows_of(seed: int, count: int = 20) -> list[Row]:
    """Rows whose sources are digests of their documents, as ingest makes them."""
    made = tiny.make_rows(count, seed)
    return [replace(row, source=source_of(str(row.document))) for row in made]


def retrain(
    client: Any, seed: int, verdict: str, opponent: claims.Version | None, minute: int
) -> Made:
    """A run that trained on the rows of a seed and was judged; a promotion is claimed."""
    experiment = client.get_experiment_by_name(NAME)
    folder = (Path("mlruns/artifacts") / NAME).absolute().as_uri()
    number = (
        experiment.experiment_id
        if experiment
        else client.create_experiment(NAME, artifact_location=folder)
    )
    tags = {"precis.name": NAME, "precis.flow": "retrain", "precis.flow_run_id": f"flow-{seed}"}
    info = client.create_run(number, tags=tags).info
    run = mlflow_run.Run(client, info.run_id, number, resumed=False)
    artifacts.remember_root(info)
    dataset = _dataset(run, seed)
    adapter = _adapter(run, seed)
    package = workspace.work_folder() / "merge" / f"{seed:016d}" / "package"
    package.mkdir(parents=True)
    (package / "model.safetensors").write_bytes(b"merged %d" % seed)
    model = ModelRef(str(package), digest.of_folder(package), "base-digest", adapter.digest)
    for step, result in (("ingest", dataset), ("train", adapter), ("merge", model)):
        step_cache.record(run, step, f"{seed:016d}" * 2, result)
    run.log_params({"base.model": "llama <b>", "base.revision": "abc", "training.seed": str(seed)})
    _files(run, seed)
    record = _record(run, verdict, opponent, model.digest, minute)
    against = opponent.digest if opponent else BASE
    documents = [f"evaluation document {n} of this set" for n in range(10)]
    record_look(client, number, model.digest, "rougeL", against, documents)
    run.write(
        tags={
            history.RECORD: history.as_json(record),
            history.VERDICT: verdict,
            history.LOOK_MODEL: model.digest,
        }
    )
    version = None
    if verdict == "PROMOTE":
        logged = client.create_logged_model(number, NAME, source_run_id=run.id)
        claimed = claims.succeed(
            client,
            NAME,
            opponent,
            source=f"models:/{logged.model_id}",
            tags={
                claims.DIGEST: model.digest,
                claims.RUN_ID: run.id,
                claims.RECORD: history.as_json(record),
            },
            description=f"PROMOTED {NAME}",
        )
        assert claimed
        version = claimed.number
    client.set_terminated(run.id)
    return Made(run.id, dataset, adapter, model, version)


def _dataset(run: mlflow_run.Run, seed: int) -> DatasetRef:
    folder = workspace.work_folder() / "data" / run.id
    train, evaluation = rows_of(seed), rows_of(99, 10)
    tiny.write_rows(folder / "train.jsonl", train)
    tiny.write_rows(folder / "evaluation.jsonl", evaluation)
    (folder / "report.json").write_text("{}")
    uri = run.log_folder(folder, "dataset")
    digests = [digest.of_file(folder / f"{name}.jsonl") for name in ("train", "evaluation")]
    whole = digest.of_value(digests)
    return DatasetRef(uri, whole, *digests, len(train), len(evaluation), 0)


def _adapter(run: mlflow_run.Run, seed: int) -> AdapterRef:
    folder = workspace.work_folder() / "train" / f"{seed:016d}" / "job"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"adapter %d" % seed * 50)
    return AdapterRef(run.log_folder(folder, "adapter"), digest.of_folder(folder), "base-digest")


def _files(run: mlflow_run.Run, seed: int) -> None:
    folder = workspace.work_folder() / "runs" / run.id
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(f"name: {NAME}\n")
    (folder / "manifest.yaml").write_text(
        yaml.safe_dump({"git": {"commit": f"c0ffee{seed}", "dirty": seed == 2}})
    )
    for name in ("recipe.yaml", "manifest.yaml"):
        run.log_file(folder / name)
    gate = workspace.work_folder() / "gate" / run.id
    gate.mkdir(parents=True)
    (gate / "decision.json").write_text(json.dumps({"seed": seed}))
    run.log_folder(gate, "sealed/gate")


def _record(
    run: mlflow_run.Run, verdict: str, opponent: claims.Version | None, model: str, minute: int
) -> HistoryRecord:
    promoted = verdict == "PROMOTE"
    return HistoryRecord(
        kind="promotion" if promoted else "refusal",
        time=f"2026-11-28T10:{minute:02d}:00.000+00:00",
        name=NAME,
        verdict=verdict,  # type: ignore[arg-type]
        reasons=("rougeL gained",) if promoted else ("worse, beyond noise",),
        version=None,
        opponent_version=opponent.number if opponent else None,
        metric="rougeL",
        gain=0.03 * minute if promoted else None,
        low=0.01 if promoted else None,
        high=0.05 * minute if promoted else None,
        looks=minute,
        evaluation_digest="e" * 64,
        model_digest=model,
        mlflow_run_id=run.id,
    )


def roll_back(client: Any, to: claims.Version, minute: int) -> claims.Version:
    """Put a version back, as the flow does, with REASON."""
    number = client.get_experiment_by_name(NAME).experiment_id
    info = client.create_run(number, tags={"precis.flow": "rollback"}).info
    run = mlflow_run.Run(client, info.run_id, number, resumed=False)
    record = HistoryRecord(
        kind="rollback",
        time=f"2026-11-28T10:{minute:02d}:00.000+00:00",
        name=NAME,
        verdict=None,
        reasons=(f"back to the model of v{to.number}", REASON),
        version=None,
        model_digest=to.digest,
        mlflow_run_id=run.id,
    )
    history.write(run, record)
    tags = {
        claims.DIGEST: to.digest,
        claims.RUN_ID: run.id,
        claims.ROLLBACK_TO: str(to.number),
        claims.RECORD: history.as_json(record),
    }
    current = claims.find_champion(client, NAME)
    version = claims.succeed(
        client, NAME, current, source=to.source, tags=tags, description=f"ROLLBACK: {REASON}"
    )
    assert version
    client.set_terminated(run.id)
    return version


@dataclass(frozen=True)
class Store:
    """v1 (rows of seed 1), a refusal (seed 3), v2 (seed 2), v3: back to v1."""

    client: Any
    first: Made
    refused: Made
    second: Made


def put(home: Path, factory: pytest.TempPathFactory) -> Store:
    """A copy of the store in `home`, the current folder; it is made once for all tests of a run."""
    once.copy_store(once.made_once(factory, "made-store", _make), home)
    runs = pickle.loads((home / "mlruns/made.pickle").read_bytes())
    return Store(connection.connect(), *runs)


def _make(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # MLflow writes the variable when it is told of a store; left behind, the next test would use this.
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
        client = connection.connect()
        first = retrain(client, 1, "PROMOTE", None, 1)
        one = claims.find_champion(client, NAME)
        assert one
        refused = retrain(client, 3, "REJECT", one, 2)
        second = retrain(client, 2, "PROMOTE", one, 3)
        roll_back(client, one, 4)
        Path("mlruns/made.pickle").write_bytes(pickle.dumps((first, refused, second)))
