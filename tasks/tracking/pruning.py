"""What may be removed of runs that are over: files to compute with, and the adapters of refused challengers.

Kept whatever is asked: logged models of versions, the adapters of their runs, data, tables, decisions and
history. So lineage, `who-learned` and `verify` answer as before; a rerun computes again what is gone.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import metrics
from tasks.contracts.errors import PrecisError, RegistryError
from tasks.contracts.records import AdapterRef
from tasks.processes import workspace
from tasks.processes.file_lock import hold_lock
from tasks.tracking import artifacts, history, mlflow_run, step_cache
from tasks.tracking.making import PRUNED

# Steps whose working folders are named by a step key; evaluation has some for metrics by a model.
STEPS = {
    "train": ("train",),
    "merge": ("merge",),
    "evaluate": ("evaluate", metrics.NLI, metrics.BERTSCORE),
}
REFUSED = ("REJECT", "INCONCLUSIVE", "NOT_APPROVED")  # verdicts
ADAPTER = "adapter"  # the artifact folder that training stores
# By the run's id.
OF_A_RUN = (
    *("data", "ingest", "gate", "sealed", "sealed-gate", "register", "approval"),
    "dequantized",
)
GOES_ON = ("RUNNING", mlflow_run.SCHEDULED)  # SCHEDULED: waits for people's approval


@dataclass(frozen=True)
class Removal:
    """Something to remove. `folder`: on this machine; None: the artifact `path` of the run, in the store."""

    run_id: str
    what: str
    path: str
    bytes: int
    folder: Path | None


def removals(client: Any, name: str, protected: set[str], keep: int) -> list[Removal]:
    """What to remove of all retrains of a model but the newest `keep`.

    `protected`: the runs of its versions, whose adapters stay. Raises RegistryError for an edited tag, which
    may have named an adapter that is in use.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return []
    retrains = "tags.`precis.flow` = 'retrain'"
    runs = list(history.runs(client, experiment.experiment_id, retrains))  # newest first
    over = [run for run in runs[keep:] if _is_over(run, protected)]
    gone = {run.info.run_id for run in over}
    used = [run for run in runs if run.info.run_id not in gone] + _going_on_elsewhere(client)
    folders = {folder for run in used for folder in _folders(run)}
    adapters = {
        adapter.uri
        for run in runs
        if run.info.run_id not in gone or run.info.run_id in protected or not _was_refused(run)
        for adapter in step_cache.results_of(run, "train", AdapterRef)
    }
    found: dict[str, Removal] = {}
    for run in over:
        for folder in _folders(run):
            if folder not in folders and folder.is_dir():
                found[str(folder)] = Removal(
                    run.info.run_id, "working files", str(folder), _size(folder), folder
                )
        for uri in {a.uri for a in step_cache.results_of(run, "train", AdapterRef)}:
            owner, _, path = uri.removeprefix("runs:/").partition("/")
            # An adapter that an earlier run trained goes with that run.
            own = owner == run.info.run_id and path == ADAPTER
            if own and uri not in adapters | set(found):
                artifacts.remember_root(run.info)
                if size := _stored_bytes(owner, path):
                    found[uri] = Removal(owner, "the adapter", path, size, None)
    return list(found.values())


def remove(client: Any, items: Sequence[Removal], when: str) -> Iterator[tuple[Removal, str]]:
    """Remove each; yields it with why it stayed, empty where it is gone. A tag tells a run's lost adapter."""
    for item in items:
        problem = ""
        try:
            if item.folder is None:  # first, so no adapter is ever gone without a trace
                client.set_tag(item.run_id, PRUNED, f"{when}: {item.what}")
            _remove(item)
        except Exception as error:  # noqa: BLE001 - of any store's own library; the others go on
            problem = str(error) or type(error).__name__
        yield item, problem


def _remove(item: Removal) -> None:
    if item.folder is None:
        artifacts.repository_of(item.run_id).delete_artifacts(item.path)
        artifacts.forget(f"runs:/{item.run_id}/{item.path}")
        return
    busy = RegistryError(f"{item.folder} is in use; prune again when that run has ended")
    with contextlib.ExitStack() as stack:
        if item.folder.parent.name in STEPS:  # a step that computes in it holds its lock
            stack.enter_context(hold_lock(item.folder / "lock", 0.0, busy))
        shutil.rmtree(item.folder)


def _is_over(run: Any, protected: set[str]) -> bool:
    """Whether nothing more comes of a run: one that passed the gate may still be registered."""
    if run.info.status in GOES_ON:
        return False
    verdict = run.data.tags.get("precis.verdict")
    # A process that died between its question and its end leaves a waiting run of another status.
    waits = verdict == "WAITS_FOR_APPROVAL" and not _was_withdrawn(run)
    return not (verdict == "PROMOTE" or waits) or run.info.run_id in protected


def _was_withdrawn(run: Any) -> bool:
    """Whether its question ended without an answer (history.withdraw_question)."""
    with contextlib.suppress(ValueError, AttributeError, KeyError):  # of anyone's tag
        return bool(json.loads(run.data.tags[history.RECORD]).get("approval") == "expired")
    return False


def _was_refused(run: Any) -> bool:
    """Whether its adapter has no use: from that of a run which failed after training the next one goes on."""
    return run.data.tags.get(history.VERDICT) in REFUSED or _was_withdrawn(run)


def _folders(run: Any) -> Iterator[Path]:
    """The working folders of a run on this machine, whether they exist or not."""
    work, tags = workspace.work_folder(), run.data.tags
    for step, kinds in STEPS.items():
        prefix = f"{step_cache.STEP_TAGS}{step}."
        for key in (tag.removeprefix(prefix)[:16] for tag in tags if tag.startswith(prefix)):
            if re.fullmatch("[0-9a-f]{16}", key):  # of anyone's tag: never a path
                yield from (work / kind / key for kind in kinds)
    for kind in OF_A_RUN:
        yield work / kind / run.info.run_id


def _going_on_elsewhere(client: Any) -> list[Any]:
    """Runs of any model that are going on, or wait for approval: they may use the same step's files."""
    experiments = [each.experiment_id for each in client.search_experiments()]
    return [
        run
        for status in GOES_ON
        for run in client.search_runs(
            experiments, f"attributes.status = '{status}'", max_results=1000
        )
    ]


def _stored_bytes(run_id: str, path: str) -> int:
    """The size of an artifact folder in the store; 0 where it is gone."""
    try:
        repository = artifacts.repository_of(run_id)
        return sum(_listed(repository, path))
    except PrecisError:
        return 0


def _listed(repository: Any, path: str) -> Iterable[int]:
    for entry in repository.list_artifacts(path):
        if entry.is_dir:
            yield from _listed(repository, entry.path)
        else:
            yield entry.file_size or 0


def _size(folder: Path) -> int:
    """Bytes that removing a folder frees: files with another name (hard links) free nothing."""
    facts = [path.lstat() for path in folder.rglob("*") if not path.is_dir()]
    return sum(fact.st_size for fact in facts if fact.st_nlink == 1)
