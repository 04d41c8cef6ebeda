"""Which MLflow store this process uses, and a check that it is reachable."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts import machine_faults
from tasks.contracts.credentials import MASK, redact
from tasks.contracts.errors import RegistryError
from tasks.processes import workspace

SQLITE = "sqlite:///"
UNAUTHORIZED, FORBIDDEN = 401, 403
CLIENT_SETTINGS = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for the decision
    # A run sends no usage data. MLflow's client would, from a thread that changes the environment while
    # another request reads it: without internet access a run then fails at times.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Artifacts go through MLflow's server. With S3 behind it MLflow would send this client to S3, and one
    # that does not reach it fails after minutes. A user sets them to true where all workers reach it.
    "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD": "false",
    "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD": "false",
}


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the embedded SQLite store under mlruns/; SQLite paths absolute."""
    uri = (
        os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{workspace.EMBEDDED_STORE / 'mlflow.db'}"
    )
    if uri.startswith(SQLITE):  # child processes run in other folders
        uri = SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute())
    return uri


def shown(uri: str) -> str:
    """A tracking URI for people, logs and links: without the password or token that it may hold."""
    return redact(uri)


def shown_uri() -> str:
    """The tracking URI in use, for people."""
    return shown(tracking_uri())


def nothing_yet() -> bool:
    """Whether the embedded store does not exist yet: readers need not create one to find it empty."""
    uri = tracking_uri()
    return uri.startswith(SQLITE) and not Path(uri.removeprefix(SQLITE)).exists()


def connect() -> Any:
    """An MlflowClient that has answered once. Raises RegistryError when MLflow cannot be reached."""
    with first_request() as client:
        client.search_experiments(max_results=1)
    return client


@contextlib.contextmanager
def first_request() -> Iterator[Any]:
    """An MlflowClient whose requests in this block fail within seconds, and as a RegistryError.

    Also sets mlflow's process-wide tracking URI, by which `runs:/` and `models:/` are resolved. The
    registry URI stays MLflow's choice (MLFLOW_REGISTRY_URI, else the same): set here, it would stay
    when the store changes, in this process and its children.
    """
    uri = tracking_uri()
    for name, value in CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        if uri.startswith(SQLITE):
            Path(uri.removeprefix(SQLITE)).parent.mkdir(parents=True, exist_ok=True)
        if mlflow.get_tracking_uri() != uri:  # setting it takes 30 ms: MLflow prepares tracing
            mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        with _short_timeouts():
            yield client
            if mlflow.get_registry_uri() != uri:
                client.search_registered_models(max_results=1)
    except Exception as error:
        if not isinstance(
            error, (MlflowException, OSError, ImportError, ValueError, *_sql_errors())
        ):
            raise
        if refused := machine_faults.told(error):
            raise RegistryError(f"MLflow at {shown(uri)}: {refused}") from error
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        reason = _without_secrets(reason, uri)
        fix = "start the server, correct MLFLOW_TRACKING_URI, or unset it to use mlruns/"
        status = error.get_http_status_code() if isinstance(error, MlflowException) else None
        if status == UNAUTHORIZED:
            fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        elif status == FORBIDDEN:
            fix = "ask for the right to read and write the model's experiment and registered model"
        raise RegistryError(f"MLflow at {shown(uri)} does not answer: {reason}\n{fix}") from error


def _without_secrets(reason: str, uri: str) -> str:
    """A library's message: without the URI's password or token also where it quotes them alone."""
    reason = redact(reason.replace(uri, shown(uri)))
    user = re.match(r"[^/]*//([^/@]*)@", uri)
    for secret in user.group(1).split(":")[-1:] if user else []:
        if secret and secret not in shown(uri):
            reason = reason.replace(secret, MASK)
    return reason


def _sql_errors() -> tuple[type[Exception], ...]:
    """The errors of a broken SQLite store; imported only here, since that takes 0.2 s."""
    from sqlalchemy.exc import SQLAlchemyError

    return (SQLAlchemyError,)


@contextlib.contextmanager
def _short_timeouts() -> Iterator[None]:
    """MLflow retries for minutes by default: right in mid-run, too long for the first request."""
    settings = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update({name: value for name, value in settings.items() if before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
