"""Whether a registered model is as it was judged: tags, succession and alias, files, and its summaries.

Reads only: no claim is finished, no alias is set, no file of the store is written.

Over 250 lines: the registry is checked in one place, but for entries of the history (verify_records.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import PrecisError, RegistryError
from tasks.contracts.findings import Findings
from tasks.contracts.records import Prediction
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.processes import device, step_process
from tasks.register import claims, version_tags
from tasks.register.verify_base import RESTORE, check_base, files_at
from tasks.serving.summarizer import adapter, pyfunc


def readable_versions(client: Any, name: str, found: Findings) -> list[claims.Version]:
    """The versions that precis made; each tag that it did not write so is a difference.

    Raises RegistryError when MLflow fails.
    """
    versions: list[claims.Version] = []
    try:
        entries = claims.entries(client, name)
    except MlflowException as error:
        raise RegistryError(f"MLflow registry, model {name!r}: {error}") from error
    for entry in entries:
        if claims.DIGEST in entry.tags and not {claims.SUCCEEDS, claims.FINISHED} & set(entry.tags):
            found.differences.append(
                f"model {name!r}, version {entry.version}: its tags {claims.SUCCEEDS} and {claims.FINISHED} "
                "are gone, so precis does not know it any more; set them again (0, or the number of the "
                "version that it succeeded; and the time of its promotion)"
            )
            continue
        try:
            versions += version_tags.read(name, [entry])
        except RegistryError as error:
            found.differences += str(error).splitlines()
    return sorted(versions, key=lambda version: version.number)


def check_succession(
    client: Any, name: str, versions: Sequence[claims.Version], found: Findings
) -> None:
    """The alias, and that each champion succeeded the one before it."""
    last = claims.last_finished(versions)
    alias = claims.points_at(client, name)
    if alias != (last.number if last else None):
        found.differences.append(str(claims.moved(name, versions, alias)))
    else:
        found.checked.append(
            f"alias {claims.ALIAS!r} on version {alias}, the last promotion"
            if last
            else "no champion yet"
        )
    before: claims.Version | None = None
    numbers = {version.number for version in versions}
    for version in versions:
        if not version.finished:
            found.differences.append(
                f"model {name!r}, version {version.number}: its promotion is not finished (no tag "
                f"{claims.FINISHED}); if none is running, `precis champion {name}` finishes or withdraws it"
            )
            continue
        _check_predecessor(name, version, before, numbers, found)
        _check_rollback(name, version, versions, found)
        before = version


def _check_predecessor(
    name: str,
    version: claims.Version,
    before: claims.Version | None,
    numbers: set[int],
    found: Findings,
) -> None:
    where, expected = f"model {name!r}, version {version.number}", before.number if before else 0
    if version.succeeds > expected and version.succeeds not in numbers:
        found.remarks.append(
            f"{where} succeeded version {version.succeeds}, which was deleted from the registry"
        )
    elif version.succeeds != expected:
        found.differences.append(
            f"{where}: its tag {claims.SUCCEEDS} holds {version.succeeds}, and version {expected} was "
            "champion before it (0: none); set the tag again"
        )
    elif not version.follows(before):
        found.differences.append(
            f"{where}: its tags {version_tags.SUCCEEDS_DIGEST} and {version_tags.SUCCEEDS_RUN} name another "
            f"model than version {expected}'s; set them again"
        )


def _check_rollback(
    name: str, version: claims.Version, versions: Sequence[claims.Version], found: Findings
) -> None:
    if version.rollback_to is None:
        return
    target = next((v for v in versions if v.number == version.rollback_to), None)
    where = f"model {name!r}, version {version.number}"
    if target is None:
        found.remarks.append(
            f"{where} put back version {version.rollback_to}, which is not in the registry any more"
        )
    elif target.digest != version.digest:
        found.differences.append(
            f"{where}: its tag {claims.ROLLBACK_TO} names version {target.number}, whose model is another "
            "one; set the tag again"
        )


def check_files(
    client: Any, name: str, version: claims.Version, scratch: Path, found: Findings
) -> Path | None:
    """The version's files against the registry; their folder, None where they are not intact.

    Those of the store: copies that this machine kept are not looked at.
    """
    where = f"model {name!r}, version {version.number}"
    before = len(found.differences)
    model_id = version.source.removeprefix("models:/")
    try:
        logged = client.get_logged_model(model_id)
    except MlflowException as error:
        found.differences.append(
            f"{where}: its logged model {version.source} is gone ({error}); restore the store from a backup"
        )
        return None
    _check_tags(where, version, logged, found)
    folder = files_at(logged.artifact_location, scratch / "model")
    if not folder.is_dir():
        found.differences.append(
            f"{where}: its files are gone from {logged.artifact_location}; {RESTORE}"
        )
        return None
    faults = _faults(folder, version, logged.tags.get(pyfunc.SERVED_DIGEST, ""))
    found.differences += [
        f"{where}: {logged.artifact_location}/{fault}; {_fix(fault)}" for fault in faults
    ]
    if not faults and adapter.is_adapter(folder / pyfunc.PACKAGE):
        check_base(client, where, version, folder / pyfunc.PACKAGE, scratch, found)
    if not version.served and pyfunc.SERVED_DIGEST not in logged.tags:
        found.remarks.append(
            f"{where} was registered before the files around the package had a digest: the package is "
            "checked, and the file that MLflow runs beside MLmodel is not"
        )
    package = folder / pyfunc.PACKAGE
    if not faults and version.tokenizer and tokenizer_digest(package) != version.tokenizer:
        found.differences.append(
            f"{where}: its tag {claims.TOKENIZER} is not its tokenizer's digest; set it to "
            f"{tokenizer_digest(package)}"
        )
    if len(found.differences) > before:
        return None
    found.checked.append(f"{len(pyfunc.served_files(folder))} files of {version.source}")
    return folder


def _check_tags(where: str, version: claims.Version, logged: Any, found: Findings) -> None:
    pairs = [(claims.DIGEST, version.digest), (pyfunc.SERVED_DIGEST, version.served)]
    for tag, value in pairs:
        # Versions that were registered by earlier code have the package's digest alone.
        if value != logged.tags.get(tag, ""):
            found.differences.append(
                f"{where}: its tag {tag} holds {value[:16] + '...' if value else 'nothing'}, and that of its "
                f"logged model {logged.model_id} {logged.tags.get(tag, 'nothing')[:16]}; the files tell "
                "which one was changed: set it again"
            )
    if logged.status != "READY":
        found.differences.append(f"{where}: its logged model {logged.model_id} is {logged.status}")
    if version.rollback_to is None and logged.source_run_id != version.run_id:
        found.differences.append(
            f"{where}: its tag {claims.RUN_ID} holds {version.run_id[:40]!r}, and its logged model is of run "
            f"{logged.source_run_id}; set the tag again"
        )


def _faults(folder: Path, version: claims.Version, logged: str) -> list[str]:
    """What differs among a logged model's files, a few words each."""
    held = {f"version {version.number}": version.served, "its logged model": logged}
    registered = {where: value for where, value in held.items() if value}
    faults: list[str] = []
    if registered or (folder / pyfunc.MANIFEST).is_file():
        check = pyfunc.Check(folder, registered)
        faults = [*check.finish(), *_beside_package(folder, check.expected)]
    package = folder / pyfunc.PACKAGE
    if not package.is_dir():
        return [*faults, f"{pyfunc.PACKAGE} is gone"]
    is_adapter = adapter.is_adapter(package) and version.served
    if not faults and not is_adapter and digest.of_folder(package) != version.digest:
        return [
            f"{pyfunc.PACKAGE}: its digest is not {version.digest[:16]}..., the one of what was judged"
        ]
    return faults


def _beside_package(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """What loading accepts, and precis never wrote: stray files, Python's cache of pyfunc.py, and links."""
    files = pyfunc.served_files(folder)
    faults = [
        f"{pyfunc.printable(name)} was added"
        for name in files
        if expected and name not in expected and not name.startswith(f"{pyfunc.PACKAGE}/")
    ]
    faults += [
        f"{pyfunc.printable(name)} is a link to {pyfunc.printable(str(path.readlink()))}, where it "
        "can be changed unseen"
        for name, path in files.items()
        if path.is_symlink()
    ]
    if (folder / "__pycache__").exists():
        faults.append(
            "__pycache__ was added, and Python may run what is in it instead of pyfunc.py"
        )
    return faults


def _fix(fault: str) -> str:
    return "delete it" if " was added" in fault else RESTORE


def check_summaries(
    version: claims.Version,
    predictions: Sequence[Prediction],
    judged_on: str,
    rows: int,
    scratch: Path,
    found: Findings,
) -> int:
    """Have MLflow's pyfunc write some rows again, in a clean process, and compare with the stored texts.

    On a GPU a summary may depend on its batch, so whole first batches are written there. `judged_on`: `cpu`
    or `cuda`; where this machine has the other, texts that differ are a remark: 16 bits round otherwise.
    Returns how many were written, if all were equal; else 0.
    """
    sample = (
        [p for p in predictions if p.batch == 0]
        if judged_on == "cuda"
        else list(predictions[:: max(1, len(predictions) // rows)][:rows])
    )
    try:
        texts = step_process.run(
            "tasks.register.reload_check:predict",
            {
                "uri": version.source,
                "tracking_uri": mlflow.get_tracking_uri(),
                "documents": [p.document for p in sample],
            },
            scratch / "summaries",
            fresh=True,
        )
    except PrecisError as error:
        found.differences.append(f"version {version.number} cannot be used: {error}")
        return 0
    other = [p.id for p, text in zip(sample, texts, strict=True) if p.text != text]
    if not other:
        found.checked.append(f"{len(sample)} stored summaries, written again and equal")
        return len(sample)
    if judged_on and judged_on != device.compute():
        found.remarks.append(
            f"{len(other)} of {len(sample)} summaries differ from the stored ones: they were written on "
            f"{judged_on}, and this machine has {device.compute()}; verify it there"
        )
    else:
        found.differences.append(
            f"version {version.number} does not write what was judged: of {len(sample)} stored summaries "
            f"{len(other)} differ (rows {', '.join(other[:5])}); its files are as registered, so look at "
            "this machine's library versions, and at Python's __pycache__ beside MLmodel"
        )
    return 0
