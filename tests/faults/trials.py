"""Seeded trials of whole runs under faults, each checked from outside; the long form is `make faults`.

    python -m tests.faults.trials --stack embedded --trials 100 --seed 1 --jobs 4 --json OUT

Prints a line a trial and, at the end, a table by fault; the exit status is 1 if anything that precis promises
(docs/reliability.md) did not hold. `--only SEED` runs one trial again, `--keep` leaves its folder.
"""

from __future__ import annotations

import tests.faults.paths  # isort: skip  # noqa: F401 - first: the others are found by it

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

NAMES = ("embedded", "servers", "postgres-s3")
MEET_AGAIN = 3  # a moment that was not met is drawn again: the trial is to have its fault


@dataclass(frozen=True)
class Trial:
    """What one trial met. `outcome`: how the first command ended, and how its retry."""

    seed: int
    stack: str
    fault: str
    moment: str
    landed: str
    outcome: str
    seconds: float
    violations: tuple[str, ...]

    def line(self) -> str:
        """The line that is printed."""
        verdict = "ok" if not self.violations else f"VIOLATION: {'; '.join(self.violations)}"
        return (
            f"{self.seed:5} {self.stack} | {self.fault} | {self.moment} | {self.landed} | "
            f"{self.outcome} | {self.seconds:.0f} s | {verdict}"
        )


def run_trial(stack: str, seed: int, store: Path, scratch: Path, only: str = "") -> Trial:
    """One trial, decided by stack and seed alone. `only`: draw from faults with this word in their name."""
    import story
    from stacks import STACKS

    rng = random.Random(f"{stack}/{seed}")
    drawn = {k: n for k, n in STACKS[stack].faults.items() if only in k.name}
    [fault] = rng.choices(list(drawn), list(drawn.values()))
    begun = time.monotonic()
    with STACKS[stack].copied(store, scratch / f"{stack}-{seed}") as place:
        try:
            told = story.tell(fault, place, rng)
        except Exception:  # noqa: BLE001 - of the harness: shown as such, and counted
            told = story.Told("?", "?", "the harness failed", (traceback.format_exc(limit=-4),))
    seconds = time.monotonic() - begun
    return Trial(
        seed, stack, fault.name, told.moment, told.landed, told.outcome, seconds, told.violations
    )


def _worker(root: str) -> None:
    """A process of its own, with its own temporary directory and warm `precis`."""
    own = Path(root) / f"job-{os.getpid()}"
    own.mkdir(parents=True)
    os.environ |= {"TMPDIR": str(own), "PRECIS_TRIALS_TEMPORARY": str(own)}
    tempfile.tempdir = None
    sys.stdout = sys.stderr


def table(trials: Sequence[Trial]) -> str:
    """Trials, those that met their fault, and violations, by fault and stack."""
    every = Counter((t.fault, t.stack) for t in trials)
    met = Counter((t.fault, t.stack) for t in trials if not t.landed.startswith("not met"))
    bad = Counter((t.fault, t.stack) for t in trials if t.violations)
    lines = ["| fault | stack | trials | met | violations |", "|---|---|---|---|---|"]
    lines += [
        f"| {fault} | {stack} | {every[fault, stack]} | {met[fault, stack]} | {bad[fault, stack]} |"
        for fault, stack in sorted(every)
    ]
    total = f"| all | | {len(trials)} | {sum(met.values())} | {sum(bad.values())} |"
    return "\n".join([*lines, total])


def main(arguments: Sequence[str]) -> int:
    """Run the trials; the exit status."""
    options = _options(arguments)
    import tiny_run

    end = time.monotonic() + options.minutes * 60
    store = options.store or tiny_run.judged_store()
    root = Path(tempfile.mkdtemp(prefix="faults-"))
    seeds = [options.only] if options.only is not None else range(
        options.seed, options.seed + options.trials
    )  # fmt: skip
    trials = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context, _worker, (str(root),)) as pool:
        futures = {
            pool.submit(_in_time, end, options.stack, seed, store, root, options.fault): seed
            for seed in seeds
        }
        for future in as_completed(futures):
            if trial := future.result():
                trials.append(trial)
                print(trial.line(), flush=True)
                if options.json:
                    options.json.write_text(json.dumps([asdict(t) for t in trials], indent=1))
    if not options.keep:
        shutil.rmtree(root, ignore_errors=True)
    print(table(trials))
    return 1 if any(trial.violations for trial in trials) or not trials else 0


def _in_time(end: float, stack: str, seed: int, store: Path, root: Path, only: str) -> Trial | None:
    """A trial, unless the time is over: `time.monotonic` is the same in all processes of a machine."""
    own = Path(os.environ["TMPDIR"])
    return run_trial(stack, seed, store, own, only) if time.monotonic() < end else None


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.trials", description=__doc__)
    parser.add_argument("--stack", choices=NAMES, default="embedded")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument(
        "--seed", type=int, default=1, help="of the first trial; each next has one more"
    )
    parser.add_argument("--only", type=int, help="run the trial of this seed again")
    parser.add_argument("--fault", default="", help="only faults with this word in their name")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=600, help="begin no trial after this time")
    parser.add_argument("--json", type=Path, help="write every trial here")
    parser.add_argument("--store", type=Path, help="a store that was made before")
    parser.add_argument("--keep", action="store_true", help="leave the folders")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
