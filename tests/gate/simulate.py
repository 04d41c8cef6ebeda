"""A benchmark, not a test: how often the real gate promotes what it should, and what it should not.

    python tests/gate/simulate.py [--processes 2] [--scale 1.0] [--years 100 100 --only "a year"]

Prints the table of docs/gate.md with 95% intervals (Wilson). Every verdict is made by `decide`, with the
resamples and the earlier looks that a run would use; a learner's looks that are far from a promotion, and
those before a late look, are not taken through it: the bound that a later look needs of them is
Student's.

Over 250 lines: one case after another, each short.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from gate.gate_tables import judged, table  # noqa: E402  # needs the path

from tasks.contracts.recipe import Gate  # noqa: E402
from tasks.contracts.records import Prediction  # noqa: E402
from tasks.gate.bootstrap import student_t_quantile  # noqa: E402
from tasks.gate.earlier_looks import EarlierLook, look_of, rows_digest  # noqa: E402

Floats = NDArray[np.float64]
GATE = Gate()
# Spreads and correlations of gains in rouge1, rouge2, rougeL and rougeLsum between models on DialogSum.
SPREAD = np.array([0.107, 0.080, 0.097, 0.098])
CORRELATION = np.array(
    [[1, 0.76, 0.87, 0.93], [0.76, 1, 0.81, 0.79], [0.87, 0.81, 1, 0.89], [0.93, 0.79, 0.89, 1]]
)
ROOT = np.linalg.cholesky(np.outer(SPREAD, SPREAD) * CORRELATION)
CHAMPION = 0.5  # its score on every row, where only gains matter
LOOKS, WEEKS, BETTER_A_YEAR = 48, 52, 15.6
ROWS, OPEN_ROWS = 200, 60  # a learner's
Learns = Literal["nothing", "open part", "verdict", "open part and verdict", "all numbers"]


def rows_of(gains: Floats) -> tuple[list[Prediction], list[Prediction]]:
    """A challenger with these gains (rows, or rows by four ROUGE), and its opponent."""
    return table(np.clip(CHAMPION + gains, 0, 1)), table(np.full(len(gains), CHAMPION))


def gains_of(seed: int, rows: int, gain: tuple[float, ...], gate: Gate = GATE) -> bool:
    """Whether a challenger is promoted whose true gains in the four ROUGE are these."""
    draw = np.random.default_rng([seed, rows])
    return (
        judged(*rows_of(gain + draw.standard_normal((rows, 4)) @ ROOT.T), gate).verdict == "PROMOTE"
    )


def rare(seed: int, rows: int, share: float, loss: float) -> bool:
    """Whether a challenger is promoted of which a share of documents loses much, the rest gains a little."""
    draw = np.random.default_rng([seed, rows])
    little = share * loss / (1 - share) + 0.01 * draw.standard_normal(rows)
    gains = np.where(draw.random(rows) < share, -loss, little)
    # Over a champion of 0.7, so that no loss ends at a score of 0: the true mean is 0.
    ours, theirs = table(np.clip(0.7 + gains, 0, 1)), table(np.full(rows, 0.7))
    return judged(ours, theirs, GATE).verdict == "PROMOTE"


def copies(seed: int, documents: int, each: int) -> bool:
    """Whether an equal model is promoted on documents that stand there several times with a word changed."""
    draw = np.random.default_rng([seed, documents])
    gains = np.repeat(draw.normal(0, 0.1, documents), each) + draw.normal(0, 0.03, documents * each)
    texts = []
    for _ in range(documents):
        words = [f"w{number}" for number in draw.integers(0, 3000, 60)]
        texts += [" ".join([*words[:30], f"name{copy}", *words[30:]]) for copy in range(each)]
    ours, theirs = (
        [replace(row, document=text) for row, text in zip(rows, texts, strict=True)]
        for rows in rows_of(gains)
    )
    return judged(ours, theirs, GATE).verdict == "PROMOTE"


def late(seed: int, rows: int, gain: tuple[float, ...], look: int) -> bool:
    """Whether a challenger with these true gains is promoted at a look after challengers without any.

    All are compared with the same champion, on the same rows; no earlier one passed its own bound.
    """
    draw = np.random.default_rng([2000 + seed, rows])
    asked, earlier = rows_digest(rows_of(np.zeros((rows, 4)))[1]), list[EarlierLook]()
    while len(earlier) < look - 1:
        k, gains = len(earlier) + 1, draw.standard_normal(rows) * SPREAD[2]
        low = float(gains.mean()) - student_error(gains, GATE.alpha / k**2)
        if low <= 0:
            rounded = tuple((np.round(gains * 2**32) / 2**32).tolist())
            earlier.append(EarlierLook(f"{k}", "old", "rougeL", k, low, asked, rounded))
    tables = rows_of(gain + draw.standard_normal((rows, 4)) @ ROOT.T)
    decision = judged(*tables, GATE, looks=look, earlier=earlier, digests=("new", "old"))
    return decision.verdict == "PROMOTE"


def learner(seed: int, learns: Learns) -> bool:
    """Whether someone promotes one of 48 challengers without any gain, on 200 rows.

    `learns`: from what they keep a challenger as the next one's start. Under sealed feedback 60 of the rows
    are open, their mean is seen, and of the other 140 the verdict.
    """
    draw = np.random.default_rng([1000 + seed, ROWS])
    opened = 0 if learns in ("nothing", "all numbers") else OPEN_ROWS
    champion = np.clip(draw.beta(4, 8, ROWS) * 0.6 + 0.15, 0, 1)
    asked = rows_digest(table(champion[opened:]))
    kept, best, earlier = np.zeros(ROWS), 0.0, list[EarlierLook]()
    for k in range(1, LOOKS + 1):
        ours = np.clip(champion + kept + 0.03 * draw.standard_normal(ROWS), 0, 1)
        gains = ours - champion
        verdict = verdict_of(ours[opened:], champion[opened:], k, earlier, sealed=opened > 0)
        if verdict == "PROMOTE":
            return True
        deciding = gains[opened:]
        low = float(deciding.mean()) - student_error(deciding, GATE.alpha / k**2)
        rounded = tuple((np.round(deciding * 2**32) / 2**32).tolist())
        earlier.append(EarlierLook(f"{k}", "old", "rougeL", k, low, asked, rounded))
        seen = gains[:opened] if opened else gains
        better, passed = float(seen.mean()) > best, verdict != "REJECT"
        keeps = {
            "nothing": False,
            "open part": better,
            "verdict": passed,
            "open part and verdict": better and passed,
            "all numbers": better,
        }
        if keeps[learns]:
            kept, best = gains, float(seen.mean())
    return False


def verdict_of(
    ours: Floats, theirs: Floats, look: int, earlier: list[EarlierLook], *, sealed: bool
) -> str:
    """The gate's verdict; of gains that are far from any bound, by Student's t at the look's own level."""
    gains = ours - theirs
    mean, alone = float(gains.mean()), GATE.alpha / look**2
    if (
        -0.95 * student_error(gains, alone)
        < mean
        < 0.95 * student_error(gains, min(4 * alone, GATE.alpha))
    ):
        return "INCONCLUSIVE"
    if mean < -1.1 * student_error(gains, alone):
        return "REJECT"
    return judged(
        table(ours),
        table(theirs),
        GATE,
        looks=look,
        earlier=earlier,
        digests=(f"{look}", "old"),
        sealed=sealed,
    ).verdict


def student_error(gains: Floats, alpha: float) -> float:
    """How far Student's one-sided bound at this level is from the mean."""
    error = float(gains.std(ddof=1)) / math.sqrt(len(gains))
    return error * student_t_quantile(1 - alpha, len(gains) - 1)


def year(
    seed: int, rows: int, own_luck: bool, gate: Gate = GATE, weeks: int = WEEKS
) -> tuple[int, int, int]:
    """Better models, better ones promoted, and others promoted, of a challenger a week.

    60% equal to the champion of the day, 20% better by 0.010, 10% by 0.020, 10% worse by 0.010. A gain's
    spread is that of DialogSum. `own_luck`: each model's scores have their own part of it, so a champion that
    was promoted partly by luck keeps it; else each week's gains are drawn by themselves.
    """
    draw = np.random.default_rng([seed, rows])
    half = ROOT / math.sqrt(2)
    champion = CHAMPION + (
        draw.standard_normal((rows, 4)) @ half.T if own_luck else np.zeros((rows, 4))
    )
    truth, looks, earlier, counts = 0.0, 0, list[EarlierLook](), [0, 0, 0]
    for week in range(weeks):
        gain = float(draw.choice([0.0, 0.01, 0.02, -0.01], p=[0.6, 0.2, 0.1, 0.1]))
        noise = draw.standard_normal((rows, 4))
        scores = (
            CHAMPION + truth + gain + noise @ half.T
            if own_luck
            else champion + gain + noise @ ROOT.T
        )
        # Scores may leave 0 to 1 as truth rises; all are moved together, which changes no gain.
        ours, theirs = (table(np.clip(rows_ - truth, 0, 1)) for rows_ in (scores, champion))
        looks += 1
        decision = judged(
            ours, theirs, gate, looks=looks, earlier=earlier, digests=(f"week {week}", "champion")
        )
        counts[0] += gain > 0
        if decision.verdict == "PROMOTE":
            counts[1 if gain > 0 else 2] += 1
            looks, earlier = 0, []
            if own_luck:
                champion, truth = scores, truth + gain
        else:
            earlier.append(look_of(decision, gate.metric, ours, theirs))
    return counts[0], counts[1], counts[2]


def wilson(hits: int, count: int) -> str:
    """The share and its 95% interval."""
    z, share = 1.96, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2)) / (1 + z * z / count)
    return (
        f"{share:.3f} [{max(centre - half, 0):.3f}, {min(centre + half, 1):.3f}], {hits} of {count}"
    )


RL, ALL_WORSE = (0.0, 0.0, 0.01, 0.0), (0.0, -0.02, 0.015, 0.0)
Case = tuple[str, Callable[..., bool], tuple[object, ...], int]
TWINS = (0.0,) * 4
# The count of each is what docs/gate.md holds: hours of two cores; --scale 0.1 takes minutes.
CASES: list[Case] = [
    *((f"+0.010 in rougeL alone, {n} rows", gains_of, (n, RL), 3000) for n in (200, 500)),
    ("-0.02 in rouge2, +0.015 in rougeL, 500 rows", gains_of, (500, ALL_WORSE), 1000),
    *((f"+0.010 in rougeL alone at look 20, {n} rows", late, (n, RL, 20), 1000) for n in (200, 500)),
    *((f"twins, {n} rows", gains_of, (n, TWINS), 3000) for n in (50, 200, 500)),
    ("twins, 1500 rows", gains_of, (1500, TWINS), 1500),
    *((f"5% lose 0.4, {n} rows", rare, (n, 0.05, 0.4), 3000) for n in (50, 100, 200, 500)),
    *((f"1% lose 0.6, {n} rows", rare, (n, 0.01, 0.6), 3000) for n in (200, 300, 500)),
    ("1% lose 0.6, 1500 rows", rare, (1500, 0.01, 0.6), 1000),
    ("50 documents, 4 near-copies each", copies, (50, 4), 2000),
    *((f"learner, {LOOKS} looks, learns from {learns}", learner, (learns,), count)
      for learns, count in (("nothing", 3000), ("open part", 3000), ("verdict", 3000),
                            ("open part and verdict", 3000), ("all numbers", 120))),
]  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many trials")
    parser.add_argument("--only", default="", help="lines whose title holds this")
    parser.add_argument("--years", type=int, nargs=2, metavar=("OWN", "DRAWN"))
    parser.add_argument("--first-seed", type=int, default=0, help="of the years")
    parser.add_argument("--json", type=Path, help="write each year's counts there")
    options = parser.parse_args()
    begun = time.time()
    by_scale = max(2, round(80 * options.scale))
    own, drawn = options.years or (by_scale, by_scale)
    with ProcessPoolExecutor(options.processes) as pool:
        for title, trial, arguments, sets in CASES:
            if options.only not in title:
                continue
            count = max(20, round(sets * options.scale))
            chunks = [pool.submit(trial, seed, *arguments) for seed in range(count)]
            print(f"{title:52s}", wilson(sum(one.result() for one in chunks), count), flush=True)
        if options.only in "a year":
            kinds = {"own luck": own, "drawn again": drawn}
            print_years(pool, kinds, options.first_seed, options.json)
    print(f"{time.time() - begun:.0f} s, {options.processes} processes")


def print_years(
    pool: ProcessPoolExecutor, counts: dict[str, int], first_seed: int, path: Path | None
) -> None:
    """Of years by kind (how many): what was promoted. A kind's years are told in the order of their seeds.

    `path`: gets a line of JSON a year in that order, so a run that is cut off makes no choice among years.
    """
    seeds = {kind: range(first_seed, first_seed + years) for kind, years in counts.items()}
    futures = {
        kind: [pool.submit(year, seed, 500, kind == "own luck") for seed in seeds[kind]]
        for kind in counts
    }
    for kind, of_kind in futures.items():
        found = []
        for seed, future in zip(seeds[kind], of_kind, strict=True):
            found.append(future.result())
            if path:
                line = dict(zip(("better", "promoted", "false"), map(int, found[-1]), strict=True))
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind, "seed": seed, **line}) + "\n")
        better, promoted, false = np.array(found).sum(axis=0)
        a_year = BETTER_A_YEAR * promoted / better
        title = f"a year, 500 rows, {kind}: better promoted"
        print(f"{title:52s}", wilson(promoted, better), f"= {a_year:.1f} of {BETTER_A_YEAR} a year")
        print(f"{'  of promotions false':52s}", wilson(false, promoted + false), flush=True)


if __name__ == "__main__":
    main()
