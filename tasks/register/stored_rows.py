"""The rows that a version was judged by, with the texts that it wrote: for comparing what is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError, StoreUnavailable
from tasks.contracts.records import Prediction
from tasks.processes import workspace
from tasks.register import claims, version_tags
from tasks.tracking import artifacts, mlflow_run
from tasks.tracking.fresh_copy import fetch_fresh
from tasks.tracking.predictions_table import read_table

# Under gate.feedback: sealed (the default) and open. The deciding run has its own copy of the table that it
# decided by, also where the evaluation was an earlier run's; a promoted model is its challenger.
GATES = (f"{mlflow_run.SEALED}/gate", "gate")
TABLE, INPUTS = "challenger.json", "gate_inputs.json"


def stored_rows(client: Any, name: str, number: int) -> list[Prediction]:
    """The evaluation rows that version `number` of `name` was promoted by, in their order.

    Empty where its run has none, or is gone. Raises StoreUnavailable when MLflow or the store does not
    answer, RegistryError for a table that is not the one that was scored.
    """
    try:
        run_id = _deciding_run(client, name, number)
        if run_id is None:
            return []
        artifacts.remember_root(client.get_run(run_id).info)
    except MlflowException as error:
        if claims.does_not_exist(error):
            return []
        raise StoreUnavailable(f"MLflow, the run of {name} v{number}: {error}") from error
    with workspace.temporary_folder("serve") as scratch:
        for gate in GATES:
            folder = fetch_fresh(run_id, gate, scratch)
            if folder and (folder / TABLE).is_file():
                return _rows(folder, f"{name} v{number}", f"runs:/{run_id}/{gate}")
    return []


def _deciding_run(client: Any, name: str, number: int) -> str | None:
    versions = claims.versions(client, name)
    version = next((v for v in versions if v.number == number), None)
    if version is None:
        return None
    return version_tags.judged_as(version, versions).run_id


def _rows(folder: Path, title: str, where: str) -> list[Prediction]:
    try:
        scores = json.loads((folder / INPUTS).read_bytes())["scores"]["challenger"]
        expected = scores.get("table_digest")  # empty in decisions of before there were digests
        if expected and digest.of_file(folder / TABLE) != expected:
            raise ValueError("it was changed after it was scored")
        return read_table(folder / TABLE)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        message = str(error).replace(str(folder), where)
        raise RegistryError(
            f"the rows that {title} was judged by cannot be read ({where}/{TABLE}: {message}); restore the "
            "store from a backup"
        ) from error
