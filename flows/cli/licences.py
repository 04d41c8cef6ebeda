"""docs/licences.md, from the packages' metadata: `python -m flows.cli.licences > docs/licences.md`."""

from __future__ import annotations

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
MOST_CHARACTERS = 60  # longer: a whole licence text
OSI = "License :: OSI Approved :: "
TOP = """# Licences of the pinned packages

Made by `make docs` from the packages' own metadata; a test holds it up to date with
[constraints.txt](../constraints.txt). "not installed" are packages of other platforms and of extras
that were not installed where this page was made. Metadata are what a package's authors state of it,
not legal advice. precis itself is under the [Apache License 2.0](../LICENSE).

| package | version | licence |
|---|---|---|
"""


def pins() -> dict[str, str]:
    """The pinned version of each package of constraints.txt."""
    lines = CONSTRAINTS.read_text().splitlines()
    found = [re.match(r"([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;]+)", line) for line in lines]
    return {match[1]: match[2] for match in found if match}


def page() -> str:
    """The page's text."""
    rows = [f"| {name} | {version} | {licence_of(name)} |\n" for name, version in pins().items()]
    return TOP + "".join(rows)


def licence_of(name: str) -> str:
    """What a package's metadata say: the SPDX expression, the classifiers, or a short text."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return "not installed"
    return _stated(found).replace("|", "/") or "none stated"


def _stated(found: Distribution) -> str:
    metadata = found.metadata
    if expression := metadata.get_all("License-Expression"):
        return str(expression[0])
    classifiers = [str(one) for one in metadata.get_all("Classifier") or []]
    if osi := [one.removeprefix(OSI) for one in classifiers if one.startswith(OSI)]:
        return ", ".join(osi)
    lines = "".join(map(str, metadata.get_all("License") or [])).strip().splitlines()
    return lines[0][:MOST_CHARACTERS] if lines else ""


if __name__ == "__main__":
    print(page(), end="")
