"""Which models learned from a training row, or from a document: asked when it must be forgotten.

Not searched: what a recipe's base was trained on. Ask for the base's own name where precis made it too."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import DataError, NoSuchChampion, RegistryError
from tasks.contracts.formatting import listed
from tasks.contracts.recipe import NAME, Data
from tasks.contracts.records import DatasetRef
from tasks.ingest.task import LearnedRow, learned_rows
from tasks.register.task import require_known, trained_by, versions_of
from tasks.tracking import connection, history, making

SCHEMA_VERSION = 1
MAX_ROWS = 3  # of a version that are named on a terminal
HOW = {
    "id": "",
    "exact": "the same document",
    "similar": "a document like it",
    "holds": "a document that holds it",
    "part": "a part of it",
}

# Model, version, run and data.
Trained = tuple[str, int | None, str, tuple[DatasetRef, ...]]


@dataclass(frozen=True)
class Learner:
    """A model that was trained on such rows. `version`: None for a challenger that was never registered."""

    name: str
    version: int | None
    run_id: str
    train_digest: str
    rows: tuple[LearnedRow, ...]

    def line(self) -> str:
        """One line for a terminal."""
        who = f"v{self.version}" if self.version else f"no version: run {self.run_id}"
        rows = [f"{row.id!r}{f' ({HOW[row.how]})' if HOW[row.how] else ''}" for row in self.rows]
        return f"{self.name} {who}: row {listed(rows, MAX_ROWS)}"


@dataclass(frozen=True)
class Answer:
    """Who learned it. `unknown`: models of which it cannot be told, with the reason."""

    learners: tuple[Learner, ...]
    searched: int  # models, versions and challengers
    unknown: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self) | {"schema_version": SCHEMA_VERSION}

    def as_text(self) -> str:
        """For a terminal."""
        lines = [learner.line() for learner in self.learners]
        lines = lines or [f"none of {self.searched} trained models learned from it"]
        return "\n".join([*lines, *(f"not known: {text}" for text in self.unknown)])


def who_learned(row_id: str | None, document: str | None, name: str | None) -> Answer:
    """Search the stored training rows of every model that was trained, of model `name` alone if given.

    `row_id`: as the rows have it; `document`: a file, or - for standard input. Raises DataError for a
    document that cannot be read or is blank, NoSuchChampion for a name that nobody knows.
    """
    if name is not None:
        require_known(name)
    text = None if document is None else _read(document)
    if connection.nothing_yet():
        raise NoSuchChampion(f"nothing was ever trained in {connection.shown_uri()}")
    client = connection.connect()
    every = [name] if name else [each.name for each in client.search_experiments()]
    names = [each for each in every if re.match(NAME, each)]  # others are no recipe's
    similarity, containment = (
        float(Data.model_fields[field].default)
        for field in ("near_duplicate_jaccard", "near_duplicate_containment")
    )
    like = similarity, containment
    found: dict[str, list[LearnedRow] | str] = {}  # rows by the digest of a dataset, or why not
    learners, unknown, searched = [], [], 0
    for each in _trained(client, names):
        if isinstance(each, str):
            unknown.append(each)
            continue
        model, version, run_id, datasets = each
        searched += 1
        if not datasets:
            unknown.append(
                f"{_title(model, version, run_id)}: its run has no training rows on record"
            )
        for dataset in datasets:
            if dataset.train_digest not in found:
                try:
                    found[dataset.train_digest] = learned_rows(dataset, row_id, text, like)
                except RegistryError as error:
                    found[dataset.train_digest] = str(error)
            rows = found[dataset.train_digest]
            if isinstance(rows, str):
                unknown.append(f"{_title(model, version, run_id)}: {rows}")
            elif rows:
                learners.append(Learner(model, version, run_id, dataset.train_digest, tuple(rows)))
    return Answer(tuple(learners), searched, tuple(unknown))


def _title(model: str, version: int | None, run_id: str) -> str:
    return f"{model} v{version}" if version else f"{model}, run {run_id}"


def _trained(client: Any, names: list[str]) -> Iterator[Trained | str]:
    """All that was trained: versions first, then other challengers; or why it cannot be told of one.

    Tags that were edited end the search of what they belong to, and of nothing else.
    """
    for name in names:
        of_versions, versions = set(), []
        try:
            versions = versions_of(client, name)
        except RegistryError as error:
            yield f"{name}, its versions (their runs are searched): {error}"
        for version in versions:
            try:
                run_id = trained_by(client, name, version)
                of_versions.add(run_id)
                made = making.find(client, run_id, version.digest)
                yield name, version.number, run_id, made.datasets
            except RegistryError as error:
                yield f"{name} v{version.number}: {error}"
        experiment = client.get_experiment_by_name(name)
        retrains = "tags.`precis.flow` = 'retrain'"
        for run in history.runs(client, experiment.experiment_id, retrains) if experiment else ():
            if run.info.run_id in of_versions:
                continue
            try:
                if making.has_trained(run):
                    yield name, None, run.info.run_id, making.of(run).datasets
            except RegistryError as error:
                yield f"{name}, run {run.info.run_id}: {error}"


def _read(document: str) -> str:
    where = "standard input" if document == "-" else document
    try:
        content = sys.stdin.buffer.read() if document == "-" else Path(document).read_bytes()
        text = content.decode()
    except OSError as error:
        raise DataError(f"{document} cannot be read: {error}; correct the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from error
    if not text.strip():
        raise DataError(f"{where} is empty; give the text of a document")
    return text
