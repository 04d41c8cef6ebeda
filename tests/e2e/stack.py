"""Running the `precis` command in a folder of its own: as a user starts it, or warm (warm.py)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import once
import pytest
import warm
from filelock import FileLock
from warm import WarmProcess

ROOT = Path(__file__).parents[2]
PRECIS = Path(sys.executable).parent / "precis"
Process = subprocess.Popen[str] | WarmProcess
# The demo's own recipe on fewer rows: its base really learns, in seconds.
SMALL = {
    "data.train_rows": 300,
    "data.evaluation_rows": 50,
    "training.max_length": 512,  # a row or two a step: more steps, so that it surely gets better
    "training.save_steps": 10,
    "merge.drift_rows": 4,
    "merge.drift_tokens": 100,
    # Of models that learned this little, some outputs loop, invent, or lose much: how many depends on
    # the machine.
    "gate.max_repeating_rise": 0.5,
    "gate.max_invented_rise": 1.0,
    "gate.max_lost_share": 1.0,
    # Tests that look at the numbers; sealed feedback has its own (test_sealed.py).
    "gate.feedback": "open",
}
WEAKER = {"data.train_rows": 24}
# A gate that no challenger passes: what was trained and judged for it is there for the next run.
UNREACHABLE = {"gate.min_delta": 0.99}


@dataclass
class Stack:
    """A folder with the demo's recipe in it; `run` is `precis run` there, decision parsed.

    `start` with `real` is the command as a user starts it, which takes 20 s of CPU more, to import.
    """

    folder: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        put_modules_of_the_same_names(self.folder)
        link = self.folder / "deployments"
        if not link.exists():
            link.symlink_to(ROOT / "deployments")
        once.put_prefect_database(self.folder / "prefect")

    def environment(self) -> dict[str, str]:
        """The tests' environment without stores of other tests."""
        own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_API"))}
        return own | {"PREFECT_HOME": str(self.folder / "prefect")} | self.env

    def words(self, changes: dict[str, Any]) -> list[str]:
        """The command line of a run with changed settings."""
        sets = [
            word for key, value in (SMALL | changes).items() for word in ("--set", f"{key}={value}")
        ]
        return [str(PRECIS), "run", "deployments/recipes/demo.yaml", "--json", *sets]

    def start(self, changes: dict[str, Any], real: bool = False) -> Process:
        """A run going on in the background; its log is err.log, after those of runs before."""
        words, log = self.words(changes), self.folder / "err.log"
        if not real:
            return warm.warm_precis().start(words[1:], self.folder, self.environment(), log=log)
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=log.open("a"),
            text=True,
        )

    def run(self, **changes: Any) -> dict[str, Any]:
        """A run to its end; `training__seed=1` for `training.seed`."""
        words = self.words({k.replace("__", "."): v for k, v in changes.items()})[1:]
        done = warm.warm_precis()(words, self.folder, self.environment())
        assert done.returncode == 0, done.stderr[-4000:]
        decision: dict[str, Any] = json.loads(done.stdout)
        return decision

    def run_once(self, name: str, real: bool = False, **changes: Any) -> dict[str, Any]:
        """The run called `name` in this folder: made by the first worker that asks for it.

        `real`: by the command as a user starts it.
        """
        decision = self.folder / f"{name}.json"
        with FileLock(self.folder / "runs.lock"):
            if not decision.exists():
                made = self.finish(self.start(changes, real)) if real else self.run(**changes)
                decision.write_text(json.dumps(made))
        found: dict[str, Any] = json.loads(decision.read_text())
        return found

    def finish(self, process: Process) -> dict[str, Any]:
        """The decision of a run that is going on; stdout must hold it and nothing else."""
        out, _ = process.communicate()
        assert process.returncode == 0, (self.folder / "err.log").read_text()[-4000:]
        decision: dict[str, Any] = json.loads(out)
        return decision

    def ask(self, *words: str) -> Any:
        """`precis WORDS --json`, parsed."""
        done = warm.warm_precis()([*words, "--json"], self.folder, self.environment())
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


def judged_store(factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose only run trained, merged and judged SMALL's challenger, and refused it.

    Made once for all files, and for `make test` and `make test-all` on the same code: it takes 140 s of CPU.
    In a copy of it, a run of SMALL takes all of that from the store and is promoted by its own gate: a
    promotion for a tenth of the time.
    """

    def make(folder: Path) -> None:
        decision = Stack(folder).run(**{k.replace(".", "__"): v for k, v in UNREACHABLE.items()})
        assert decision["verdict"] == "REJECT", decision["headline"]

    def copy_kept(folder: Path) -> None:
        names = ("tasks", "flows", "deployments", "constraints.txt", "tests/e2e/stack.py")
        kept = once.kept_for_hours("judged", [ROOT / name for name in names], make)
        once.copy_store(kept, folder)

    return once.made_once(factory, "judged", copy_kept)


def stack_with_judged(folder: Path, factory: pytest.TempPathFactory) -> Stack:
    """A stack of its own on a copy of that store."""
    stack = Stack(folder)
    once.copy_store(judged_store(factory), folder)
    return stack


# Words counted otherwise are another seal: the models are there, and are judged again under sealed feedback.
SEALED = {"gate__feedback": "sealed", "evaluation__words": "unicode"}


def promoted_store(factory: pytest.TempPathFactory) -> Path:
    """That store after its challenger was promoted under sealed feedback: v1 of demo; made once."""

    def make(folder: Path) -> None:
        promoted = stack_with_judged(folder / "stack", factory).run(**SEALED)
        assert promoted["version"] == 1, promoted["headline"]

    return once.made_once(factory, "promoted", make) / "stack"


def put_modules_of_the_same_names(folder: Path) -> None:
    """A user's own tasks.py, flows.py and deployments.py: no process of ours may import them."""
    for name in ("tasks", "flows", "deployments"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the user')\n")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(words: list[str], url: str, folder: Path, env: dict[str, str]) -> Iterator[str]:
    """A server process that answers at `url`; ended, with its group, by pid."""
    log = (folder / "server.log").open("a")
    process = subprocess.Popen(
        words, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True
    )
    try:
        end = time.monotonic() + 180
        while not _answers(url):
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < end, f"{url} does not answer"
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def prefect_server_in(folder: Path, env: dict[str, str], *options: str) -> Iterator[str]:
    """A real Prefect server with a database in `folder`; yields its API URL."""
    port = free_port()
    words = [str(PRECIS.with_name("prefect")), "server", "start", "--port", str(port), *options]
    with served(words, f"http://127.0.0.1:{port}/api/health", folder, env):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def up(stack: Stack, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`precis up` in the stack's folder, on free ports; `stack.env` points at it. Ended by TERM."""
    ports = ["--port", str(free_port()), "--mlflow-port", str(free_port()), *options]
    log = stack.folder / "up.log"
    process = subprocess.Popen(
        [PRECIS, "up", *ports],
        cwd=stack.folder,
        env=stack.environment(),
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        end = time.monotonic() + 240
        while "Ctrl-C ends" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        exports = [line.split() for line in log.read_text().splitlines() if " export " in line]
        stack.env = dict(setting.split("=", 1) for _, setting in exports)
        yield process
    finally:
        process.terminate()
        process.wait(90)
