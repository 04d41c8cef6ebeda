"""What the gate says of 13 summarizers that people rated, beside what people prefer.

    python tests/bench/people.py human_judgment.jsonl [--scores tests/gate/rated_systems.json]

The file is DialSummEval's `annotation_campus/human_judgment.jsonl` (Gao & Wan 2022,
https://aclanthology.org/2022.naacl-main.418): 100 SAMSum dialogues, three ratings of coherence, consistency,
fluency and relevance of each summary. The reference is SAMSum's own (their system A). Of each ordered pair,
one is the challenger. People prefer one of a pair where the two-sided 95% interval of the difference of mean
ratings (paired, over dialogues) is on one side of 0. `--scores` writes what tests/gate/test_gate_people.py
reads: the ROUGE scores of the neural systems, their mean ratings, and the pairs of which people prefer one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
from gate.gate_tables import judged  # noqa: E402  # needs the path

from tasks.contracts.recipe import Gate  # noqa: E402
from tasks.contracts.records import ROUGE_NAMES, Output, Prediction, Row  # noqa: E402
from tasks.evaluate.scores import score_texts  # noqa: E402

SYSTEMS = dict(
    zip(
        "BCDEFGHIJKLMN",
        ("LONGEST-3", "LEAD-3", "PGN", "Transformer", "BART", "PEGASUS", "UniLM", "CODS", "ConvoSumm",
         "MV-BART", "PLM", "PNEP", "S-BART"),
        strict=True,
    )
)  # fmt: skip
REFERENCE = "A"
EXTRACTIVE = {"LONGEST-3", "LEAD-3"}
Floats = NDArray[np.float64]


def read(path: Path) -> tuple[dict[str, list[Prediction]], dict[str, Floats]]:
    """The systems' scored outputs, and a mean rating (1 to 5) a dialogue."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_system: dict[str, list[dict[str, object]]] = {}
    for line in lines:
        by_system.setdefault(line["model_id"], []).append(line)
    references = {line["id"]: line["summary"] for line in by_system[REFERENCE]}
    tables, ratings = {}, {}
    for letter, name in SYSTEMS.items():
        own = by_system[letter]
        rows = [
            Row(str(line["id"]), str(line["id"]), document(line), (str(references[line["id"]]),))
            for line in own
        ]
        outputs = [Output(str(line["summary"]), True, 0, 0, 0) for line in own]
        tables[name] = score_texts(rows, outputs)
        ratings[name] = np.array([rating(line) for line in own])
    return tables, ratings


def document(line: dict[str, object]) -> str:
    """The dialogue, a turn a line."""
    return str(line["dialogue"]).removeprefix("| ").replace(" | ", "\n")


def rating(line: dict[str, object]) -> float:
    """The mean over annotators and the four qualities."""
    return float(np.mean([list(one.values()) for one in line["annotations"]]))  # type: ignore[attr-defined]


def preferred(ours: Floats, theirs: Floats) -> str:
    """What people say of the challenger: better, worse, or no difference that is beyond noise."""
    gains = ours - theirs
    half = student.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    return "better" if gains.mean() > half else "worse" if gains.mean() < -half else "no difference"


def write_scores(
    path: Path, tables: dict[str, list[Prediction]], ratings: dict[str, Floats]
) -> None:
    """Numbers alone, without a text: a list of (documents) scores by system and ROUGE_NAMES."""
    neural = [name for name in tables if name not in EXTRACTIVE]
    scores = {
        name: {
            rouge: [round(row.scores[rouge], 4) for row in tables[name]] for rouge in ROUGE_NAMES
        }
        for name in neural
    }
    surely = [
        pair
        for pair in permutations(neural, 2)
        if preferred(*(ratings[name] for name in pair)) == "better"
    ]
    found = {
        "source": "ROUGE F1 by tests/bench/people.py, of what DialSummEval (Gao & Wan 2022, NAACL; "
        "annotation_campus/human_judgment.jsonl) holds of neural systems on 100 SAMSum dialogues",
        "ratings": {name: round(float(ratings[name].mean()), 3) for name in neural},
        "people_prefer": surely,
        "scores": scores,
    }
    path.write_text(json.dumps(found) + "\n", encoding="utf-8")


def main() -> None:
    """Print verdicts by what people say: among neural systems, and of pairs with an extractive one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--scores", type=Path)
    options = parser.parse_args()
    tables, ratings = read(options.file)
    if options.scores:
        write_scores(options.scores, tables, ratings)
    gate, counts, misjudged, told = (
        Gate(),
        Counter[tuple[bool, str, str]](),
        list[str](),
        set[str](),
    )
    for ours, theirs in permutations(tables, 2):
        people = preferred(ratings[ours], ratings[theirs])
        decision = judged(tables[ours], tables[theirs], gate, digests=(ours, theirs))
        neural = not {ours, theirs} & EXTRACTIVE
        counts[neural, people, decision.verdict] += 1
        if (people, decision.verdict) in {("better", "REJECT"), ("worse", "PROMOTE")}:
            misjudged.append(f"{ours} over {theirs}: people say {people}, {decision.verdict}")
        told |= {theirs for note in decision.notes if "cop" in note}
    for neural in (True, False):
        print("among neural systems" if neural else "with LEAD-3 or LONGEST-3 in the pair")
        for people in ("better", "no difference", "worse"):
            row = {v: counts[neural, people, v] for v in ("PROMOTE", "INCONCLUSIVE", "REJECT")}
            print(f"  people say {people:14s}", row)
    print("\n".join(misjudged))
    print("opponents that the gate says copy their document:", sorted(told))


if __name__ == "__main__":
    main()
