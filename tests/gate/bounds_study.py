"""A benchmark, not a test: which lower bound of a mean gain holds its level, and what it costs in power.

    python tests/gate/bounds_study.py [--rows DIALOGSUM.jsonl] [--sets 2000] [--processes 2]

For each distribution of gains (true mean 0), number of documents and bound: the share of simulated sets whose
bound is over 0, which should be alpha; and for the power, the same with a true gain of 2.17 standard errors.
Resample matrices are drawn once for each number of documents and shared by all sets. With --rows, gains
are those of two extractive summarizers on real documents (rougeL), drawn from a pool of them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).parents[2])]
from tasks.gate.bootstrap import expanded_level, student_t_quantile  # noqa: E402  # needs the path

ROWS, RESAMPLES = (20, 50, 100, 200, 300, 500, 1500), 4000
ALPHA = float(os.environ.get("ALPHA", "0.05"))
MUCH, MOST_LOST = 0.3, (0.005, 0.01, 0.02)
SHIFT = 2.17  # standard errors: what a normal bound at 0.05 shows in 70% of cases
Floats = NDArray[np.float64]
POOL = Path("build/bounds_pool.npz")


def rare(share: float, loss: float) -> Callable[[np.random.Generator, tuple[int, int]], Floats]:
    """A share of documents loses much, the rest gains a little: the mean is 0."""

    def draw(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
        little = share * loss / (1 - share) + 0.01 * generator.standard_normal(shape)
        return np.where(generator.random(shape) < share, -loss, little)

    return draw


def ties(generator: np.random.Generator, shape: tuple[int, int]) -> Floats:
    """Outputs differ on one document in ten."""
    return np.where(generator.random(shape) < 0.1, generator.normal(0, 0.2, shape), 0)


DISTRIBUTIONS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Floats]] = {
    "normal": lambda g, shape: g.normal(0, 0.1, shape),
    "like ROUGE": lambda g, shape: g.beta(2, 5, shape) - g.beta(1.2, 3.0, shape),
    "differs on 1 in 10": ties,
    "5% lose 0.4": rare(0.05, 0.4),
    "1% lose 0.6": rare(0.01, 0.6),
}


def real(name: str) -> Callable[[np.random.Generator, tuple[int, int]], Floats]:
    """Drawn from a pool of real gains, which is centred."""
    pool = np.load(POOL)[name]
    pool = pool - pool.mean()
    return lambda generator, shape: generator.choice(pool, shape)


def bounds(gains: Floats, times: Floats, generator: np.random.Generator) -> dict[str, Floats]:
    """Lower bounds of the mean of each column of `gains` (documents by sets), by method.

    `times`: float64, resamples by documents, how often each is drawn.
    """
    count, sets = gains.shape
    mean, squares = gains.mean(0), (gains**2).mean(0)
    error = np.sqrt(np.maximum(squares - mean**2, 1e-18) / (count - 1))
    drawn = times @ gains / count
    drawn_error = np.sqrt(np.maximum(times @ gains**2 / count - drawn**2, 1e-18) / (count - 1))
    sorted_means = np.sort(drawn, axis=0)
    evidence = np.maximum((gains != 0).sum(0), 2)

    def at(levels: Floats) -> Floats:
        index = np.clip((levels * (len(times) + 1)).astype(int) - 1, 0, len(times) - 1)
        return sorted_means[index, np.arange(sets)]

    found = {"expanded": at(np.array([expanded_level(ALPHA, float(n)) for n in evidence]))}
    found["studentized"] = mean - error * np.quantile(
        (drawn - mean) / drawn_error, 1 - ALPHA, axis=0
    )
    found["larger of both"] = np.minimum(found["expanded"], found["studentized"])
    found["with Johnson (used)"] = np.minimum(found["expanded"], _johnson(gains, mean, error))
    found["BCa"] = at(_bca_levels(gains, drawn, mean))
    found["Student's t"] = mean - error * student_t_quantile(1 - ALPHA, count - 1)
    found["Johnson's t"] = _johnson(gains, mean, error)
    signs = generator.choice([-1.0, 1.0], (1999, count))
    flipped = signs @ gains / count
    p = (1 + (flipped >= mean - 1e-12).sum(0)) / 2000
    found["sign-flip"] = np.where(p <= ALPHA, 1.0, -1.0)  # a test of 0, no bound
    log = np.log(2 / ALPHA)
    found["empirical Bernstein"] = (
        mean - np.sqrt(2 * gains.var(0, ddof=1) * log / count) - 7 * 2 * log / (3 * (count - 1))
    )
    found["betting"] = np.where(_betting(gains), 1.0, -1.0)
    for method in ("expanded", "larger of both"):
        for most in MOST_LOST:
            found[f"{method[:8]}, lost {most:g}"] = np.where(
                _lost(gains, most), -1.0, found[method]
            )
    for most in MOST_LOST:
        found[f"stopped by lost {most:g}"] = np.where(_lost(gains, most), 1.0, -1.0)
    return found


def _lost(gains: Floats, most: float) -> NDArray[np.bool_]:
    """Whether more documents lose much than gain much, by more than this share and than one document."""
    lost = (gains < -MUCH).sum(0) - (gains > MUCH).sum(0)
    return np.asarray(lost > np.maximum(most * len(gains), 1))


def _johnson(gains: Floats, mean: Floats, error: Floats) -> Floats:
    """Student's t with a correction for skew (Johnson 1978; Hall 1992, the part that does not fold)."""
    count = len(gains)
    skew = ((gains - mean) ** 3).mean(0) / np.maximum(gains.std(0) ** 3, 1e-18)
    z = student_t_quantile(1 - ALPHA, count - 1)
    return mean - error * (z - skew * (1 + 2 * z**2) / (6 * np.sqrt(count)))


def _bca_levels(gains: Floats, drawn: Floats, mean: Floats) -> Floats:
    """Efron & Tibshirani 1993, chapter 14."""
    from scipy.special import ndtr, ndtri

    below = np.clip((drawn < mean).mean(0) + 0.5 * (drawn == mean).mean(0), 1e-4, 1 - 1e-4)
    z0, centred = ndtri(below), gains - mean
    acceleration = (centred**3).sum(0) / (6 * np.maximum((centred**2).sum(0), 1e-18) ** 1.5)
    z = z0 + ndtri(ALPHA)
    return np.asarray(ndtr(z0 + z / (1 - acceleration * z)))


def _betting(gains: Floats) -> NDArray[np.bool_]:
    """Whether a bet against a mean of 0 or less wins 1/alpha (Waudby-Smith & Ramdas 2024)."""
    count = len(gains)
    steps = np.arange(1, count + 1)[:, None]
    mean = np.cumsum(gains, 0) / (steps + 1)
    var = (0.25 + np.cumsum((gains - mean) ** 2, 0)) / (steps + 1)
    before = np.vstack([np.full((1, gains.shape[1]), 0.25), var[:-1]])
    bet = np.minimum(np.sqrt(2 * np.log(1 / ALPHA) / (count * before)), 0.75)
    return np.asarray(np.cumsum(np.log1p(bet * gains), 0).max(0) >= np.log(1 / ALPHA))


def trial(task: tuple[str, int, int, int]) -> tuple[str, int, dict[str, tuple[float, float]]]:
    """Share of sets with a bound over 0, by method: without a gain, and with one of SHIFT errors."""
    name, rows, sets, seed = task
    draw = DISTRIBUTIONS.get(name) or real(name)
    generator = np.random.default_rng([seed, rows])
    times = np.zeros((RESAMPLES, rows))
    for line in times:
        line[:] = np.bincount(generator.integers(rows, size=rows), minlength=rows)
    spread = draw(generator, (200, 2000)).std()
    found: dict[str, list[list[float]]] = {}
    for start in range(0, sets, 250):
        gains = draw(generator, (rows, min(250, sets - start)))
        for column, shift in enumerate((0.0, SHIFT * spread / np.sqrt(rows))):
            for method, low in bounds(gains + shift, times, generator).items():
                found.setdefault(method, [[], []])[column] += (low > 0).tolist()
    return name, rows, {m: (float(np.mean(v[0])), float(np.mean(v[1]))) for m, v in found.items()}


def make_pool(path: Path) -> None:
    """Gains in rougeL of extractive summarizers over each other, on real documents."""
    from tasks.evaluate.rouge.scoring import score_pairs

    with path.open() as lines:
        rows = [json.loads(line) for line in lines][:6000]
    turns = [row["dialogue"].split("\n") for row in rows]
    systems = {
        "lead 2": [" ".join(lines[:2]) for lines in turns],
        "lead 3": [" ".join(lines[:3]) for lines in turns],
        "longest 2": [" ".join(sorted(lines, key=len)[-2:]) for lines in turns],
        "last 2": [" ".join(lines[-2:]) for lines in turns],
    }
    references = [row["summary"] for row in rows]
    scores = {
        name: np.array([one["rougeL"] for one in score_pairs(texts, references)])
        for name, texts in systems.items()
    }
    names = list(systems)
    POOL.parent.mkdir(exist_ok=True)
    pairs = [(names[0], names[1]), (names[1], names[2]), (names[2], names[3])]
    np.savez(POOL, **{f"real: {one} over {two}": scores[one] - scores[two] for one, two in pairs})


def main() -> None:
    """Print a table for each distribution."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--sets", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    if options.rows:
        make_pool(options.rows)
    names = [*DISTRIBUTIONS, *(np.load(POOL).files if POOL.exists() else [])]
    tasks = [(name, rows, options.sets, 1) for rows in reversed(ROWS) for name in names]
    with ProcessPoolExecutor(options.processes) as pool:
        results = {(name, rows): shares for name, rows, shares in pool.map(trial, tasks)}
    for name in names:
        print(f"\n{name}: share promoted without a gain / with one, by documents")
        for method in results[name, ROWS[0]]:
            cells = [
                f"{results[name, n][method][0]:.3f}/{results[name, n][method][1]:.2f}" for n in ROWS
            ]
            print(f"  {method:20s}", *(f"{cell:>12s}" for cell in cells), flush=True)
    print(json.dumps({"alpha": ALPHA, "sets": options.sets, "resamples": RESAMPLES}))


if __name__ == "__main__":
    main()
