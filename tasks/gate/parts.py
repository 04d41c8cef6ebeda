"""The two parts of an evaluation set: deciding rows, and open rows, whose numbers anyone may see.

A person who keeps whatever measured better learns from the numbers shown, and no bound for repeated looks
covers that. So the deciding rows' numbers are not shown (shown.py), and the open rows do not decide.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from tasks.contracts.comparable_text import comparable_words
from tasks.contracts.documents import plain_text
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate, Recipe
from tasks.contracts.records import Decision, OpenPart, Prediction, Row, Scores
from tasks.contracts.slice_labels import Labels
from tasks.contracts.words import words
from tasks.gate.clusters import clusters
from tasks.gate.decide import SCHEMA, decide
from tasks.gate.earlier_looks import EarlierLook
from tasks.gate.guardrails import Finding
from tasks.gate.measure import Table
from tasks.gate.notes import copying
from tasks.gate.pairs import mean

# none: every row decides. hash: gate.open_share of the documents are open. named: rows whose id begins with
# OPEN came from data.open_evaluation (ingest writes the prefix).
Split = Literal["none", "hash", "named"]
Part = Literal["deciding", "open", "neither"]
OPEN = "open/"


@dataclass(frozen=True)
class Setting:
    """All that decides what a decision is made of, besides the tables."""

    gate: Gate
    split: Split
    opponent_kind: Literal["champion", "base"]
    opponent_version: int | None
    looks: int
    earlier: tuple[EarlierLook, ...] = ()  # of the deciding rows
    labels: Labels = field(default_factory=dict)  # of all rows, where gate.slices needs them
    schema: int = SCHEMA
    recorded: Finding | None = None  # of the deciding rows, in place of their own of its name


def split_of(recipe: Recipe) -> Split:
    """How a recipe divides its evaluation rows."""
    if recipe.gate.feedback == "open":
        return "none"
    return "named" if recipe.data.open_evaluation is not None else "hash"


def part_of_each(rows: Sequence[Row | Prediction], split: Split, open_share: float) -> list[Part]:
    """The part of each row; rows of one cluster (near-copies of a document) are in one part.

    By hash: of the cluster's documents as they are compared, so that a row keeps its part when others
    come, whatever its id or spacing. An open row that is a near-copy of a deciding one, where
    both sets are named, is in neither: its numbers would tell of the deciding row's.
    """
    if split == "none":
        return ["deciding"] * len(rows)
    cluster = clusters(rows)
    if split == "named":
        deciding = {c for c, row in zip(cluster, rows, strict=True) if not row.id.startswith(OPEN)}
        return [
            "deciding" if not row.id.startswith(OPEN) else "neither" if c in deciding else "open"
            for c, row in zip(cluster, rows, strict=True)
        ]
    smallest: dict[int, str] = {}
    for c, row in zip(cluster, rows, strict=True):
        document = plain_text(row.document)
        known = _hash(" ".join(comparable_words(document)) or document)
        smallest[c] = min(known, smallest.get(c, known))
    # Hashed again: the smallest of several hashes is small more often than open_share of the time.
    is_open = {c: int(_hash(f"part {h}"), 16) < open_share * 2**64 for c, h in smallest.items()}
    return ["open" if is_open[c] else "deciding" for c in cluster]


def decide_by_parts(
    tables: Mapping[str, Table | None], scores: Mapping[str, Scores], setting: Setting
) -> tuple[Decision, OpenPart | None]:
    """The decision by the deciding rows, and what the open rows measure (None where there are none).

    `tables`: challenger, opponent, and base and lead3 or None, of the whole set. Raises what `decide`
    raises, and EvaluationError when no row decides.
    """
    part = _parts_by_id(tables["challenger"] or (), setting)
    deciding, shown = (
        {who: None if rows is None else _those_in(name, part, rows) for who, rows in tables.items()}
        for name in ("deciding", "open")
    )
    if part and not deciding["challenger"]:
        wider = ", or lower gate.open_share" if setting.split == "hash" else ""
        raise EvaluationError(
            f"all {len(part)} evaluation rows are in the open part, so none decides; add rows to "
            f"data.evaluation{wider}"
        )
    decision = _decide(deciding, scores, setting, setting.looks, setting.earlier, setting.recorded)
    if not shown["challenger"]:
        return decision, None
    found = _decide(shown, scores, setting, looks=1)
    return decision, OpenPart(
        found.metrics,
        found.guardrails,
        found.rows,
        found.clusters,
        found.alpha,
        tuple(copying(shown["opponent"] or (), setting.opponent_kind)),
        found.slices,
    )


def open_rows(rows: Table, gate: Gate, split: Split) -> list[Prediction]:
    """The rows of a table that may be shown: all of them where every row decides in the open."""
    if split == "none":
        return list(rows)
    part = part_of_each(rows, split, gate.open_share)
    return [row for row, name in zip(rows, part, strict=True) if name == "open"]


def deciding_rows(rows: Table, gate: Gate, split: Split) -> list[Prediction]:
    """The rows of a table that decide."""
    part = part_of_each(rows, split, gate.open_share)
    return [row for row, name in zip(rows, part, strict=True) if name == "deciding"]


def record_of(rows: Table, scores: Scores) -> Scores:
    """A record with what these rows measure; the one that travels as a run's tag has no numbers."""
    if not rows:
        return scores
    counted = sum(len(words(row.references[0])) for row in rows)
    written = sum(len(words(row.text)) for row in rows)
    names = [name for name in rows[0].scores if all(name in row.scores for row in rows)]
    return replace(
        scores,
        rows=len(rows),
        means={name: mean(rows, name) for name in names},
        finished_share=sum(row.finished for row in rows) / len(rows),
        empty_share=sum(not row.text.strip() for row in rows) / len(rows),
        # References of one part may hold no word where those of the whole set do: no length is right then.
        length_ratio=written / counted if counted else 0.0,
    )


def _decide(
    tables: Mapping[str, Table | None],
    scores: Mapping[str, Scores],
    setting: Setting,
    looks: int,
    earlier: Sequence[EarlierLook] = (),
    recorded: Finding | None = None,
) -> Decision:
    challenger, opponent = tables["challenger"] or (), tables["opponent"] or ()
    records = {"challenger": scores["challenger"], "opponent": scores["opponent"]}
    measured = all(scores[who].means for who in ("challenger", "opponent"))
    if setting.split != "none" or not measured:
        records = {
            who: record_of(rows, scores[who])
            for who, rows in (("challenger", challenger), ("opponent", opponent))
        }
    return decide(
        challenger,
        opponent,
        setting.gate,
        opponent_kind=setting.opponent_kind,
        opponent_version=setting.opponent_version,
        challenger_scores=records["challenger"],
        opponent_scores=records["opponent"],
        base=tables["base"],
        lead3=tables["lead3"],
        looks=looks,
        earlier=earlier,
        labels=setting.labels,
        sealed=setting.split != "none",
        schema=setting.schema,
        recorded=recorded,
    )


def _parts_by_id(rows: Table, setting: Setting) -> dict[str, Part]:
    part = part_of_each(rows, setting.split, setting.gate.open_share)
    return {row.id: name for row, name in zip(rows, part, strict=True)}


def _those_in(name: Part, part: Mapping[str, Part], rows: Table) -> list[Prediction]:
    # A row that the challenger's table has not stays, so that `decide` finds it.
    return [row for row in rows if part.get(row.id, "deciding") == name]


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
