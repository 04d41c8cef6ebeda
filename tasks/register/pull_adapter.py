"""A verified copy of an adapter and of its dequantized base, for engines that add adapters to a base.

Both lie side by side in one folder, under names of their own: `demo-v3` in PEFT's format, and
`precis-base-DIGEST`, which other adapters pulled there share. Each is there whole, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from tasks.contracts import digest
from tasks.contracts.errors import RegistryError, StoreUnavailable
from tasks.contracts.units import GIB
from tasks.register import lookup
from tasks.register.pull import INCOMING, RECORD, Pulled, locked
from tasks.serving.summarizer import SETTINGS_FILE, adapter, pyfunc
from tasks.serving.summarizer.adapter import BaseChanged, StoredBase
from tasks.tracking import artifacts

# Of the package, beside the adapter's own files: what engines are told of prompts and limits.
BESIDE = (adapter.RECORD, SETTINGS_FILE, "chat_template.jinja", "generation_config.json")
Wanted = dict[str, tuple[str, str]]  # path in the store and digest, by name in the folder


@dataclass(frozen=True)
class PulledAdapter:
    """What was pulled: the adapter, and its base."""

    adapter: Pulled
    base: Pulled


def pull_adapter(client: Any, reference: str, folder: Path) -> PulledAdapter:
    """Copy the adapter that `reference` names, and its base, to folders of their own in `folder`.

    Raises RegistryError when there is no such model, when it holds no adapter, when one of the folders holds
    something else, when the disk is full, and when the store's files are not those that were judged; what is
    in `folder` is then as it was.
    """
    model = lookup.resolve(client, reference)
    folder = folder.absolute()
    try:
        served, base = _pulled_alone(client, model, folder)
        with locked(folder / base.name):
            files = {name: (name, file_digest) for name, file_digest in base.files.items()}
            stored = lookup.LoggedModel(base.uri, base.digest, base.name)
            whole = _pulled(stored, files, folder / base.name)
    except (MlflowException, OSError) as error:
        raise StoreUnavailable(
            f"{model.title} could not be pulled ({error}); run the same command again: it goes on with what "
            f"is missing in {folder}"
        ) from error
    return PulledAdapter(served, whole)


def pull_for_base(client: Any, reference: str, folder: Path, base_digest: str) -> Pulled:
    """Copy the adapter that `reference` names to a folder of its own in `folder`, without its base.

    Raises RegistryError as `pull_adapter`, and for an adapter of another base than that of `base_digest`.
    """
    model = lookup.resolve(client, reference)
    try:
        return _pulled_alone(client, model, folder.absolute(), base_digest)[0]
    except (MlflowException, OSError) as error:
        raise StoreUnavailable(f"{model.title} could not be pulled ({error}); ask again") from error


def _pulled_alone(
    client: Any, model: lookup.LoggedModel, folder: Path, base_digest: str = ""
) -> tuple[Pulled, StoredBase]:
    """The adapter, and the base that it names. `base_digest`: the only one that it may belong to."""
    if folder.exists() and not folder.is_dir():
        raise RegistryError(f"{folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    own = folder / re.sub(r"[^A-Za-z0-9_.-]+", "-", model.title)
    with locked(own):
        wanted, base = _wanted(client, model, own)
        if base_digest not in ("", base.digest):
            raise RegistryError(
                f"{model.title} belongs on {base.name}, and the served base has the digest "
                f"{base_digest[:16]}...; serve that base, or name an adapter of this one"
            )
        return _pulled(model, wanted, own), base


def _wanted(client: Any, model: lookup.LoggedModel, own: Path) -> tuple[Wanted, StoredBase]:
    """The adapter's files, and its base, as the registry's digest covers them."""
    repository = artifacts.repository_of_model(model.uri)
    scratch = own.with_name(f".{own.name}.manifest")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        held = client.get_logged_model(model.uri.removeprefix("models:/")).tags
        manifest = _downloaded(repository, pyfunc.MANIFEST, scratch)
        if hashlib.sha256(manifest.read_bytes()).hexdigest() != held.get(pyfunc.SERVED_DIGEST):
            raise RegistryError(
                f"{model.title} is not what was registered: the digest of its {pyfunc.MANIFEST} is not the "
                "one that MLflow holds; restore the store from a backup, or pull another version"
            )
        digests: dict[str, str] = json.loads(manifest.read_bytes())["files"]
        record = f"{pyfunc.PACKAGE}/{adapter.RECORD}"
        if record not in digests:
            raise RegistryError(
                f"{model.title} holds the merged model, and its base as the adapter was trained on it is not "
                "stored: pull it without --adapter, or train with register.as: adapter"
            )
        _require(_downloaded(repository, record, scratch), digests[record], model.title)
        return _of_package(digests), adapter.base_of(scratch)
    except BaseChanged as error:
        raise RegistryError(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _of_package(digests: dict[str, str]) -> Wanted:
    wanted: Wanted = {}
    for path, file_digest in digests.items():
        name = path.removeprefix(f"{pyfunc.PACKAGE}/")
        own = name.removeprefix(f"{adapter.FOLDER}/")
        if own in (adapter.CONFIG, adapter.WEIGHTS) or name in BESIDE:
            wanted[own] = (path, file_digest)
    return wanted


def _pulled(model: lookup.LoggedModel, wanted: Wanted, folder: Path) -> Pulled:
    """Fetch what `folder` is to hold; it gets its name once each file is the one that was stored."""
    title = model.title
    content = hashlib.sha256(json.dumps(sorted(wanted.items())).encode()).hexdigest()
    if folder.exists():
        _require_same(title, wanted, folder)
        return Pulled(title, model.digest, folder, 0, 0, _size(folder))
    repository = artifacts.repository_of_model(model.uri)
    partial = folder.with_name(f".{folder.name}.pull-{content[:16]}")
    partial.mkdir(exist_ok=True)
    shutil.rmtree(partial / INCOMING, ignore_errors=True)
    there = adapter.digests_in(partial)
    for name in there.keys() - wanted.keys():
        (partial / name).unlink()
    missing = [name for name, (_, expected) in wanted.items() if there.get(name) != expected]
    _require_room(repository, [wanted[name][0] for name in missing], partial)
    for name in missing:
        path, expected = wanted[name]
        (partial / INCOMING).mkdir()
        file = _downloaded(repository, path, partial / INCOMING)
        _require(file, expected, title)
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        file.replace(partial / name)
        shutil.rmtree(partial / INCOMING)
    (partial / RECORD).write_text(json.dumps({"title": title, "digest": model.digest}) + "\n")
    partial.rename(folder)
    kept = len(wanted) - len(missing)
    return Pulled(title, model.digest, folder, len(missing), kept, _size(folder))


def _require_same(title: str, wanted: Wanted, folder: Path) -> None:
    expected = {name: file_digest for name, (_, file_digest) in wanted.items()}
    there = adapter.digests_in(folder) if folder.is_dir() else {}
    if there != expected:
        odd = sorted(n for n in there.keys() | expected if there.get(n) != expected.get(n))
        raise RegistryError(
            f"{folder} is there, and is not {title}: {', '.join(odd[:5])} differ; remove it and pull again, "
            "or name another folder"
        )


def _require(file: Path, expected: str, title: str) -> None:
    if pyfunc.file_digests({"": file})[""] != expected:
        name = file.name
        file.unlink()
        raise RegistryError(
            f"{title} is not what was judged: {name} was changed in the store; restore the store from a "
            "backup, or pull another version"
        )


def _require_room(repository: Any, paths: list[str], partial: Path) -> None:
    folders = {path.rpartition("/")[0] for path in paths}
    sizes = {e.path: int(e.file_size or 0) for f in folders for e in repository.list_artifacts(f)}
    needed, free = sum(sizes.get(path, 0) for path in paths), shutil.disk_usage(partial).free
    if needed > free:
        raise RegistryError(
            f"{needed / GIB:.2f} GiB more are needed in {partial.parent}, where {free / GIB:.2f} GiB are "
            "free; free some space, or name a folder on another disk"
        )


def _downloaded(repository: Any, path: str, target: Path) -> Path:
    """Fetch one file to `target`, by its last name."""
    found = Path(repository.download_artifacts(path, str(target)))
    return found.rename(target / found.name)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in digest.visible_files(folder))
