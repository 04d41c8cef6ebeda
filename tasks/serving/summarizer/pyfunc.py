"""The file that MLflow runs to serve a package (models from code): it checks all files, then loads the code.

MLflow copies this one file beside MLmodel; the package, this folder in it, is the model's artifact
`package`. Imported as part of that folder or of the project, this file only defines the loader and the check
and does without MLflow, whose import takes two seconds.

A manifest beside MLmodel has a digest of every file, this one included; the manifest's own digest is a tag
of the version and of the logged model, in MLflow's registry. Who can write to the store, but not to the
registry, changes nothing unnoticed, unless they put another file in place of this one, check and all: then
`precis verify` notices.

Over 250 lines: MLflow copies one file.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

CODE_FOLDER = "summarizer"  # of a package
PACKAGE = "artifacts/package"  # of a logged model
MANIFEST = "precis_manifest.json"  # of a logged model
SERVED_DIGEST = (
    "precis.served_digest"  # tag of a version and a logged model: the manifest's SHA-256
)
MLFLOW_ADDS = "registered_model_meta"  # beside MLmodel, whenever MLflow loads a version
PIECE_BYTES = (
    16 * 2**20
)  # hashed by one thread; a larger file's digest is that of its pieces' digests
READ_BYTES = 2**20
SHOWN_FAULTS = 5


class PackageChanged(RuntimeError):
    """A logged model's files are not those that were registered."""

    def __init__(self, model: Path, faults: Iterable[str]) -> None:
        listed = [*faults]
        shown = "; ".join(listed[:SHOWN_FAULTS])
        shown += f"; and {len(listed) - SHOWN_FAULTS} more" if len(listed) > SHOWN_FAULTS else ""
        super().__init__(
            f"{model} is not the model that was registered: {shown}. It is not served. Fetch it again "
            "(delete this copy and load models:/NAME@champion); where the store itself has changed, restore "
            "it from a backup, or put an earlier version back (`precis rollback`). `precis verify NAME` "
            "names all that differs"
        )


class _FromSource(importlib.machinery.SourceFileLoader):
    """Compiles a file whenever it is loaded: a compiled one in __pycache__ is covered by no digest."""

    def path_stats(self, path: Any) -> Mapping[str, Any]:
        """Raise OSError: Python then neither reads nor writes its cache."""
        raise OSError(f"{path} is loaded from its source")


def load_code(package: Path) -> ModuleType:
    """A package's own code (its folder `summarizer/`), under a module name that nothing else has.

    So versions loaded in one process share no code. The name stays in sys.modules: submodules that are
    imported late, in any thread, are looked up by it. Raises ImportError where the package has no code.
    """
    folder = (package / CODE_FOLDER).absolute()  # late imports must find it from any folder
    file = folder / "__init__.py"
    if not file.is_file():
        raise ImportError(f"{package} has no {CODE_FOLDER}/__init__.py, the code it is served with")
    name = f"precis_package_{uuid.uuid4().hex}"
    spec = importlib.util.spec_from_file_location(
        name, loader=_FromSource(name, str(file)), submodule_search_locations=[str(folder)]
    )
    # Submodules are looked for by the finder of their folder.
    finder = importlib.machinery.FileFinder(str(folder), (_FromSource, [".py"]))
    sys.path_importer_cache[str(folder)] = finder
    assert spec is not None  # its name ends in .py
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        for loaded in [key for key in list(sys.modules) if key.partition(".")[0] == name]:
            del sys.modules[loaded]
        raise
    return module


# --- What is served: every file, in a manifest ----------------------------------------------------


def served_files(model: Path) -> dict[str, Path]:
    """The files of a logged model by name, but for hidden ones, Python's caches, and what MLflow adds.

    A link to a folder is one of them: Python would run code from there.
    """
    files = {}
    for path in sorted(model.rglob("*")):
        parts = path.relative_to(model).parts
        left_out = any(part.startswith(".") or part == "__pycache__" for part in parts)
        is_file = path.is_file() or path.is_symlink()
        if is_file and not left_out and parts not in ((MLFLOW_ADDS,), (MANIFEST,)):
            files["/".join(parts)] = path
    return files


def printable(name: str) -> str:
    """A file's name on one line, whatever bytes it is of."""
    return name if name.isprintable() else ascii(name)


def file_digests(files: Mapping[str, Path]) -> dict[str, str]:
    """Of each file by its name: SHA-256, of a large one that of its pieces' (see `_digest`)."""
    with _pool() as pool:
        return {name: _digest(path, pool) for name, path in files.items()}


def write_manifest(model: Path) -> str:
    """Write a logged model's manifest; returns its digest, for the registry."""
    digests = file_digests(served_files(model))
    text = json.dumps({"piece_bytes": PIECE_BYTES, "files": digests}, indent=1) + "\n"
    (model / MANIFEST).write_text(text, encoding="utf-8")
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_digest(model: Path) -> str:
    """The digest of a logged model's manifest as it is now; empty where it has none."""
    file = model / MANIFEST
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


class Check:
    """A logged model's files against its manifest, and that against what the registry holds.

    `registered`: the manifest's digest by where it is held. The small files, all code among them, are
    checked at once; the large ones while the caller goes on, until `finish`. `package`: whether the content
    of its files is checked too, or only that they are those of the manifest.
    """

    def __init__(self, model: Path, registered: Mapping[str, str], package: bool = True) -> None:
        self.model, self.faults = model, [*_manifest_faults(model, registered)]
        self._pool = _pool()
        self._large: dict[str, Future[str]] = {}
        self.expected = {} if manifest_digest(model) == "" else _read_manifest(model, self.faults)
        found = served_files(model)
        missing = [name for name in self.expected if name not in found]
        self.faults += [f"{printable(name)} is missing" for name in missing]
        # Beside the package a stray file is harmless: MLflow runs what MLmodel names.
        extra = (n for n in found if _in_package(n) and n not in self.expected)
        self.faults += [f"{printable(name)} was added" for name in extra if self.expected]
        for name, digest in self.expected.items():
            if name not in found or (_in_package(name) and not package):
                continue
            path = found[name]
            if not path.is_file():
                self.faults.append(f"{printable(name)} is a link that leads to no file")
            elif path.stat().st_size > PIECE_BYTES:
                # A thread of its own: it waits for those of the pieces.
                self._large[name] = _started(partial(_digest, path, self._pool))
            elif _digest(path, self._pool) != digest:
                self.faults.append(f"{printable(name)} was changed")

    def require(self) -> None:
        """Raise PackageChanged for what has been found so far."""
        if self.faults:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise PackageChanged(self.model, self.faults)

    def finish(self) -> list[str]:
        """Wait for the large files; all that differs, a few words each."""
        for name, digest in self._large.items():
            if digest.result() != self.expected[name]:
                self.faults.append(f"{printable(name)} was changed")
        self._pool.shutdown()
        return self.faults


def _in_package(name: str) -> bool:
    return name.startswith(f"{PACKAGE}/")


def _manifest_faults(model: Path, registered: Mapping[str, str]) -> Iterable[str]:
    own = manifest_digest(model)
    if not own:
        yield f"it has no {MANIFEST}"
    for where, digest in registered.items():
        if own and own != digest:
            yield f"the digest of its {MANIFEST} is not the one that {where} holds"


def _read_manifest(model: Path, faults: list[str]) -> dict[str, str]:
    try:
        content = json.loads((model / MANIFEST).read_bytes())
        files = content["files"]
        if content["piece_bytes"] != PIECE_BYTES:
            raise ValueError("piece_bytes")
        return {str(name): str(digest) for name, digest in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        faults.append(f"its {MANIFEST} cannot be read")
        return {}


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1))


def _started(work: Callable[[], str]) -> Future[str]:
    with_one = ThreadPoolExecutor(1)
    future = with_one.submit(work)
    with_one.shutdown(wait=False)
    return future


def _digest(path: Path, pool: ThreadPoolExecutor) -> str:
    """SHA-256 of a file; of one of several pieces, of its pieces' SHA-256s, which threads compute."""
    size = path.stat().st_size
    if size <= PIECE_BYTES:
        return _piece(path, 0).hex()
    pieces = pool.map(lambda start: _piece(path, start), range(0, size, PIECE_BYTES))
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def _piece(path: Path, start: int) -> bytes:
    piece, buffer, left = hashlib.sha256(), memoryview(bytearray(READ_BYTES)), PIECE_BYTES
    with path.open("rb", buffering=0) as stream:
        stream.seek(start)
        while left and (count := stream.readinto(buffer[:left])):
            piece.update(buffer[:count])
            left -= count
    return piece.digest()


if not __package__:  # run by MLflow, under a name of MLflow's own
    import mlflow
    import pandas

    def remove_own_cache() -> None:
        """Remove what Python has just compiled of this file: one that lies there is run unchecked.

        So `precis verify` may take any for an intruder.
        """
        cached = Path(globals().get("__cached__") or "")
        if cached.parent == Path(__file__).parent / "__pycache__":
            with contextlib.suppress(OSError):  # not ours to write, or others' caches in it
                cached.unlink()
                cached.parent.rmdir()

    class Summarizer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """`mlflow.pyfunc` around a Generator: documents in, a list of summaries out."""

        def load_context(self, context: Any) -> None:
            """Check the model's files, and load the package from them, with its own code.

            Raises PackageChanged for files that are not those that were registered.
            """
            package, model = Path(context.artifacts["package"]), Path(__file__).parent
            check = Check(model, registered_digests(model))
            check.require()  # before any of the package's code runs
            self.code = load_code(package)
            if "mlflow.pyfunc.scoring_server" in sys.modules:
                importlib.import_module(f"{self.code.__name__}.scoring_server").fit_server()
            adapter = importlib.import_module(f"{self.code.__name__}.adapter")
            with adapter.with_weights(package) as whole:
                self.generator = self.code.Generator(whole)
            check.finish()
            check.require()

        # From this hint MLflow infers nothing. Of others it makes rules of its own: under list[str] the first
        # column of a DataFrame is all that arrives. What may be given is in request_documents.py.
        def predict(
            self, context: Any, model_input: pandas.DataFrame, params: Any = None
        ) -> list[str] | pandas.DataFrame:
            """Summaries of the documents, in their order; with params {"truncated": True} a DataFrame of
            `summary` and `truncated`, whether something was cut from its document.

            Raises ValueError for rows that are no documents, and params that cannot be had.
            """
            settings, tells = self.code.asked_for(params, self.generator.settings)
            documents = self.code.documents_of(model_input, settings)
            generator = self.generator
            if settings != generator.settings:
                generator = copy.copy(generator)  # others are answered at the same time
                generator.settings = settings
            summaries = generator.summarize(documents)
            texts = [summary.text for summary in summaries]
            if not tells:
                return texts
            was_cut = [summary.cut_tokens > 0 for summary in summaries]
            return pandas.DataFrame({"summary": texts, "truncated": was_cut})

    def registered_digests(model: Path) -> dict[str, str]:
        """The digest of a model's manifest by where MLflow holds it; if there is none, the log says so."""
        if not mlflow.is_tracking_uri_set():
            return {}  # a folder by itself; asking would make a store here
        found, log = {}, logging.getLogger("precis")
        waits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
        own = {name: value for name, value in waits.items() if name not in os.environ}
        os.environ.update(own)  # by default MLflow tries for minutes
        try:
            for where, ask in _registered_as(model).items():
                try:
                    digest = ask().tags.get(SERVED_DIGEST)
                except Exception as error:  # noqa: BLE001 - whatever fails, its manifest is there
                    log.warning("%s could not be asked for the digest: %s", where, error)
                    continue
                if digest:
                    found[where] = digest
        finally:
            for name in own:
                os.environ.pop(name, None)
        if not found:
            log.warning("%s was checked against its own %s alone", model, MANIFEST)
        return found

    def _registered_as(model: Path) -> dict[str, Callable[[], Any]]:
        """What MLflow can be asked of a model: its logged model, and the version that is being loaded.

        The first stands in MLmodel; the second MLflow writes beside it, just before.
        """
        import yaml

        def client() -> mlflow.MlflowClient:
            return mlflow.MlflowClient()  # as late as it asks: MLflow may not take the tracking URI

        asked: dict[str, Callable[[], Any]] = {}
        try:
            if model_id := mlflow.models.Model.load(str(model)).model_id:
                asked[f"MLflow's logged model {model_id}"] = lambda: client().get_logged_model(
                    model_id
                )
            if (model / MLFLOW_ADDS).is_file():
                meta = yaml.safe_load((model / MLFLOW_ADDS).read_text(encoding="utf-8"))
                name, version = str(meta["model_name"]), str(meta["model_version"])
                asked[f"version {version} of {name}"] = lambda: client().get_model_version(
                    name, version
                )
        except (
            mlflow.exceptions.MlflowException,
            OSError,
            ValueError,
            KeyError,
            TypeError,
            yaml.YAMLError,
        ):
            pass  # its files are compared with the manifest in any case
        return asked

    remove_own_cache()
    mlflow.models.set_model(Summarizer())
