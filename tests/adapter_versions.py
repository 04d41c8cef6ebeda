"""A store where adapters on one tiny base are registered (`register.as: adapter`), and a merged version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import once
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts import digest
from tasks.contracts.records import AdapterParts, AdapterRef, ModelRef
from tasks.merge import dequantized, merge
from tasks.register import adapter_version, claims, log_model
from tasks.tracking import artifacts, connection, mlflow_run

NAME = "lamps"
ADAPTED = ("q_proj", "v_proj", "down_proj")
RANK, ALPHA = 4, 6  # a scale that is no power of two: where it is multiplied in then shows


def make_adapter(folder: Path, base: Path, seed: int) -> Path:
    """Random, on some linear layers, in PEFT's format."""
    generator = torch.Generator().manual_seed(seed)
    weights = {n: t for file in base.glob("*.safetensors") for n, t in load_file(file).items()}
    tensors = {}
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module.endswith(ADAPTED):
            a = torch.randn(RANK, weight.shape[1], generator=generator) * 0.1
            b = torch.randn(weight.shape[0], RANK, generator=generator) * 0.1
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors", {"compute_dtype": "float32"})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [*ADAPTED]}
    config |= {"base_model_name_or_path": str(base), "task_type": "CAUSAL_LM", "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def register(client: Any, work: Path, base: Path, name: str, seed: int, kind: str) -> str:
    """Train nothing, merge, and register as the flow does; returns the digest of the merged model."""
    adapter = make_adapter(work / "adapter", base, seed)
    recipe = tiny.make_recipe(base, name=name, register={"as": kind})
    prepared = tiny.prepared(base, recipe)
    merged = merge.merge(prepared, adapter, recipe, work / "merged")
    model = ModelRef(merged["path"], merged["digest"], "b" * 64)
    experiment = mlflow_run.experiment_of(client, name)
    run = client.create_run(experiment)
    artifacts.remember_root(run.info)
    client.log_artifacts(run.info.run_id, str(adapter), "adapter")
    package, tags = None, {claims.DIGEST: model.digest, claims.RUN_ID: run.info.run_id}
    if kind == "adapter":
        dequantized.write(
            prepared.as_json(), str(adapter), recipe.model_dump(mode="json"), str(work / "base")
        )
        uri = f"runs:/{run.info.run_id}/adapter"
        parts = AdapterParts(
            AdapterRef(uri, digest.of_folder(adapter), "b" * 64), str(work / "base")
        )
        package = work / "package"
        stored = adapter_version.make_package(client, model, parts, package, run.info.run_id)
        tags |= adapter_version.tags_of(stored)
    uri = log_model.log_model(
        client, model, experiment_id=experiment, run_id=run.info.run_id, name=name,
        scratch=work / "served", adapter_package=package,
    )  # fmt: skip
    tags |= log_model.served_digest(client, uri)
    champion = claims.find_champion(client, name)
    assert claims.succeed(client, name, champion, source=uri, tags=tags, description="made")
    client.set_terminated(run.info.run_id)
    return model.digest


def make(folder: Path) -> None:
    """`lamps` v1 is merged, v2 an adapter; `lights` v1 is another adapter on the same base."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlruns/mlflow.db")
        patch.chdir(folder)
        client = connection.connect()
        base = tiny.make_tiny_base(folder / "base", shards=2, tied=False)
        digests = {}
        for name, kinds in {NAME: ("merged", "adapter"), "lights": ("adapter",)}.items():
            for number, kind in enumerate(kinds, 1):
                work = folder / f"mlruns/made/{name}-{number}"
                seed = number + 10 * len(digests)
                digests[f"{name}/{number}"] = register(client, work, base, name, seed, kind)
        (folder / "mlruns/digests.json").write_text(json.dumps(digests))


def store(factory: pytest.TempPathFactory, home: Path) -> Any:
    """A client of a copy of that store in `home`; made once for all tests of a run."""
    once.copy_store(once.made_once(factory, "adapter-versions", make), home)
    artifacts._copies.clear()
    artifacts._roots.clear()
    return connection.connect()


def digest_of(home: Path, reference: str) -> str:
    """The digest of the merged model of `NAME/VERSION`."""
    return str(json.loads((home / "mlruns/digests.json").read_text())[reference])


def base_files(client: Any) -> Path:
    """Where the one base of that store lies."""
    [name] = base_names(client)
    [version] = client.search_model_versions(f"name = '{name}'")
    logged = client.get_logged_model(version.source.removeprefix("models:/"))
    return Path(logged.artifact_location.removeprefix("file://"))


def base_names(client: Any) -> list[str]:
    """The registered models that hold bases."""
    names = [model.name for model in client.search_registered_models()]
    return [name for name in names if name.startswith(adapter_version.BASE_PREFIX)]
