"""How often the gate promotes the better of two real systems, on samples of the rows that both wrote for.

    python tests/bench/systems.py FOLDER [--rows 200 500] [--samples 60] [--pairs BETTER:WORSE ...]
        [--processes 2] [--json FILE]

FOLDER holds `rows.jsonl` (document and summary, an object a line) and a NAME.txt for each system: what it
wrote for each row, one a line. Of each pair of systems the better one is sure where the two-sided 95%
interval of its gain in rougeL over all rows (paired) is above 0. Each sample is drawn from all rows without
replacement, and judged twice by `decide` with the default recipe under sealed feedback: the better one as the
challenger, and the worse one.

What docs/gate.md shows are the 819 dialogues of SAMSum's test set, in its order, as outputs of seven systems
stand in public repositories: xcfcode/PLM_annotator (bart/summaries/samsum.txt), moussaKam/Bart_SAMSum
(results.txt, which also holds dialogues and references), SALT-NLP/Multi-View-Seq2Seq
(data/test_best_multi_attn.hypo; in data/.ipynb_checkpoints test_best_none and test_sent_c99_label_best)
and SALT-NLP/Structure-Aware-BART (test_generations.txt of src/composit and src/baseline).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from gate.gate_tables import judged  # noqa: E402  # needs the path
from gate.simulate import wilson  # noqa: E402

from tasks.contracts.recipe import Gate  # noqa: E402
from tasks.contracts.records import Output, Prediction, Row  # noqa: E402
from tasks.evaluate.scores import measures, score_texts  # noqa: E402

GATE = Gate()
Tables = dict[str, list[Prediction]]
TABLES: Tables = {}  # of this process: sent once, not with every sample


@dataclass(frozen=True)
class Judged:
    """What the gate says of one sample."""

    verdict: str
    gain_measured: bool
    gain_shown: bool  # the deciding bound is over min_delta
    broken: tuple[str, ...]  # guardrails


def read(folder: Path) -> Tables:
    """Each system's scored outputs. Raises ValueError where a file has not a line a row."""
    lines = (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [
        Row(f"row{i:05}", f"row{i:05}", one["document"], (one["summary"],))
        for i, one in enumerate(map(json.loads, lines))
    ]
    tables = {}
    for path in sorted(folder.glob("*.txt")):
        texts = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(texts) != len(rows):
            raise ValueError(f"{path}: {len(texts)} lines, but rows.jsonl has {len(rows)} rows")
        tables[path.stem] = score_texts(rows, [Output(text, True, 0, 0, 0) for text in texts])
    return tables


def surely_better(tables: Tables) -> dict[tuple[str, str], tuple[float, float]]:
    """The pairs (better, worse) over all rows: the gain in rougeL and half of its 95% interval."""
    scores = {
        name: np.array([row.scores[GATE.metric] for row in rows]) for name, rows in tables.items()
    }
    found = {}
    for better, worse in permutations(tables, 2):
        gains = scores[better] - scores[worse]
        half = 1.96 * gains.std(ddof=1) / np.sqrt(len(gains))
        if gains.mean() > half:
            found[better, worse] = (float(gains.mean()), float(half))
    return dict(sorted(found.items(), key=lambda one: one[1][0]))


def hold(tables: Tables) -> None:
    """Keep the tables for this process's samples."""
    TABLES.update(tables)


def sample(challenger: str, opponent: str, rows: int, seed: int) -> Judged:
    """The verdict on one sample of rows: of a seed the same for all pairs and both ways round."""
    drawn = np.random.default_rng([seed, rows]).choice(len(TABLES[challenger]), rows, replace=False)
    ours, theirs = ([TABLES[name][i] for i in sorted(drawn)] for name in (challenger, opponent))
    length = measures(ours).length_ratio
    decision = judged(
        ours, theirs, GATE, digests=(challenger, opponent), sealed=True, length=length
    )
    metric = decision.metrics[GATE.metric]
    return Judged(
        decision.verdict,
        metric.gain > GATE.min_delta,
        metric.low > GATE.min_delta,
        tuple(one.name for one in decision.guardrails if not one.held),
    )


def told(found: list[Judged]) -> dict[str, Any]:
    """Counts over a pair's samples: verdicts, and which guardrails were broken as measured."""
    verdicts = Counter(one.verdict for one in found)
    return {
        **{verdict.lower(): verdicts[verdict] for verdict in ("PROMOTE", "INCONCLUSIVE", "REJECT")},
        "of": len(found),
        "no_gain_measured": sum(not one.gain_measured for one in found),
        "gain_shown": sum(one.gain_shown for one in found),
        "gain_shown_but_guardrail": sum(
            one.gain_shown and one.verdict != "PROMOTE" for one in found
        ),
        "guardrails_broken": dict(Counter(name for one in found for name in one.broken)),
        "guardrails_of_rejects": dict(
            Counter(name for one in found if one.verdict == "REJECT" for name in one.broken)
        ),
    }


def judge_pairs(
    pool: Executor,
    pairs: dict[tuple[str, str], tuple[float, float]],
    sizes: list[int],
    samples: int,
) -> Iterator[dict[str, Any]]:
    """For each pair, count of rows and way round: what the gate says of the samples, printed as it comes."""
    asked = [
        (
            {"better": better, "worse": worse, "gain": round(gain, 4), "half_interval": round(half, 4),
             "rows": rows, "challenger": way},
            [pool.submit(sample, *((better, worse)[::step]), rows, seed) for seed in range(samples)],
        )
        for (better, worse), (gain, half) in pairs.items()
        for rows in sizes
        for way, step in (("better", 1), ("worse", -1))
    ]  # fmt: skip
    for line, futures in asked:
        yield (whole := line | told([one.result() for one in futures]))
        print(json.dumps(whole), flush=True)


def main() -> None:
    """Print a line for each pair, count of rows and way round; with --json write them too."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[200, 500])
    parser.add_argument("--samples", type=int, default=60)
    parser.add_argument("--pairs", nargs="+", help="only these, as BETTER:WORSE; all that are sure")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    tables = read(options.folder)
    pairs = surely_better(tables)
    if unknown := set(options.pairs or ()) - {":".join(pair) for pair in pairs}:
        parser.error(f"no pair of which the first is surely better: {', '.join(sorted(unknown))}")
    pairs = {
        p: gain for p, gain in pairs.items() if ":".join(p) in (options.pairs or [":".join(p)])
    }
    with ProcessPoolExecutor(options.processes, initializer=hold, initargs=(tables,)) as pool:
        lines = list(judge_pairs(pool, pairs, options.rows, options.samples))
    for rows in options.rows:
        for way in ("better", "worse"):
            of = [one for one in lines if (one["rows"], one["challenger"]) == (rows, way)]
            for verdict in ("promote", "inconclusive", "reject"):
                hits, count = (sum(one[key] for one in of) for key in (verdict, "of"))
                print(f"{rows} rows, the {way} one: {verdict:12s}", wilson(hits, count))
    if options.json:
        options.json.write_text(json.dumps(lines, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
