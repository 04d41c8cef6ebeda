"""What the trainer learns of conversations: its own batches hold the masks that were made."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.records import Row
from tasks.models.encoding import IGNORED
from tasks.train import qlora

TURNS = [(f"Where is thing {n}?", f"Thing {n} is at the market.") for n in range(12)]


def rows() -> list[Row]:
    """Conversations of one to three turns."""
    found = []
    for number in range(0, 12, 2):
        turns = TURNS[number : number + 1 + number // 2 % 3]
        text = " </s><s>".join(f"[INST] {q} [/INST] {a}" for q, a in turns)
        answer = turns[-1][1]
        found.append(Row(str(number), str(number), text.removesuffix(f" {answer}"), (answer,)))
    return found


@pytest.mark.parametrize("packing", [True, False])
def test_batches_hold_every_answer_and_nothing_else(packing: bool, tmp_path: Path) -> None:
    """Packed or padded: learnt runs are the answers with their </s>, whatever TRL does to the rows."""
    base = tiny.make_tiny_base(tmp_path / "base")
    recipe = tiny.make_recipe(
        base,
        prompt={"format": "chat", "chat_template": "llama-2"},
        training={"packing": packing, "max_length": 256},
    )
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows())
    trainer: Any = qlora.build_trainer(path, tiny.prepared(base, recipe), recipe, tmp_path / "job")[
        0
    ]
    learnt, ignored = [], []
    for batch in trainer.get_train_dataloader():
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
            pairs = zip(ids, labels, strict=True)
            for keep, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
                text = trainer.processing_class.decode([i for i, _ in run])
                (learnt if keep else ignored).append(text.replace("<pad>", ""))
    expected = [
        (f"<s>[INST] {question} [/INST]", f" {answer} </s>")
        for number in range(0, 12, 2)
        for question, answer in TURNS[number : number + 1 + number // 2 % 3]
    ]
    assert sorted(learnt) == sorted(answer for _, answer in expected)
    assert sorted(filter(None, ignored)) == sorted(question for question, _ in expected)
