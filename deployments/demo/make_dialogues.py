"""Write the demo's data: `python deployments/demo/make_dialogues.py [--out FOLDER]`.

The same seed gives the same bytes. What a conversation comes to (its combination of facts) decides
its split, so evaluation asks for combinations that training has never seen. Fresh rows are of the
evaluation's kind, in combinations that neither of the others has.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from hashlib import sha256
from itertools import count, islice
from pathlib import Path

from dialogues.base import Dice, Scene
from dialogues.duties import favour, work
from dialogues.leisure import dinner, outing, present, trip
from dialogues.trade import hotel, sale

FAMILIES = (outing, dinner, trip, present, sale, hotel, work, favour)
SIZES = {"train": 720, "evaluation": 200, "fresh": 100}
SEED = "precis-demo-1"


def split_of(scene: Scene) -> str:
    """The side that a combination of facts belongs to: one in six is for evaluation alone."""
    share = int.from_bytes(sha256(scene.combination.encode()).digest()[:4], "big") % 6
    return "evaluation" if share == 0 else "train"


def scenes(stream: str, split: str) -> Iterator[Scene]:
    """Endless scenes of one split, the families in turn, no dialogue twice."""
    seen: set[str] = set()
    for index in count():
        scene = FAMILIES[index % len(FAMILIES)](Dice(f"{stream}-{index}"))
        if split_of(scene) == split and scene.dialogue not in seen:
            seen.add(scene.dialogue)
            yield scene


def scenes_of(split: str) -> list[Scene]:
    """The scenes of one file."""
    if split != "fresh":
        return list(islice(scenes(f"{SEED}-{split}", split), SIZES[split]))
    used = {scene.combination for scene in scenes_of("evaluation")}
    unused = (s for s in scenes(f"{SEED}-fresh", "evaluation") if s.combination not in used)
    return list(islice(unused, SIZES[split]))


def rows(split: str) -> list[dict[str, str]]:
    """The rows of one file."""
    return [
        {"id": f"{split}-{number:04}", "dialogue": scene.dialogue, "summary": scene.summary}
        for number, scene in enumerate(scenes_of(split))
    ]


def main() -> None:
    """Write `train.jsonl`, `evaluation.jsonl` and `fresh.jsonl`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for split in SIZES:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split)]
        (out / f"{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
