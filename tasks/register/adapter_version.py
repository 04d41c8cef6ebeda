"""What a version under `register.as: adapter` is made of: its package, and its base, stored once for all.

The base is a registered model of its own, named by its digest: MLflow's users find it in the registry beside
the versions that name it, and two runs that store the same one find each other's. It lies in an experiment
of its own, since no model's runs own it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError
from tasks.contracts.records import AdapterParts, ModelRef
from tasks.register import claims, upload
from tasks.register.claims import does_not_exist
from tasks.register.version_tags import BASE, BASE_DIGEST
from tasks.serving.summarizer import adapter as served
from tasks.serving.summarizer import pyfunc
from tasks.serving.summarizer.adapter import StoredBase
from tasks.tracking import artifacts, mlflow_run

EXPERIMENT = "precis-bases"
BASE_PREFIX = "precis-base-"  # of the registered models
NAME_DIGITS = 16


def make_package(
    client: Any, model: ModelRef, parts: AdapterParts, folder: Path, run_id: str
) -> StoredBase:
    """Write the adapter's package to `folder`, and store its base if the registry has not got it.

    Raises RegistryError when the merged model is not what was judged, or when MLflow fails.
    """
    merged = Path(model.path)
    if digest.of_folder(merged) != model.digest:
        raise RegistryError(
            f"{model.path} is not what was judged (its digest is not {model.digest[:16]}...); "
            "remove that folder and run again"
        )
    try:
        base = store_base(client, Path(parts.base), run_id)
        shutil.rmtree(folder, ignore_errors=True)
        _fill(folder, merged, artifacts.fetch(parts.adapter.uri), base)
    except (MlflowException, OSError) as error:
        raise RegistryError(f"storing the adapter's base in MLflow failed: {error}") from error
    return base


def tags_of(base: StoredBase) -> dict[str, str]:
    """A version's tags that tell on which base it is."""
    return {BASE: base.name, BASE_DIGEST: base.digest}


def store_base(client: Any, folder: Path, run_id: str) -> StoredBase:
    """The dequantized base in `folder`, as the registry holds it: stored by the run now, or before."""
    files = pyfunc.file_digests(pyfunc.served_files(folder))
    new = StoredBase("", "", files)
    name = f"{BASE_PREFIX}{new.digest[:NAME_DIGITS]}"
    uri = _stored(client, name, new.digest) or _store(client, name, new.digest, folder, run_id)
    return StoredBase(name, uri, files)


def _stored(client: Any, name: str, base_digest: str) -> str | None:
    """The first complete base of this digest: of several that were stored at once, all name that one."""
    complete = []
    for version in claims.entries(client, name):
        if version.tags.get(BASE_DIGEST) != base_digest:
            continue
        try:
            logged = client.get_logged_model(version.source.removeprefix("models:/"))
        except MlflowException as error:
            if not does_not_exist(error):
                raise
            continue
        if logged.status == "READY":
            complete.append((int(version.version), version.source))
    return str(min(complete)[1]) if complete else None


def _store(client: Any, name: str, base_digest: str, folder: Path, run_id: str) -> str:
    tags = {BASE_DIGEST: base_digest}
    experiment = mlflow_run.experiment_of(client, EXPERIMENT)
    logged = client.create_logged_model(experiment, name, source_run_id=run_id, tags=tags)
    upload.upload_folder(folder, logged.artifact_location)
    client.finalize_logged_model(logged.model_id, "READY")
    claims.ensure_model(client, name)
    description = (
        "A dequantized base, to which the adapters of versions with the tag "
        f"{BASE_DIGEST} = {base_digest} belong. Do not delete it while they are used"
    )
    client.create_model_version(
        name, f"models:/{logged.model_id}", tags=tags, description=description
    )
    return _stored(client, name, base_digest) or f"models:/{logged.model_id}"


def _fill(folder: Path, merged: Path, adapter: Path, base: StoredBase) -> None:
    """All of the merged package but its weights, and the adapter."""
    weights = {path.name: path for path in merged.glob("*.safetensors")}
    for source in digest.visible_files(merged):
        if source.name not in weights:
            target = folder / source.relative_to(merged)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    own = folder / served.FOLDER
    own.mkdir()
    config = json.loads((adapter / served.CONFIG).read_text(encoding="utf-8"))
    # Not the model that was quantized: on that one its answers are others.
    config["base_model_name_or_path"] = base.name
    (own / served.CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(adapter / served.WEIGHTS, own / served.WEIGHTS)
    served.write_record(folder, base, weights)
