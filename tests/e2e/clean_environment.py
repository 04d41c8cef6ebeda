"""A virtual environment that holds what a requirements.txt asks for, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
SCRIPT = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""


def installed(environment: Path, requirements: Path) -> None:
    """As a user makes it: pip installs them, at the versions of constraints.txt. Minutes of CPU."""
    _make(environment)
    pip = [environment / "bin/python", "-m", "pip", "install", "-q", "-r", requirements]
    subprocess.run([*pip, "-c", ROOT / "constraints.txt"], check=True)


def linked(environment: Path, requirements: Path) -> None:
    """The same packages as links to those here: each that is required, and what it requires in turn."""
    _make(environment, "--without-pip")
    (site,) = environment.glob("lib/python*/site-packages")
    for package in _required(requirements.read_text().splitlines()):
        tops = {file.parts[0] for file in package.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (site / top).exists():  # some share a folder
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())
        for command in package.entry_points.select(group="console_scripts"):
            script = environment / "bin" / command.name
            names = {"module": command.module, "function": command.attr}
            script.write_text(SCRIPT.format(python=environment / "bin/python", **names))
            script.chmod(0o755)


def _make(environment: Path, *options: str) -> None:
    words = [sys._base_executable, "-m", "venv", *options, environment]  # type: ignore[attr-defined]
    subprocess.run(words, check=True)


def _required(lines: list[str]) -> list[metadata.Distribution]:
    """The packages that pip would install here; each must have the version that is asked for."""
    found: dict[str, metadata.Distribution] = {}
    seen = set()
    waiting = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    while waiting:
        wanted = waiting.pop()
        if str(wanted) in seen:
            continue
        seen.add(str(wanted))
        package = metadata.distribution(wanted.name)
        assert wanted.specifier.contains(package.version, prereleases=True), (
            f"{wanted} is asked for; here is {package.version}"
        )
        found[package.name.lower()] = package
        for line in package.requires or ():
            further = Requirement(line)
            extras = wanted.extras or {""}
            if not further.marker or any(further.marker.evaluate({"extra": e}) for e in extras):
                waiting.append(further)
    return list(found.values())
