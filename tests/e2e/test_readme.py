"""What the README says to type works."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from stack import ROOT, Stack

from flows.stack import services
from tasks.processes import supervised

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.removeprefix("$ ")
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
LONG = ("make ", "precis run")  # tried by CI itself and by test_retrain.py
SERVERS = ("precis up", "prefect ", "mlflow ", "export ")  # followed as a whole, below


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_its_make_targets_exist(command: str) -> None:
    """`make -n` knows how to make each."""
    subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("precis run")])
def test_its_runs_are_understood(command: str, home: Path) -> None:
    """Recipe and settings are valid: `check` takes the same words and finds nothing in the way."""
    words = [w for w in command.split()[2:] if w != "--json"]
    _precis(["check", *words], home)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith(LONG + SERVERS)])
def test_its_other_commands_run(command: str, home: Path) -> None:
    """Each ends with exit status 0."""
    assert command.startswith("precis ")
    _precis(command.split()[1:], home)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_its_servers_section_is_followed_word_for_word(tmp_path: Path) -> None:
    """In one shell, in order, by someone who waits for a server before the next line."""
    section = README.split("## Run it on your servers")[1].split("\n## ")[0]
    block = re.findall(r"```console\n(.*?)```", section, re.DOTALL)[1]
    commands = [line.removeprefix("$ ") for line in block.splitlines()]
    assert not [port for port in (4200, 5000) if services.listens(port)], "the ports README names"
    script = []
    for command in commands:
        script.append(command)
        if command.startswith("export"):
            script += ["until curl -sf $PREFECT_API_URL/health; do sleep 1; done",
                       "until curl -sf $MLFLOW_TRACKING_URI/health; do sleep 1; done"]  # fmt: skip
    (tmp_path / "deployments").symlink_to(ROOT / "deployments")
    env = Stack(tmp_path).environment() | {"PRECIS_HOME": str(tmp_path)}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    log = tmp_path / "log.txt"
    process = supervised.start(["bash", "-ec", "\n".join([*script, "echo DONE"])], log, env)
    try:
        assert process.wait(800) == 0, log.read_text()[-3000:]
    finally:
        supervised.stop(process)
    said = log.read_text()
    assert "DONE" in said
    assert "PROMOTE" in said, said[-3000:]


def _precis(words: list[str], home: Path) -> None:
    (home / "deployments").symlink_to(ROOT / "deployments")
    precis = Path(sys.executable).parent / "precis"
    done = subprocess.run([precis, *words], cwd=home, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_recipe_is_valid(tmp_path: Path) -> None:
    """The YAML shown is a recipe."""
    from flows import recipes

    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "r.yaml").write_text(text)
    assert recipes.load(tmp_path / "r.yaml").name == "dialogsum"


def test_its_links_lead_somewhere() -> None:
    """Every relative link in README, docs and CONTRIBUTING names a file that is there."""
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"
