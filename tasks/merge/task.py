"""Prefect task: fold the adapter into the weights, shard by shard, and check the drift."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from tasks.contracts import digest
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import AdapterRef, Cost, DatasetRef, Drift, ModelRef
from tasks.costs import preflight
from tasks.models.prepared_base import PreparedBase
from tasks.models.safetensors_headers import parameter_count
from tasks.orchestration import concurrency
from tasks.orchestration.task_options import STEP
from tasks.processes import resource_usage, step_process, workspace
from tasks.tracking import artifacts, mlflow_run, step_cache


@task(name="merge", **STEP)
def merge(adapter: AdapterRef, base: PreparedBase, dataset: DatasetRef, recipe: Recipe) -> ModelRef:
    """The package of the merged model; refused when it drifted from the adapter."""
    run, key = mlflow_run.current(), step_key(adapter, base, dataset, recipe)
    if stored := step_cache.recall(run, "merge", key, ModelRef, _is_on_this_machine):
        return stored
    work = workspace.work_folder() / "merge" / key[:16]
    merged_bytes = 2 * parameter_count(base.path)  # in 16 bits, for the drift check
    with concurrency.gpu(1, preflight.gpus_for(merged_bytes)):
        answer = step_process.run(
            "tasks.merge.merge:merge_and_check",
            {
                "base": base.as_json(),
                "adapter": str(artifacts.fetch(adapter.uri)),
                "rows": str(artifacts.fetch(dataset.uri) / "train.jsonl"),
                "recipe": recipe.model_dump(mode="json"),
                "out": str(work / "package"),
            },
            work,
        )
    drift = Drift(**answer["drift"])
    model = ModelRef(answer["path"], answer["digest"], base.digest, adapter.digest, drift)
    metrics = {"merge/kl": drift.kl, "merge/top1_agreement": drift.top1_agreement}
    metrics["merge/near_ties"] = drift.near_ties
    # One process does both; its start counts for the drift check.
    both = resource_usage.by_child(work)
    drift_seconds = None if both.seconds is None else both.seconds - answer["seconds"]
    metrics |= resource_usage.as_metrics("merge", Cost(answer["seconds"], both.memory_gib))
    metrics |= resource_usage.as_metrics("drift", Cost(drift_seconds))
    step_cache.record(run, "merge", key, model, metrics)
    get_run_logger().info(
        f"merged: KL to the adapter {drift.kl:.1e} nats, top-1 agreement {drift.top1_agreement:.4f} "
        f"over {drift.tokens} tokens, {drift.near_ties:.1%} near ties among them"
    )
    return model


@task(name="dequantized base", **STEP)
def dequantized_base(adapter: AdapterRef, base: PreparedBase, recipe: Recipe) -> Path:
    """The base as the adapter was trained on it, in a folder, to be stored beside the adapter."""
    work = workspace.work_folder() / "dequantized" / mlflow_run.current().id
    weights_bytes = 4 * parameter_count(base.path)
    with concurrency.gpu(1, preflight.gpus_for(weights_bytes)):
        step_process.run(
            "tasks.merge.dequantized:write",
            {
                "base": base.as_json(),
                "adapter": str(artifacts.fetch(adapter.uri)),
                "recipe": recipe.model_dump(mode="json"),
                "out": str(work / "base"),
            },
            work,
        )
    return work / "base"


def step_key(adapter: AdapterRef, base: PreparedBase, dataset: DatasetRef, recipe: Recipe) -> str:
    """The key of a merged model: everything that it and its drift depend on."""
    return step_cache.step_key(
        "merge",
        adapter=adapter.digest,
        base=base.digest,
        kind=recipe.adapter.kind,
        quantization=recipe.base.quantization,
        merge=recipe.merge.model_dump(mode="json"),
        rows=dataset.train_digest,
        settings=repr(base.settings),
        max_row_tokens=base.max_row_tokens,
        **({"exact": True} if recipe.registration.kind == "adapter" else {}),
        **base.context_limits,
    )


def _is_on_this_machine(model: ModelRef) -> bool:
    """Losers' merged models are stored nowhere else: another machine merges again, to the same bytes."""
    folder = Path(model.path)
    return folder.is_dir() and digest.of_folder(folder) == model.digest
