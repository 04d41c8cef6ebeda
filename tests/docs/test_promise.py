"""README's sentences on the gate, and docs/gate.md's table of what holds each of them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def plain(text: str) -> str:
    """One line of it, links as they are read."""
    return " ".join(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text).split())


README = plain((ROOT / "README.md").read_text())
_SECTION = (ROOT / "docs/gate.md").read_text().split("\n## The promise\n")[1].split("\n## ")[0]
PROMISES = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in _SECTION.splitlines()
    if line.startswith("| ") and not line.startswith("| README |")
]


@pytest.mark.parametrize("promise", PROMISES, ids=lambda promise: promise[0][:40])
def test_a_sentence_stands_in_readme_and_names_tests_that_exist(promise: list[str]) -> None:
    """A test that was renamed, or a sentence that was reworded, is found here."""
    sentence, held_by = promise[0].lstrip("| "), promise[1]
    assert sentence in README
    named = NAMED_TEST.findall(held_by)
    assert named
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, file


def test_every_sentence_of_the_section_on_the_gate_is_held() -> None:
    """`The gate in four lines`, sentence by sentence."""
    section = (ROOT / "README.md").read_text().split("## The gate in four lines")[1]
    bullets = [line[2:] for line in section.split("\n## ")[0].splitlines() if line.startswith("- ")]
    sentences = [one for bullet in bullets for one in re.split(r"(?<=\.) ", plain(bullet))]
    assert len(sentences) >= 8
    held = {promise[0].lstrip("| ") for promise in PROMISES}
    assert not set(sentences) - held
