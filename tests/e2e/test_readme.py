"""What README says to type works. Its length, links and recipe: tests/docs/test_pages.py."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from stack import PRECIS, ROOT, SMALL, Stack

from flows.stack import services
from tasks.processes import supervised

README = (ROOT / "README.md").read_text()
VENV = Path(sys.executable).parents[1]
CONSOLE = [
    [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
]
MAKE, OWN_RECIPE = CONSOLE  # a further block needs a test of its own here
(RECIPE,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
(SERVERS,) = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
(SERVING,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
VERBS = sorted(set(re.findall(r"`precis ([a-z-]+)", README)))


@pytest.mark.parametrize("command", MAKE)
def test_its_make_targets_exist(command: str) -> None:
    """`make -n` knows how to make each; test_make_demo and CI make them."""
    subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("verb", VERBS)
def test_its_verbs_exist(verb: str) -> None:
    """The command knows every verb that README names."""
    subprocess.run([PRECIS, verb, "--help"], cwd=ROOT, check=True, capture_output=True)


def test_its_recipe_passes_the_check(tmp_path: Path) -> None:
    """`precis check recipe.yaml`, as typed, finds nothing in the way of the recipe shown."""
    typed = [line for line in OWN_RECIPE if line.startswith(("source", "precis check"))]
    run_in_shell(typed, folder_of_a_clone(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(SMALL, marks=pytest.mark.full, id="on few rows"),
        pytest.param({}, marks=pytest.mark.long, id="as shown"),
    ],
)
@pytest.mark.timeout(900)
def test_its_own_recipe_runs_and_is_served(settings: dict[str, Any], tmp_path: Path) -> None:
    """The block as typed promotes a model; README's Python, asked about it, prints what was judged."""
    folder = folder_of_a_clone(tmp_path)
    recipe = yaml.safe_load(RECIPE)
    for key, value in settings.items():
        group, name = key.split(".")
        recipe.setdefault(group, {})[name] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    output = run_in_shell(OWN_RECIPE, folder)
    assert "PROMOTED meetings v1" in output
    serving = SERVING.replace("demo@champion", "meetings@champion")
    printed = run_in_shell([f"python -c '{serving}'"], folder).splitlines()[-1]
    (table,) = (folder / "mlruns/artifacts").glob("*/*/artifacts/**/predictions/challenger.json")
    (answer,) = ast.literal_eval(printed)
    assert json.dumps(answer) in table.read_text()


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_make_demo(tmp_path: Path) -> None:
    """`make demo` in a clone: the verdicts that README shows, and an answer to its Python."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    (clone / ".venv").symlink_to(VENV)
    output = run_in_shell(["touch .venv/installed", "make demo"], clone)
    assert "PROMOTED demo v1" in output
    assert "REJECTED demo" in output
    assert "['" in run_in_shell([". .venv/bin/activate", f"python -c '{SERVING}'"], clone)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_its_servers_block_can_be_pasted_at_once(tmp_path: Path) -> None:
    """Typed into a terminal's shell in one go: servers, pool, deployments, worker, and a verdict."""
    assert not [port for port in (4200, 5000) if services.listens(port)], "the ports README names"
    folder = folder_of_a_clone(tmp_path)
    terminal, shell_side = os.openpty()
    shell = subprocess.Popen(
        ["setsid", "--ctty", "--wait", "bash", "--norc", "-i"],
        stdin=shell_side, stdout=shell_side, stderr=shell_side,
        cwd=folder, env=shell_environment(folder) | {"PRECIS_HOME": str(folder)},
    )  # fmt: skip
    screen = tmp_path / "screen.txt"
    try:
        os.write(terminal, f"{SERVERS}echo ENDED WITH $?\n".encode())
        read_until(b"ENDED WITH 0", terminal, screen, seconds=800)
        assert "PROMOTE" in screen.read_text(errors="replace")
    finally:
        end_with_children(shell.pid)
        os.close(terminal)
        os.close(shell_side)


def folder_of_a_clone(folder: Path) -> Path:
    """A folder that holds what README's commands use of a clone, and its recipe."""
    (folder / "deployments").symlink_to(ROOT / "deployments")
    (folder / ".venv").symlink_to(VENV)
    (folder / "mlruns").mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def shell_environment(folder: Path) -> dict[str, str]:
    environment = Stack(folder / "stack").environment()
    return environment | {"PATH": f"{VENV / 'bin'}:{environment['PATH']}"}


def run_in_shell(commands: list[str], folder: Path) -> str:
    """What the commands print; every one must end with exit status 0."""
    log = folder / "shell.log"
    log.unlink(missing_ok=True)
    script = "\n".join([f"cd {folder}", *commands])
    process = supervised.start(["bash", "-ec", script], log, shell_environment(folder))
    try:
        status = process.wait()
    finally:
        supervised.stop(process)
    assert status == 0, log.read_text()[-3000:]
    return log.read_text()


def read_until(ending: bytes, terminal: int, screen: Path, seconds: float) -> None:
    """Copy what the terminal shows to `screen` until a line holds `ending`."""
    os.set_blocking(terminal, False)
    end = time.monotonic() + seconds
    shown = b""
    while ending not in shown:
        assert time.monotonic() < end, shown[-3000:].decode(errors="replace")
        try:
            shown += os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.2)
        screen.write_bytes(shown)


def end_with_children(pid: int) -> None:
    """End a process and all that it started, servers and workers included."""
    processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    for process in reversed(processes):
        process.terminate()
    for process in psutil.wait_procs(processes, timeout=30)[1]:
        process.kill()
