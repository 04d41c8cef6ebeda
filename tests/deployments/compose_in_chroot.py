"""Start what compose.yaml describes without a container engine, and run a deployment in it. By hand, as root.

    buildah --storage-driver vfs bud --isolation=chroot -t precis -f deployments/Dockerfile .
    python tests/deployments/compose_in_chroot.py FOLDER

Each service of the image `precis` runs by `buildah run --isolation=chroot`: the image's files, user, working
folder and entry point, the service's command, environment, volumes, and health check, in the order of
depends_on. Not as in Compose: all share this machine's network, so a service's name is 127.0.0.1; PostgreSQL
and S3 are this machine's own (of Debian, and rclone), since their images are not ours to build. Prints what
happened with seconds; exit 1 at the first thing that goes wrong. FOLDER keeps volumes and logs.

Over 250 lines: a script by itself.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import s3_server  # noqa: E402

BUILDAH = ["buildah", "--storage-driver", "vfs"]
USER = 1000  # the image's
OURS = ("bucket", "prefect", "mlflow", "worker")
PASSWORD = "a-plain-password-1"
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?+])([^}]*))?\}")


def filled(value: Any, env: dict[str, str]) -> Any:
    """A part of compose.yaml with its variables filled in, as Compose does it."""
    if isinstance(value, dict):
        return {key: filled(item, env) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, env) for item in value]
    if not isinstance(value, str):
        return value

    def one(match: re.Match[str]) -> str:
        name, sign, other = match.groups()
        found = env.get(name, "")
        if sign == ":?" and not found:
            raise SystemExit(f"{name} is needed")
        if sign == ":+":
            return other if found else ""
        return found or (other if sign == ":-" else "")

    return VARIABLE.sub(one, value)


class Service:
    """A service of compose.yaml in a container of the image."""

    def __init__(self, name: str, compose: dict[str, Any], folder: Path, container: str) -> None:
        self.name, self.spec, self.folder = name, compose["services"][name], folder
        self.container, self.configs = container, compose["configs"]
        self.process: subprocess.Popen[bytes] | None = None

    def words(self, command: list[str]) -> list[str]:
        """The command line that runs `command` in the container."""
        env = {k: v for k, v in self.spec.get("environment", {}).items() if v is not None}
        words = [*BUILDAH, "run", "--isolation=chroot"]
        words += [word for key, value in env.items() for word in ("--env", f"{key}={value}")]
        for volume in self.spec.get("volumes", []):
            place = self.folder / "volumes" / volume.split(":")[0]
            if not place.exists():  # a new volume belongs to the image's user
                place.mkdir(parents=True)
                os.chown(place, USER, USER)
            words += ["-v", f"{place}:{volume.split(':')[1]}"]
        for config in self.spec.get("configs", []):
            file = self.folder / f"{config['source']}.config"
            file.write_text(self.configs[config["source"]]["content"])
            words += ["-v", f"{file}:{config['target']}:ro"]
        return [*words, self.container, "--", *command]

    def start(self) -> None:
        """Run its command under the image's entry point."""
        command = self.spec["command"]
        command = shlex.split(command) if isinstance(command, str) else command
        with (self.folder / f"{self.name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                self.words(["tini", "--", *command]), stdout=log, stderr=log
            )

    def wait_until_healthy(self, seconds: float = 240) -> None:
        """Try its health check until it passes; without one, until the command has ended well."""
        assert self.process
        if "healthcheck" not in self.spec:
            if status := self.process.wait(seconds):
                raise SystemExit(f"{self.name} ended with {status}: {self.folder}/{self.name}.log")
            return
        check = self.words(self.spec["healthcheck"]["test"][1:])
        end = time.monotonic() + seconds
        while subprocess.run(check, capture_output=True, check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"{self.name} is not healthy: {self.folder}/{self.name}.log")
            time.sleep(2)

    def run(self, *command: str, seconds: float = 900) -> str:
        """What a command prints in the container, beside the service."""
        done = subprocess.run(
            self.words(list(command)), capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            raise SystemExit(f"{command} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def stop(self) -> float:
        """TERM, as `docker stop`; the seconds that it took."""
        begun = time.monotonic()
        if self.process and self.process.poll() is None:
            for pid in _tini_below(self.process.pid):
                os.kill(pid, 15)
            self.process.wait(120)
        return time.monotonic() - begun


def main(folder: Path) -> None:
    """Servers and worker, a deployment to its verdict, a cancelled run, and what is left afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        (folder / "buckets").mkdir(exist_ok=True)
        endpoint = stack.enter_context(s3_server.running(folder / "buckets"))
        env = s3_server.environment(endpoint) | {"POSTGRES_PASSWORD": PASSWORD}
        compose = filled(yaml.safe_load((ROOT / "deployments/compose.yaml").read_text()), env)
        stack.callback(_start_postgres(folder / "postgres", compose))
        names = [
            word for host in compose["services"] for word in ("--add-host", f"{host}:127.0.0.1")
        ]
        # One for all services: without overlayfs each would be a copy of the whole image.
        container = _output([*BUILDAH, "from", "--isolation=chroot", *names, "precis"])
        stack.callback(_output, [*BUILDAH, "rm", container])
        services = {name: Service(name, compose, folder, container) for name in OURS}
        for name in OURS:  # in the order of depends_on
            begun = time.monotonic()
            services[name].start()
            stack.callback(lambda name=name: say(f"{name} stopped", services[name].stop()))
            services[name].wait_until_healthy()
            say(f"{name} healthy", time.monotonic() - begun)
        page = urllib.request.Request("http://127.0.0.1:4200/", headers={"Accept": "text/html"})
        with urllib.request.urlopen(page) as answer:
            say(f"Prefect's UI: {answer.url}, {len(answer.read())} bytes")
        worker = services["worker"]
        say(f"user: {worker.run('id', '-u').strip()}, folder: {worker.run('pwd').strip()}")
        worker.run(
            "prefect",
            "--no-prompt",
            "deploy",
            "--all",
            "--prefect-file",
            "deployments/prefect.yaml",
        )
        begun = time.monotonic()
        worker.run("prefect", "deployment", "run", "retrain/demo", "--watch")
        say("retrain/demo", time.monotonic() - begun)
        print(worker.run("precis", "history", "demo"), flush=True)
        _cancel_one(worker)
    left = [process for process in psutil.process_iter() if process.uids().real == USER]
    if left:
        raise SystemExit(f"processes are left: {left}")


def _cancel_one(worker: Service) -> None:
    """Cancel a run of another seed in the midst of its training, by the command."""
    deployment = _api("/deployments/name/retrain/demo")
    recipe = deployment["parameters"]["recipe"]
    training = recipe.get("training", {}) | {"seed": 7}
    changed = {"parameters": {"recipe": recipe | {"training": training}}}
    run_id = _api(f"/deployments/{deployment['id']}/create_flow_run", changed)["id"]
    _wait(run_id, {"RUNNING"}, 120)
    time.sleep(30)  # into training
    begun = time.monotonic()
    worker.run("prefect", "flow-run", "cancel", run_id)
    _wait(run_id, {"CANCELLED"}, 120)
    say("cancelled after", time.monotonic() - begun)


def _api(path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:4200/api{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def _wait(run_id: str, types: set[str], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        state = _api(f"/flow_runs/{run_id}")["state_type"]
        if state in types:
            return
        if time.monotonic() > end:
            raise SystemExit(f"{run_id} is {state}, not {types}, after {seconds} s")
        time.sleep(0.5)


def _start_postgres(data: Path, compose: dict[str, Any]) -> Any:
    """This machine's PostgreSQL with the service's user and databases; the function that ends it."""
    (bin_folder,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
    spec = compose["services"]["postgres"]["environment"]
    data.mkdir(exist_ok=True)
    subprocess.run(["chown", "postgres", str(data)], check=True)
    subprocess.run(["chmod", "o+x", *map(str, list(data.parents)[:-1])], check=True)
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    password = data.parent / "password"
    password.write_text(spec["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    made = [
        str(bin_folder / "initdb"),
        "-D",
        f"{data}/db",
        "-U",
        spec["POSTGRES_USER"],
        "-A",
        "scram-sha-256",
        f"--pwfile={password}",
    ]
    subprocess.run([*as_user, *made], check=True, capture_output=True)
    server = subprocess.Popen(
        [*as_user, str(bin_folder / "postgres"), "-D", f"{data}/db", "-p", "5432", "-k", str(data)],
        stdout=(data.parent / "postgres.log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    env = os.environ | {"PGPASSWORD": spec["POSTGRES_PASSWORD"]}
    psql = ["psql", "-h", "127.0.0.1", "-U", spec["POSTGRES_USER"], "-v", "ON_ERROR_STOP=1"]
    for _ in range(60):
        if not subprocess.run(
            [*psql, "-d", "postgres", "-c", "select 1"], env=env, capture_output=True, check=False
        ).returncode:
            break
        time.sleep(0.5)
    statements = (
        f"CREATE DATABASE {spec['POSTGRES_DB']};\n" + compose["configs"]["databases"]["content"]
    )
    subprocess.run(
        [*psql, "-d", "postgres"],
        input=statements,
        text=True,
        env=env,
        check=True,
        capture_output=True,
    )

    def end() -> None:
        server.terminate()
        server.wait(60)

    return end


def _tini_below(pid: int) -> list[int]:
    below = psutil.Process(pid).children(recursive=True)
    return [child.pid for child in below if child.name() == "tini"]


def _output(words: list[str]) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def say(what: str, seconds: float | None = None) -> None:
    """A line, with the seconds that it took."""
    print(what if seconds is None else f"{what}: {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
