"""docs/licences.md names what constraints.txt pins, with the licence that each package states."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

from flows.cli import licences

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"


def test_the_page_has_each_pinned_package_with_its_licence() -> None:
    """Of packages that are installed here in the pinned version, the licence is theirs."""
    rows = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines()]
    told = {row[0]: (row[1], row[2]) for row in rows[rows.index(["---|---|---"]) + 1 :]}
    pins = licences.pins()
    assert {name: version for name, (version, _) in told.items()} == pins, "run `make docs`"
    assert len(pins) > 200
    installed = {found.name: found.version for found in distributions()}
    for name, (version, licence) in told.items():
        if installed.get(name) == version:
            assert licence == licences.licence_of(name), f"{name}: run `make docs`"
        assert licence, name
