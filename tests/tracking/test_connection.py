"""What precis tells MLflow's client, and what stays its user's choice."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository

from tasks.tracking import connection

DIRECT = ("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD")


@pytest.mark.parametrize("wanted", [None, "true"])
def test_artifacts_go_through_the_server_unless_s3_is_asked_for(
    home_with_store: Path, monkeypatch: pytest.MonkeyPatch, wanted: str | None
) -> None:
    """MLflow's client would ask its server first, and then go to S3, which a worker may not reach."""
    for name in DIRECT:
        monkeypatch.setenv(name, wanted or "")  # the test's end puts back what was
        if wanted is None:
            monkeypatch.delenv(name)
    connection.connect()
    server = MlflowArtifactsRepository("mlflow-artifacts:/x", "http://127.0.0.1:9")
    asked = (server._is_multipart_download_enabled(), server._is_multipart_upload_enabled())
    assert asked == (wanted is not None,) * 2
