"""Whether an adapter's base is the one that it was judged on, and both give the judged model."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import PrecisError
from tasks.contracts.findings import Findings
from tasks.register import claims, version_tags
from tasks.serving.summarizer import adapter
from tasks.tracking import whole_model

RESTORE = "restore it from a backup"


def files_at(location: str, target: Path) -> Path:
    """A logged model's files: in place on a local store, else a fresh copy in `target`."""
    parts = urlparse(location)
    if parts.scheme in ("", "file"):
        return Path(unquote(parts.path))
    target.mkdir(parents=True, exist_ok=True)
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(target)))


def check_base(
    client: Any,
    where: str,
    version: claims.Version,
    package: Path,
    scratch: Path,
    found: Findings,
) -> None:
    """The base that an intact adapter's package names: its files, and the weights that both give."""
    base = adapter.base_of(package)
    tags = {version_tags.BASE: base.name, version_tags.BASE_DIGEST: base.digest}
    for (tag, value), held in zip(tags.items(), (version.base, version.base_digest), strict=True):
        if held != value:
            found.differences.append(
                f"{where}: its tag {tag} holds {held[:40]!r}, and its adapter names another base; set it to "
                f"{value}"
            )
    try:
        logged = client.get_logged_model(base.uri.removeprefix("models:/"))
        folder = files_at(logged.artifact_location, scratch / "base")
    except (MlflowException, OSError) as error:
        found.differences.append(
            f"{where}: its base {base.name} ({base.uri}) is gone ({error}); restore the store from a backup"
        )
        return
    if faults := adapter.faults_of(base, folder):
        found.differences += [
            f"{where}: its base {base.name}, {logged.artifact_location}/{fault}; "
            + ("delete it" if fault.endswith(" was added") else RESTORE)
            for fault in faults
        ]
        return
    out = scratch / "whole"
    try:
        whole_model.make(package, folder, out, scratch / "whole-step")
    except PrecisError as error:
        found.differences.append(f"{where}: {error}")
        return
    if digest.of_folder(out) != version.digest:
        found.differences.append(
            f"{where}: the digest of what adapter and base give is not {version.digest[:16]}..., the one of "
            f"what was judged; {RESTORE}"
        )
    else:
        found.checked.append(f"{len(base.files)} files of {base.name}, the adapter's base")
