"""The faults of several at once: runs of one name together, and what else changes the registry meanwhile."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import mlflow
import moments
import tiny_run
from home import Home
from striking import Struck, begin, challenger
from tiny_run import NAME


@dataclass(frozen=True)
class Together:
    """Several whole runs of one name, started at once: some the same, some of other challengers."""

    count: int

    @property
    def name(self) -> str:
        return f"{self.count} runs at once"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        every = [challenger(rng, None) for _ in range(self.count)]
        started = [home.start(tiny_run.words(settings)) for settings in every]
        ended = [home.wait(process, log) for process, log in started]
        seeds = ", ".join(str(settings["training.seed"]) for settings in every)
        verdicts = [f"{e.outcome.get('verdict', e.code)}" for e in ended]
        return Struck(f"seeds {seeds}", ", ".join(verdicts), ended, settings=every[0])


def _rollback(home: Home, struck: Struck) -> None:
    struck.ended.append(home.run(["rollback", NAME, "--to", "1"]))


def _alias_moved(home: Home, struck: Struck) -> None:
    """Moved by hand to v1, wherever it was."""
    mlflow.MlflowClient(home.uri).set_registered_model_alias(NAME, "champion", "1")
    struck.changes.aliases.add(1)


def _alias_removed(home: Home, struck: Struck) -> None:
    mlflow.MlflowClient(home.uri).delete_registered_model_alias(NAME, "champion")
    struck.changes.aliases.add(None)


def _deletion(home: Home, struck: Struck) -> None:
    """Of v1: the champion, or the one before."""
    client = mlflow.MlflowClient(home.uri)
    digest = client.get_model_version(NAME, "1").tags["precis.model_digest"]
    client.delete_model_version(NAME, "1")
    struck.changes.deleted[1] = digest
    struck.changes.aliases.add(None)


RIVALS: dict[str, Callable[[Home, Struck], None]] = {
    "a rollback": _rollback,
    "a hand on the alias": _alias_moved,
    "an alias removed": _alias_removed,
    "a deletion": _deletion,
}

AGAINST = ("judged", "logging the model", "clean process", *moments.WRITES, "registered")


@dataclass(frozen=True)
class Against:
    """Something else changes the registry while a run is promoted: a rollback, a hand, a deletion."""

    what: str

    @property
    def name(self) -> str:
        return f"promotion against {self.what}"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        moment = moments.drawn(rng, AGAINST)
        settings = {"training.seed": rng.choice(tiny_run.JUDGED_SEEDS)}
        process, log, watch, met = begin(home, settings, moment)
        struck = Struck(str(moment), "not met: the run had ended", [], settings=settings)
        if met:
            struck.landed = moments.place(watch)
            RIVALS[self.what](home, struck)
        struck.ended.insert(0, home.wait(process, log))
        return struck
