"""The package as a standard MLflow model: logged by path, checked in a clean process.

MLflow's own `log_model(artifacts=...)` copies the weights several times. Here the model folder is made
of links, and tasks.register.upload stores it without a second copy.
"""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError, ServedModelDiffers
from tasks.contracts.records import ModelRef, Prediction
from tasks.processes import step_process
from tasks.register import upload
from tasks.serving.summarizer import DOCUMENT, SummarizerSettings, params_of, pyfunc

ARTIFACT = "package"
PYFUNC_FILE = Path(pyfunc.CODE_FOLDER) / "pyfunc.py"  # of a package; MLflow runs a copy of it
# What the served code imports; the versions the model was judged with.
REQUIREMENTS = ("mlflow", "torch", "transformers", "accelerate")  # the last to spread over GPUs
EXAMPLE = "Ann: Shall we meet at noon?\nBob: I have a class then. At two?\nAnn: Two it is, in the library."
DIGEST_TAG = "precis.model_digest"


def log_model(
    client: Any,
    model: ModelRef,
    *,
    experiment_id: str,
    run_id: str,
    name: str,
    scratch: Path,
    adapter_package: Path | None = None,
) -> str:
    """Log a package as an MLflow model of a run; returns its URI `models:/m-...`.

    A model this run logged completely before is found again instead. `scratch` should be on the
    package's file system (hard links). `adapter_package`: logged in place of the model's, which it makes
    again. Raises RegistryError.
    """
    package = adapter_package or Path(model.path)
    package_digest = digest.of_folder(package) if adapter_package else model.digest
    try:
        logged_models = client.search_logged_models(
            [experiment_id],
            filter_string=f"source_run_id = '{run_id}' AND tags.`{DIGEST_TAG}` = '{model.digest}'",
        )
        ready = [m for m in logged_models if m.status == "READY"]
        if ready:
            return f"models:/{ready[0].model_id}"
        logged = client.create_logged_model(
            experiment_id, name, source_run_id=run_id, tags={DIGEST_TAG: model.digest}
        )
        folder = scratch / logged.model_id
        served = lay_out(package, folder, model_id=logged.model_id, run_id=run_id)
        client.set_logged_model_tags(logged.model_id, {pyfunc.SERVED_DIGEST: served})
        with ThreadPoolExecutor(1) as executor:  # at the same time: both read from the page cache
            logged_digest = executor.submit(digest.of_folder, folder / "artifacts" / ARTIFACT)
            upload.upload_folder(folder, logged.artifact_location)
        if logged_digest.result() != package_digest:
            # Never READY, so it is never found; a retry logs another.
            client.finalize_logged_model(logged.model_id, "FAILED")
            raise RegistryError(
                f"{package} is not what was judged (its digest is not {package_digest[:16]}...); "
                "remove that folder and run again"
            )
        client.finalize_logged_model(logged.model_id, "READY")
    except (MlflowException, OSError) as error:
        raise RegistryError(f"logging the model to MLflow failed: {error}") from error
    shutil.rmtree(folder)
    return f"models:/{logged.model_id}"


def lay_out(
    package: Path, folder: Path, *, model_id: str | None = None, run_id: str | None = None
) -> str:
    """Write `folder` as an MLflow pyfunc model around a package, linking its files.

    Returns the digest of its manifest, which covers every file.
    """
    shutil.rmtree(folder, ignore_errors=True)
    mlflow_model = mlflow.models.Model(model_id=model_id, run_id=run_id)
    settings = SummarizerSettings.load(package)
    mlflow.pyfunc.save_model(
        path=str(folder),
        python_model=str(package / PYFUNC_FILE),
        pip_requirements=requirements(package),
        mlflow_model=mlflow_model,
        signature=signature_of(settings),
        input_example=example_for(settings),
    )
    # What save_model(artifacts=...) would have written, without its copies.
    mlflow_model.flavors["python_function"] |= {
        "artifacts": {ARTIFACT: {"path": f"artifacts/{ARTIFACT}", "uri": f"artifacts/{ARTIFACT}"}},
        "model_code_path": PYFUNC_FILE.name,  # not where it was on this machine
    }
    for source in digest.visible_files(package):
        target = folder / "artifacts" / ARTIFACT / source.relative_to(package)
        target.parent.mkdir(parents=True, exist_ok=True)
        _link(source, target)
    for cache in folder.rglob("__pycache__"):
        shutil.rmtree(cache)
    # What MLflow counted is the size without the package.
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "MLmodel")
    mlflow_model.model_size_bytes = sum(file.stat().st_size for file in files)
    mlflow_model.save(str(folder / "MLmodel"))
    return pyfunc.write_manifest(folder)


def served_digest(client: Any, uri: str) -> dict[str, str]:
    """The tag of a version whose source is this logged model: the digest of all that is served.

    Empty for models that were logged before there was one.
    """
    tags = client.get_logged_model(uri.removeprefix("models:/")).tags
    return {name: value for name, value in tags.items() if name == pyfunc.SERVED_DIGEST}


def columns_of(settings: SummarizerSettings) -> list[str]:
    """The columns that a request may have: the inputs' names, and what the training data call them."""
    names = settings.inputs or (DOCUMENT,)
    return list(dict.fromkeys([*(settings.columns or names), *names]))


def example_for(settings: SummarizerSettings) -> Any:
    """A request in the form that the model takes, by name.

    Its text is nobody's: documents of a training set may be private, and the package goes further than they.
    """
    import pandas

    if settings.format == "chat" and not settings.inputs:
        return [EXAMPLE]
    columns = settings.columns or settings.inputs or (DOCUMENT,)
    return pandas.DataFrame([dict.fromkeys(columns, EXAMPLE)])


def signature_of(settings: SummarizerSettings) -> Any:
    """MLflow's signature: the named columns that the prompt is made of, a text out, and params.

    No column is required, though the model wants them: MLflow's own refusal shows all rows of the
    request, the model's names the one that lacks it. The columns' type is left open: of a declared string
    MLflow's server makes a text of everything, "None" of null and "5" of 5; so null and numbers reach the
    model, which refuses them. A list of texts is to MLflow a DataFrame whose column is called 0, and is lost
    unless that one is declared too, in the first place (`Schema.input_names`). Conversations have no such
    columns: declared, a list of messages would be a row for each.
    """
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    names: list[Any] = [] if settings.inputs else [0]
    names += columns_of(settings)
    is_chat = settings.format == "chat" and not settings.inputs
    columns = [] if is_chat else [ColSpec(AnyType(), name, required=False) for name in names]
    params = [ParamSpec(name, *kind) for name, kind in params_of(settings).items()]
    return mlflow.models.ModelSignature(
        inputs=Schema(columns) if columns else None,
        outputs=Schema([ColSpec(DataType.string, "summary")]),
        params=ParamSchema(params),
    )


def requirements(package: Path) -> list[str]:
    """Pinned requirements of the served code, local version parts (+cpu) left out."""
    names = [*REQUIREMENTS]
    if not (package / "tokenizer.json").is_file():  # it is read from a sentencepiece model
        names += ["sentencepiece", "protobuf"]
    return [f"{name}=={metadata.version(name).split('+')[0]}" for name in names]


def reproduce(uri: str, predictions: list[Prediction], folder: Path) -> int:
    """Load the logged model in a clean process and have it write the first stored batch again.

    The whole batch, in its stored order: on a GPU a summary may depend on its batch. Returns
    how many they are. Raises ServedModelDiffers where one differs.
    """
    batch = [p for p in predictions if p.batch == 0]
    folder.mkdir(parents=True, exist_ok=True)
    texts = step_process.run(
        "tasks.register.reload_check:predict",
        {
            "uri": uri,
            "tracking_uri": mlflow.get_tracking_uri(),
            "documents": [p.document for p in batch],
        },
        folder,
        fresh=True,
    )
    if any(stored.text != now for stored, now in zip(batch, texts, strict=True)):
        # Neither the row nor its output's length: a run's log tells nothing of rows that decide.
        raise ServedModelDiffers(
            f"{uri} does not give back what was judged: of the {len(batch)} summaries of the first batch, "
            "some differ from the stored ones. The champion is unchanged; see that evaluation and "
            "registration run on one machine"
        )
    return len(batch)


def _link(source: Path, target: Path) -> None:
    if source.is_symlink():  # stays one: its target is not the package's own file
        target.symlink_to(source.resolve())
        return
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)
