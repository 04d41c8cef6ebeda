"""What a model was made from: read from the MLflow run that trained it, by the digests that are on record.

A run's tags hold its steps' results, its parameters the recipe, and its manifest the git commit. What was
deleted since is None, never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import yaml
from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.contracts.records import AdapterRef, DatasetRef, ModelRef
from tasks.tracking import artifacts, step_cache

PREFECT_URL, FLOW_RUN = "precis.prefect_url", "precis.flow_run_id"
PRUNED = "precis.pruned"  # when and what of the run's files `precis prune` removed
RECIPE, MANIFEST = "recipe.yaml", "manifest.yaml"


@dataclass(frozen=True)
class Making:
    """What one MLflow run made a model from. None, or an empty tuple: the run does not say, or is gone."""

    run_id: str
    known: bool  # whether MLflow still has the run
    experiment_id: str = ""
    started: str = ""  # UTC, ISO 8601
    base_model: str | None = None  # as the recipe names it
    base_revision: str | None = None
    base_digest: str | None = None
    adapter: AdapterRef | None = None
    datasets: tuple[
        DatasetRef, ...
    ] = ()  # several where the data changed between two tries of the run
    recipe: str | None = None  # runs:/ URI
    settings: tuple[tuple[str, str], ...] = ()  # the recipe's, flat: ("training.seed", "0")
    prefect_url: str | None = None
    prefect_flow_run_id: str | None = None
    pruned: str | None = None

    @property
    def dataset(self) -> DatasetRef | None:
        """The rows; None where they are not known, or where it is not known which of several."""
        return self.datasets[0] if len(self.datasets) == 1 else None


@dataclass(frozen=True)
class Code:
    """The checkout that a run's code came from."""

    commit: str
    dirty: bool  # with changes that no commit has


def find(client: Any, run_id: str, model_digest: str) -> Making:
    """What a run made the model with this digest from. Raises RegistryError when MLflow fails."""
    try:
        return of(client.get_run(run_id), model_digest)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return Making(run_id, known=False)
        raise RegistryError(f"MLflow run {run_id}: {error}") from error


def has_trained(run: Any) -> bool:
    """Whether a run has trained an adapter, or taken one that an earlier run trained.

    Raises RegistryError for a tag that was edited, as `find` and `of` do.
    """
    return bool(step_cache.results_of(run, "train", AdapterRef))


def of(run: Any, model_digest: str = "") -> Making:
    """The same of a run that was read already; without a digest, adapter and base are not told."""
    tags, params = run.data.tags, run.data.params
    models = [m for m in step_cache.results_of(run, "merge", ModelRef) if m.digest == model_digest]
    model = models[0] if models else None
    adapters = step_cache.results_of(run, "train", AdapterRef)
    adapter = next((a for a in adapters if model and a.digest == model.adapter_digest), None)
    by_digest = {found.digest: found for found in step_cache.results_of(run, "ingest", DatasetRef)}
    return Making(
        run_id=run.info.run_id,
        known=True,
        experiment_id=run.info.experiment_id,
        started=datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(
            timespec="seconds"
        ),
        base_model=params.get("base.model"),
        base_revision=params.get("base.revision"),
        base_digest=model.base_digest if model else None,
        adapter=adapter,
        datasets=tuple(by_digest.values()),
        recipe=f"runs:/{run.info.run_id}/{RECIPE}" if params else None,
        settings=tuple(sorted(params.items())),
        prefect_url=tags.get(PREFECT_URL),
        prefect_flow_run_id=tags.get(FLOW_RUN),
        pruned=tags.get(PRUNED),
    )


def code_of(run_id: str) -> Code | None:
    """The commit of a run's code, from its manifest; None where there is none, or it cannot be read."""
    try:
        text = artifacts.fetch(f"runs:/{run_id}/{MANIFEST}").read_text()
        git = yaml.safe_load(text)["git"]
        return Code(str(git["commit"]), bool(git["dirty"])) if git else None
    except (RegistryError, OSError, yaml.YAMLError, KeyError, TypeError):
        return None
