"""Short form of tests/bench/people.py: what the gate says of systems that people rated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from gate.gate_tables import QUICK, judged, table

from tasks.contracts.records import ROUGE_NAMES

RATED = json.loads((Path(__file__).parent / "rated_systems.json").read_text(encoding="utf-8"))


FAR_BEHIND = {"PGN", "Transformer"}  # not pretrained: their pairs are easy, and cost half the time


def test_of_neural_systems_no_better_one_is_rejected_and_no_worse_one_promoted() -> None:
    """Of the 16 pairs of nine systems of which people prefer one, on 100 dialogues, both ways round.

    Scores are real, one a dialogue in each ROUGE. Texts are not stored: documents and outputs are those
    of the gate's own tests, each another, so the guardrails that read texts hold in every pair.
    """
    tables = {
        name: table(np.array([scores[rouge] for rouge in ROUGE_NAMES]).T)
        for name, scores in RATED["scores"].items()
    }
    pairs = [pair for pair in RATED["people_prefer"] if not FAR_BEHIND & set(pair)]
    assert len(pairs) == 16
    found = [
        [judged(tables[a], tables[b], QUICK, digests=(a, b)).verdict for a, b in (pair, pair[::-1])]
        for pair in pairs
    ]
    better, worse = zip(*found, strict=True)
    assert better.count("PROMOTE") + better.count("INCONCLUSIVE") == 16
    assert better.count("PROMOTE") >= 12
    assert "PROMOTE" not in worse
