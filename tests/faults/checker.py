"""The checker: what must hold of a trial's folder, whatever happened in it.

Its facts are read through MlflowClient, from files, /proc and Prefect's database; the decision is computed
again with the rouge-score package and a bootstrap of its own. Of precis only two commands are asked, beside
that: `precis verify` and `precis history`.

Over 250 lines: all that is promised is checked in one place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from home import Home, Registry, temporary
from mlflow.artifacts import download_artifacts
from rouge_score.rouge_scorer import RougeScorer
from tiny_run import NAME

SUCCEEDS, FINISHED, DIGEST, RUN = (
    "precis.succeeds",
    "precis.finished",
    "precis.model_digest",
    "precis.run_id",
)
ROLLBACK_TO, SERVED, RECORD = "precis.rollback_to", "precis.served_digest", "precis.history"
RESAMPLES, LEVEL = 2000, 0.05
LEASE_SECONDS = 120.0  # a lease of 60 s that was just renewed, and a busy server
TAKEN = "SELECT name, active_slots FROM concurrency_limit_v2 WHERE active_slots > 0"


@dataclass
class Changes:
    """What a trial did to the registry with its own hands: the checker allows that, and no more."""

    aliases: set[int | None] = field(default_factory=set)
    deleted: dict[int, str] = field(default_factory=dict)  # versions, and their models' digests


@dataclass
class Checker:
    """`violations` grows with each check; empty: all that is promised held."""

    home: Home
    before: Registry
    changes: Changes = field(default_factory=Changes)
    violations: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        mlflow.set_tracking_uri(self.home.uri)  # which downloads need; a fresh copy of each file
        self.client = mlflow.MlflowClient(self.home.uri)
        self.judged: set[int] = set(self.before.versions)  # made by the same code without faults

    def holds(self, what: bool, otherwise: str) -> None:
        if not what:
            self.violations.append(otherwise)

    def after_the_fault(self) -> None:
        """The run has ended, or was killed: nobody was let in, and nothing of it runs."""
        left = self.home.gone()
        self.holds(not left, f"processes are left: {left}")
        self._locks()
        found = self.versions()
        alias = self.home.settled().alias
        allowed = {self.before.alias, *self.changes.aliases}
        if alias not in allowed:
            self.holds(alias in found, f"the alias points at v{alias}, which does not exist")
        self._versions(found)

    def at_the_end(self, aged: bool, allowed_open: bool = False) -> Registry:
        """After the retry: all of it is whole, told once, and nothing is left behind."""
        self.after_the_fault()
        found, registry = self.versions(), self.home.settled()
        finished = sorted(registry.finished)
        if not allowed_open:
            self.holds(registry.versions == registry.finished, f"open claims: {registry}")
            self.holds(
                registry.alias == (finished[-1] if finished else None), f"the alias: {registry}"
            )
        self._chain(found)
        self._history(found)
        self._left_behind(aged)
        if finished:
            self._verify()
        return registry

    def versions(self) -> dict[int, Any]:
        """MLflow's versions by number."""
        listed = self.client.search_model_versions(f"name = '{NAME}'")
        return {int(version.version): version for version in listed}

    def _versions(self, found: dict[int, Any]) -> None:
        """Each version is whole, and passed the gate against the champion that it succeeds."""
        for number, version in found.items():
            if number in self.judged:
                continue
            tags = version.tags
            missing = [tag for tag in (SUCCEEDS, DIGEST, RUN) if not tags.get(tag)]
            self.holds(not missing, f"v{number} has no {missing}")
            if missing:
                continue
            self._whole(number, version)
            if ROLLBACK_TO not in tags:
                self._passed(number, version, found)
            if FINISHED in tags:
                self.judged.add(number)

    def _whole(self, number: int, version: Any) -> None:
        """The logged model is READY, and each of its files is the one of the manifest."""
        logged = self.client.get_logged_model(version.source.removeprefix("models:/"))
        self.holds(
            str(logged.status) in ("READY", "LoggedModelStatus.READY"),
            f"v{number}: {logged.status}",
        )
        folder = Path(download_artifacts(artifact_uri=version.source))
        manifest = folder / "precis_manifest.json"
        if not manifest.is_file():
            self.violations.append(f"v{number} has no manifest")
            return
        text = manifest.read_bytes()
        self.holds(
            hashlib.sha256(text).hexdigest() == version.tags.get(SERVED),
            f"v{number}: another manifest than the registry names",
        )
        for name, expected in json.loads(text)["files"].items():
            file = folder / name
            content = file.read_bytes() if file.is_file() else b""
            self.holds(
                hashlib.sha256(content).hexdigest() == expected, f"v{number}: {name} differs"
            )

    def _passed(self, number: int, version: Any, found: dict[int, Any]) -> None:
        """The decision that is stored by its run is of these models, and follows from their texts."""
        run = version.tags[RUN]
        folder = Path(download_artifacts(artifact_uri=f"runs:/{run}/sealed/gate"))
        inputs = json.loads((folder / "gate_inputs.json").read_text())
        decision = json.loads((folder / "decision.json").read_text())
        succeeds = int(version.tags[SUCCEEDS])
        self.holds(decision["verdict"] == "PROMOTE", f"v{number}: decided {decision['verdict']}")
        scores = inputs["scores"]
        self.holds(
            scores["challenger"]["model_digest"] == version.tags[DIGEST],
            f"v{number}: another model was judged",
        )
        self.holds(
            (inputs["opponent_version"] or 0) == succeeds,
            f"v{number} was judged against v{inputs['opponent_version']}, and succeeds v{succeeds}",
        )
        if succeeds:
            there = found[succeeds].tags.get(DIGEST) if succeeds in found else None
            there = there or self.changes.deleted.get(succeeds)
            self.holds(
                scores["opponent"]["model_digest"] == there,
                f"v{number} was judged against another model than v{succeeds}",
            )
        low = _low_of_gain(_rouge(folder / "challenger.json"), _rouge(folder / "opponent.json"))
        self.holds(low > 0, f"v{number}: computed again, its gain may be {low:+.3f}")

    def _chain(self, found: dict[int, Any]) -> None:
        """Each version succeeds the champion of its time: the finished one before it, of the same name."""
        last = 0
        for number, version in sorted(found.items()):
            succeeds = int(version.tags.get(SUCCEEDS, -1))
            between = {n for n in self.changes.deleted if last < n < number}
            self.holds(
                succeeds in {last, *between},
                f"v{number} succeeds v{succeeds}; the champion of its time was v{last}",
            )
            last = number

    def _history(self, found: dict[int, Any]) -> None:
        """One entry a promotion, in the runs' tags and in `precis history`."""
        done = self.home.run(["history", NAME, "--json"])
        self.holds(done.code == 0, f"precis history ended with {done.code}: {done.err[-300:]}")
        entries = json.loads(done.out) if done.code == 0 else []
        for number, version in found.items():
            kind = "rollback" if ROLLBACK_TO in version.tags else "promotion"
            of_it = [e for e in entries if e["version"] == number and e["kind"] == kind]
            self.holds(len(of_it) == 1, f"{len(of_it)} history entries of v{number}")
            run = self.client.get_run(version.tags[RUN])
            written = json.loads(run.data.tags.get(RECORD, "{}"))
            self.holds(written.get("kind") == kind, f"the run of v{number} wrote {written}")
        told = [e for e in entries if e["kind"] == "promotion" and e["version"]]
        gone = set(self.changes.deleted)
        self.holds(
            {e["version"] for e in told} <= set(found) | gone, "the history tells of other versions"
        )

    def _left_behind(self, aged: bool) -> None:
        """No run that still says it runs, no half logged model, no folder. `aged`: a day has passed."""
        for experiment in self.client.search_experiments():
            running = self.client.search_runs([experiment.experiment_id], "status = 'RUNNING'")
            self.holds(not running, f"MLflow runs say RUNNING: {[r.info.run_id for r in running]}")
            models = self.client.search_logged_models([experiment.experiment_id])
            pending = [m.model_id for m in models if "READY" not in str(m.status)]
            self.holds(not (aged and pending), f"logged models are not READY: {pending}")
        left = [p.name for p in temporary()]
        left += [f"served/{p.name}" for p in (self.home.store / "work/served").glob("m-*")]
        left += [p.name for p in (self.home.store / "work").glob("precis-*")]
        self.holds(not (aged and left), f"folders are left: {left}")
        self._flow_runs()

    def _flow_runs(self) -> None:
        """Prefect's own database: no flow run that still says it runs, and no slot that is taken."""
        end = time.monotonic() + LEASE_SECONDS
        while (taken := self._prefect(TAKEN)) and time.monotonic() < end:
            time.sleep(1)
        self.holds(not taken, f"slots are taken: {taken}")
        states = self._prefect("SELECT name, state_type FROM flow_run")
        running = [name for name, state in states if state in ("RUNNING", "PENDING", "CANCELLING")]
        self.holds(not running, f"Prefect's flow runs still run: {running}")

    def _prefect(self, query: str) -> list[Any]:
        database = self.home.folder / "prefect/prefect.db"
        with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
            return connection.execute(query).fetchall()

    def _locks(self) -> None:
        """No lock is held on any file of the folder."""
        inodes = {os.stat(p).st_ino for p in self.home.folder.rglob("*.lock") if p.exists()}
        for line in Path("/proc/locks").read_text().splitlines():
            inode = line.split()[-3].rpartition(":")[2]
            self.holds(int(inode) not in inodes, f"a lock is held: {line}")

    def _verify(self) -> None:
        """`precis verify --all`: files, decision, history, alias, and two stored summaries written again."""
        done = self.home.run(["verify", NAME, "--all", "--rows", "2", "--json"])
        found = done.outcome
        self.holds(
            done.code == 0 and bool(found.get("as_judged")),
            f"precis verify ended with {done.code}: {_differences(found) or done.err[-400:]}",
        )


def _differences(found: dict[str, Any]) -> list[str]:
    parts = [found.get("model", {}), *found.get("versions", {}).values()]
    return [text for part in parts for text in part.get("differences", [])]


def _rouge(table: Path) -> dict[str, tuple[float, float]]:
    """By row: rougeL computed again from text and references, the best of several; and as it was stored."""
    content = json.loads(table.read_text())
    scorer, found = RougeScorer(["rougeL"]), {}
    for values in content["data"]:
        row = dict(zip(content["columns"], values, strict=True))
        computed = max(
            scorer.score(reference, row["text"])["rougeL"].fmeasure
            for reference in row["references"]
        )
        found[row["id"]] = (computed, row["rougeL"])
    return found


def _low_of_gain(
    challenger: dict[str, tuple[float, float]], opponent: dict[str, tuple[float, float]]
) -> float:
    """Lower bound of the mean gain, by a paired bootstrap over rows; -1 if a score was stored otherwise."""
    if challenger.keys() != opponent.keys():
        return -1.0
    for computed, stored in (*challenger.values(), *opponent.values()):
        if abs(computed - stored) > 1e-6:
            return -1.0
    gains = np.array([challenger[row][0] - opponent[row][0] for row in sorted(challenger)])
    picks = np.random.default_rng(0).integers(len(gains), size=(RESAMPLES, len(gains)))
    return float(np.quantile(gains[picks].mean(axis=1), LEVEL))
