"""The faults of PostgreSQL and S3: a database that is killed, and an S3 that answers wrongly."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

import moments
from home import Home
from s3_home import S3Home
from striking import Struck, begin, challenger


@dataclass(frozen=True)
class S3Wrong:
    """S3 answers wrongly for some seconds: 500, 503, slowly, cut off, or with other content."""

    fault: str

    @property
    def name(self) -> str:
        return f"S3: {self.fault}"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        assert isinstance(home, S3Home)
        moment = moments.drawn(rng, S3_EVENTS)
        settings = challenger(rng, moment)
        seconds = round(rng.uniform(2.0, 20.0), 1)
        process, log, watch, met = begin(home, settings, moment)
        landed = moments.place(watch) if met else "not met: the run had ended"
        home.s3.fault = self.fault
        time.sleep(seconds)
        home.s3.fault = ""
        ended = home.wait(process, log)
        landed += f"; {home.s3.hits} answers spoiled"
        return Struck(f"{moment}, for {seconds} s", landed, [ended], settings=settings)


S3_EVENTS = ("base found", "trained", "merged", "judged", "logging the model", "clean process")


@dataclass(frozen=True)
class DatabaseKilled:
    """kill -9 of PostgreSQL; it and MLflow's server are started again some seconds later."""

    @property
    def name(self) -> str:
        return "kill -9: PostgreSQL"

    def strike(self, home: Home, rng: random.Random) -> Struck:
        assert isinstance(home, S3Home)
        moment = moments.drawn(rng)
        settings = challenger(rng, moment)
        seconds = round(rng.uniform(0.0, 15.0), 1)
        process, log, watch, met = begin(home, settings, moment)
        landed = moments.place(watch) if met else "not met: the run had ended"
        home.kill_postgres()
        time.sleep(seconds)
        home.start_postgres()
        ended = home.wait(process, log)
        return Struck(f"{moment}, for {seconds} s", landed, [ended], settings=settings)
