"""The first training rows as the model sees them: looking at them is what finds wrong prompts.

Made by the code that training and evaluation encode rows with, and decoded again with special tokens.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tasks.contracts.records import Row
from tasks.ingest.lengths import Meter
from tasks.models.encoding import IGNORED, encode_rows
from tasks.serving.summarizer import encode

ROWS = 3  # in the data report
LONGEST = 2000  # characters of a part that is shown whole


def seen_rows(train: Path, meter: Meter, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a file of canonical rows, each as JSON-able facts.

    `sequences`: what training reads, a list of parts each (`learned`, `tokens`, `text`);
    `evaluation_prompt`: what generation is given, null where it is the last sequence up to its last
    answer. Before training cuts what is longer than training.max_length.
    """
    adapter = TypeAdapter(Row)
    with train.open("rb") as lines:
        rows = [adapter.validate_json(line) for line in itertools.islice(lines, count)]
    return [_seen(row, meter) for row in rows]


def _seen(row: Row, meter: Meter) -> dict[str, Any]:
    tokenizer = meter.tokenizer.loaded
    examples = encode_rows([row], tokenizer, meter.settings, sys.maxsize)
    pairs = zip(examples.input_ids, examples.labels, strict=True)
    sequences = [list(_runs(ids, labels)) for ids, labels in pairs]
    asked = encode(tokenizer, row.document, meter.settings)
    trained = [i for _, ids in sequences[-1][:-1] for i in ids]
    return {
        "id": row.id,
        "sequences": [
            [_part(learned, ids, tokenizer) for learned, ids in sequence] for sequence in sequences
        ],
        "evaluation_prompt_tokens": len(asked),
        "evaluation_prompt": None if asked == trained else _shortened(_text(asked, tokenizer)),
    }


def _runs(ids: list[int], labels: list[int]) -> Iterator[tuple[bool, list[int]]]:
    """Runs of learned and of masked tokens."""
    pairs = zip(ids, labels, strict=True)
    for learned, run in itertools.groupby(pairs, key=lambda pair: pair[1] != IGNORED):
        yield learned, [id_ for id_, _ in run]


def _part(learned: bool, ids: list[int], tokenizer: Any) -> dict[str, Any]:
    text = _text(ids, tokenizer)
    return {
        "learned": learned,
        "tokens": len(ids),
        "text": text if learned else _shortened(text),
    }


def _text(ids: list[int], tokenizer: Any) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _shortened(text: str) -> str:
    cut = len(text) - LONGEST
    if cut <= 0:
        return text
    half = LONGEST // 2
    return f"{text[:half]}\n[... {cut:,} characters are not shown ...]\n{text[-half:]}"


def _visible(text: str) -> list[str]:
    """A text's lines with characters that a terminal would obey, or not show, as Python writes them."""
    return [
        "".join(c if c.isprintable() or c == "\t" else repr(c)[1:-1] for c in line)
        for line in text.split("\n")
    ]


def lines(seen: list[dict[str, Any]]) -> list[str]:
    """The rows for a terminal: each line of text after what becomes of it."""
    written = []
    for number, row in enumerate(seen, 1):
        written.append(f"row {number} as the model sees it ({row['id']}):")
        for place, sequence in enumerate(row["sequences"], 1):
            if len(row["sequences"]) > 1:
                written.append(f"  sequence {place} of {len(row['sequences'])}")
            for part in sequence:
                name = "learned" if part["learned"] else "masked"
                written.append(f"  {name}, {part['tokens']} tokens:")
                written += [f"    {name:>7} | {line}" for line in _visible(part["text"])]
        tokens, other = row["evaluation_prompt_tokens"], row["evaluation_prompt"]
        if other is None:
            written.append(
                f"  evaluation's prompt: the same {tokens} tokens before the last answer"
            )
        else:
            written.append(f"  evaluation's prompt, {tokens} tokens:")
            written += [f"     prompt | {line}" for line in _visible(other)]
    return written
