"""What becomes of reasoning beside an answer, or before it, as prompt.reasoning says."""

from __future__ import annotations

import re

from tasks.serving.summarizer import REASONING_BLOCKS, split_reasoning

# The end of a block, in any case: one that no beginning goes before is R1's, whose template writes that.
_ENDS = re.compile("|".join(re.escape(end) for _, end in REASONING_BLOCKS), re.IGNORECASE)


def settled(answer: str, reasoning: str, where: str, setting: str | None) -> str:
    """The answer alone (strip), or after its reasoning as a <think> block (learn).

    `reasoning`: what stands beside the answer; `setting`: prompt.reasoning. Raises ValueError for an answer
    with reasoning where nothing is set, for a block that does not end or stands elsewhere than at the
    beginning, and where no answer is left.
    """
    within, text = split_reasoning(answer)
    if text is None:
        raise ValueError(
            f"{where} begins with reasoning that never ends ({answer.strip()[:20]}...); correct or remove "
            "the row"
        )
    if stray := _ENDS.search(text):
        raise ValueError(
            f"{where} holds {stray[0]}, the end of reasoning, and does not begin with it; put "
            f"{_begin_of(stray[0])} before the reasoning where it is the first, or remove it or the row"
        )
    if within is None and not reasoning:
        return answer
    if setting is None:
        raise ValueError(
            f"{where} has reasoning, and the recipe does not say what becomes of it; set prompt.reasoning: "
            "strip (it is neither learned nor judged) or learn (both, as a part of the answer), or remove "
            "the row"
        )
    if not text:
        raise ValueError(f"{where} has reasoning and no answer; add the answer or remove the row")
    if setting == "strip":
        return text
    if within and reasoning and within != reasoning.strip():
        raise ValueError(f"{where} has reasoning within its text and beside it; remove one")
    return f"<think>\n{reasoning.strip()}\n</think>\n\n{text}" if reasoning else answer


def _begin_of(end: str) -> str:
    return next(
        begin for begin, known in REASONING_BLOCKS if known == end.lower() or known == end.upper()
    )
