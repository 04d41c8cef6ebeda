"""The rows that a version was judged by, with the texts that it wrote: for comparing what is served."""

from __future__ import annotations

from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts.errors import RegistryError
from tasks.contracts.records import Prediction
from tasks.register import claims
from tasks.tracking import artifacts, mlflow_run
from tasks.tracking.predictions_table import read_table

# Under gate.feedback: sealed (the default) and open. A promoted model is its run's challenger.
TABLES = (f"{mlflow_run.SEALED}/predictions/challenger.json", "predictions/challenger.json")


def stored_rows(client: Any, name: str, number: int) -> list[Prediction]:
    """The evaluation rows of the run that trained version `number` of `name`, in their order.

    Empty where the run has none, or is gone. Raises RegistryError when MLflow fails.
    """
    versions = claims.versions(client, name)
    version = next((v for v in versions if v.number == number), None)
    if version is None:
        return []
    same_model = [v for v in versions if v.digest == version.digest]
    # A version that a rollback made has the run of the rollback.
    run_id = next((v.run_id for v in same_model if v.rollback_to is None), version.run_id)
    for table in TABLES:
        try:
            return read_table(artifacts.fetch(f"runs:/{run_id}/{table}"))
        except (RegistryError, MlflowException, OSError):
            continue
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(
                f"the rows that {name} v{number} was judged by cannot be read (runs:/{run_id}/{table}: "
                f"{error}); restore the store from a backup"
            ) from error
    return []
