"""ROUGE: pairs a second of rouge_score and of ours, side by side in one run, every score equal.

    .venv/bin/python tests/bench/rouge_speed.py [../shared/data/dialogsum/train.jsonl]

1,000 pairs, four types, stemmer on, one thread; medians of interleaved repeats. `cold`: with an
empty cache of stems, as a fresh process starts.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from rouge_score import rouge_scorer  # noqa: E402

from tasks.evaluate.lead3 import lead3  # noqa: E402
from tasks.evaluate.rouge import scoring  # noqa: E402

PAIRS, REPEATS = 1_000, 3
Texts = list[str]
Scores = list[dict[str, float]]


def theirs(predictions: Texts, references: Texts) -> Scores:
    """rouge_score as its README uses it."""
    scorer = rouge_scorer.RougeScorer(list(scoring.NAMES), use_stemmer=True)
    found = [scorer.score(r, p) for p, r in zip(predictions, references, strict=True)]
    return [{name: one[name].fmeasure for name in scoring.NAMES} for one in found]


def cold(predictions: Texts, references: Texts) -> Scores:
    """Ours, stemming every word again."""
    scoring._STEMS.clear()
    return scoring.score_pairs(predictions, references)


def timed(
    work: Callable[[Texts, Texts], Scores], predictions: Texts, references: Texts
) -> tuple[float, Scores]:
    started = time.perf_counter()
    scores = work(predictions, references)
    return len(predictions) / (time.perf_counter() - started), scores


def measure(name: str, predictions: Texts, references: Texts) -> None:
    """Print one line of the table."""
    ways = {"rouge_score": theirs, "cold": cold, "warm": scoring.score_pairs}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(REPEATS):
        results = {way: timed(work, predictions, references) for way, work in ways.items()}
        for way, (rate, scores) in results.items():
            assert scores == results["rouge_score"][1], f"{way} differs from rouge_score"
            rates[way].append(rate)
    peer, first, later = (median(rates[way]) for way in ways)
    print(
        f"{name:22} {peer:11,.0f} {first:9,.0f} {later:9,.0f} {first / peer:8.1f} {later / peer:8.1f}"
    )


def main(path: Path) -> None:
    """Three lengths of prediction against real summaries."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in islice(lines, PAIRS)]
    references = [row["summary"] for row in rows]
    print(
        f"Python {platform.python_version()}, {platform.processor() or platform.machine()}, ",
        end="",
    )
    print(f"{len(rows)} pairs of {path.name}, median of {REPEATS}; pairs a second")
    print(
        f"{'prediction':22} {'rouge_score':>11} {'cold':>9} {'warm':>9} {'x cold':>8} {'x warm':>8}"
    )
    measure("another summary", references[1:] + references[:1], references)
    measure("lead-3 (three lines)", [lead3(row["dialogue"]) for row in rows], references)
    measure("the whole dialogue", [row["dialogue"] for row in rows], references)


if __name__ == "__main__":
    default = ROOT.parent / "shared/data/dialogsum/train.jsonl"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
