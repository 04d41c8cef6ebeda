"""Outputs of two models for the same documents, side by side, without saying whose is whose.

A person who knows which summary is the new model's reads it with that in mind. So the sides of each pair
are drawn by a seed, and which side is the challenger's is kept apart (`Blind.key`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.contracts.documents import shown_text
from tasks.contracts.records import Prediction
from tasks.report.markdown import block, inline

PAIRS = 20
MAX_DOCUMENT_CHARACTERS = 3000  # in Prefect's database; the file in MLflow has all of it
SIDES = "AB"


@dataclass(frozen=True)
class Blind:
    """Rows to compare. `key`: a letter a pair, A or B: where the challenger's output stands."""

    pairs: tuple[tuple[Prediction, Prediction], ...]  # the challenger's first
    key: str
    alike: int  # rows left out since both models wrote the same
    rows: int  # that may be shown


def choose(
    challenger: Sequence[Prediction], opponent: Sequence[Prediction], seed: int, most: int = PAIRS
) -> Blind:
    """At most so many pairs with different outputs, rows and sides drawn by the seed.

    Raises KeyError when the two tables hold different rows.
    """
    opponents = {row.id: row for row in opponent}
    pairs = [(row, opponents[row.id]) for row in sorted(challenger, key=lambda row: row.id)]
    different = [pair for pair in pairs if pair[0].text.strip() != pair[1].text.strip()]
    draw = random.Random(seed)
    chosen = draw.sample(different, min(most, len(different)))
    key = "".join(draw.choice(SIDES) for _ in chosen)
    return Blind(tuple(chosen), key, len(pairs) - len(different), len(pairs))


def render_pairs(
    blind: Blind, name: str, opponent: str, most_characters: int, solution: str = ""
) -> str:
    """The page as Markdown. Texts are untrusted: they are in code blocks that they cannot end.

    `opponent`: what the other model is called. `solution`: what to say at the top once the answer is known;
    the sides then have names.
    """
    parts = [f"# Blind pairs: {name}", inline(solution) or _introduction(blind)]
    for number, (pair, side) in enumerate(zip(blind.pairs, blind.key, strict=True), 1):
        ours, theirs = pair
        by_side = {side: ours, "B" if side == "A" else "A": theirs}
        parts += [f"## Pair {number}", block(shown_text(ours.document), most_characters)]
        for letter in SIDES:
            whose = "challenger" if letter == side else opponent
            title = f"{letter} ({whose})" if solution else letter
            parts.append(f"{title}:\n\n{block(by_side[letter].text, most_characters)}")
    return "\n\n".join(parts)


def _introduction(blind: Blind) -> str:
    if not blind.rows:
        return (
            "There are no pairs: no evaluation row may be shown before a promotion (gate.feedback: sealed, "
            "and no row is in the open part)."
        )
    alike = f" {blind.alike} rows where both wrote the same are left out." if blind.alike else ""
    return (
        f"{len(blind.pairs)} of {blind.rows} evaluation rows that may be shown, each as the challenger and "
        f"as the model that it would replace wrote it; the sides are drawn for each pair.{alike} In the "
        "form, a letter a pair says which is better, and = that neither is: ABB=A."
    )


def compare(key: str, preferred: str) -> tuple[int, int, int]:
    """In how many pairs the challenger was preferred, the other model, and neither.

    `preferred`: A, B or = for each pair, in order, as many as the key has.
    """
    ours = sum(mark == side for side, mark in zip(key, preferred, strict=True))
    neither = preferred.count("=")
    return ours, len(key) - ours - neither, neither
