"""Reasoning that a text begins with: where it ends and the answer begins."""

from __future__ import annotations

# How models mark it: Qwen and DeepSeek, Claude's and others' tags, Magistral, and OpenThoughts' data.
BLOCKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("[THINK]", "[/THINK]"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
MARKS = frozenset(mark for block in BLOCKS for mark in block)


def split_reasoning(text: str) -> tuple[str | None, str | None]:
    """The reasoning and the answer after it, stripped.

    Reasoning is None where the text begins with no block of it, the answer None where the block does
    not end.
    """
    text = text.strip()
    for begin, end in BLOCKS:
        if text.startswith(begin):
            reasoning, mark, answer = text.removeprefix(begin).partition(end)
            return reasoning.strip(), answer.strip() if mark else None
    return None, text


def may_begin_reasoning(text: str) -> bool:
    """Whether a text could become one that begins with such a block."""
    return any(begin.startswith(text) for begin, _ in BLOCKS)
