"""Documents longer than the prompt, summarized in parts: the parts' summaries are summarized again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from .prompt import encode, full_length, token_ends
from .settings import SummarizerSettings

# End a sentence whatever follows: CJK, Devanagari, Arabic, Urdu, Ethiopic, Armenian, Myanmar, Khmer. Those
# of tasks/evaluate/sentences.py, which is under the seal as it stands; a test holds that they are the same.
UNSPACED_MARKS = (
    "\u3002\uff01\uff1f\uff61\u0964\u0965\u061f\u06d4\u1362\u1367\u0589\u104b\u17d4\u17d5"
)
_CLOSING = r"[\"'\u2019\u201d)\]\u300d\u300f\uff09\u3011\u300b]*"
# Where a part of a document may end, best first: a paragraph, a sentence, a word.
BREAKS = (
    r"\S(?=[^\S\n]*\n[^\S\n]*\n)",
    rf"[.!?]{_CLOSING}(?=\s)|[{UNSPACED_MARKS}]+{_CLOSING}",
    r"\S(?=\s)",
)
SEPARATOR = "\n\n"  # between summaries of parts: paragraphs, so that they can be split there again
# A round of map_reduce must leave at most this share of the tokens; a text that does not get
# shorter is cut instead, so there are log(tokens / room) / log(1 / MAX_SHRINK) + 1 rounds at most.
MAX_SHRINK = 0.9


def split(tokenizer: Any, document: str, settings: SummarizerSettings) -> list[str]:
    """A document in parts of about equal length, each of which fits a prompt whole.

    A part ends between two tokens, where a paragraph ends nearby, or else a sentence, or a word. No
    more than white space is lost between parts. Raises ValueError when a prompt has no room for them.
    """
    ends = token_ends(tokenizer, document)
    parts, first = [], 0
    while first < len(ends):
        begin = ends[first - 1] if first else 0
        first += _part_tokens(tokenizer, document, ends, first, settings)
        parts.append(document[begin : ends[first - 1]].strip())
    return [part for part in parts if part]


def _part_tokens(
    tokenizer: Any, document: str, ends: list[int], first: int, settings: SummarizerSettings
) -> int:
    """How many tokens, from token `first` on, are the next part: at least one."""
    left, begin = len(ends) - first, ends[first - 1] if first else 0
    room = settings.max_source_tokens - len(encode(tokenizer, "", settings))
    while room > 0:
        size = left
        if left > room:
            size = _to_break(document, ends, first, -(-left // -(-left // room)), room)
        part = document[begin : ends[first + size - 1]].strip()
        excess = full_length(tokenizer, part, settings) - settings.max_source_tokens
        if excess <= 0:
            return size
        room = size - excess  # tokens may join differently at a cut
    raise ValueError(
        f"a prompt of {settings.max_source_tokens} tokens leaves no room beside the template for a "
        "part of a document; shorten prompt.template, or raise prompt.max_source_tokens"
    )


def _to_break(document: str, ends: list[int], first: int, even: int, most: int) -> int:
    """About `even` tokens from `first` on, half as many more or less and at most `most`: to a break.

    The paragraph's end nearest to the middle; if there is none, the sentence's; or else the word's.
    """
    low = first + even - even // 2 - 1
    high = first + min(even + even // 2, most) - 1
    for pattern in BREAKS:
        breaks = []
        for match in re.compile(pattern).finditer(document, max(ends[low] - 1, 0)):
            if match.end() > ends[high]:
                break
            breaks.append(match.end())
        if breaks:
            nearest = min(breaks, key=lambda place: abs(place - ends[first + even - 1]))
            return bisect_left(ends, nearest, low, high) - first + 1
    return even


def condense(
    documents: list[str],
    tokenizer: Any,
    settings: SummarizerSettings,
    summarize: Callable[[list[str]], list[str]],
) -> list[tuple[str, int]]:
    """For each document a text for one prompt, and from how many parts it was made.

    A document that fits stands for itself (1). The others are split, their parts summarized, and the
    parts' summaries together are a document again: round by round until it fits, or gets no shorter
    (see MAX_SHRINK; such a text is cut, like any document without map_reduce). `summarize` gives the
    summaries of texts that each fit a prompt.
    """
    texts, parts = list(documents), [1] * len(documents)
    lengths = {i: full_length(tokenizer, text, settings) for i, text in enumerate(texts)}
    waiting = list(lengths)
    while waiting := [i for i in waiting if lengths[i] > settings.max_source_tokens]:
        groups = {i: split(tokenizer, texts[i], settings) for i in waiting}
        for i, summaries in _summaries_of(groups, summarize).items():
            parts[i] += len(summaries) - (parts[i] == 1)
            texts[i] = SEPARATOR.join(text for text in summaries if text)
            before, lengths[i] = lengths[i], full_length(tokenizer, texts[i], settings)
            if lengths[i] > MAX_SHRINK * before:
                waiting.remove(i)
    return [(text, max(count, 1)) for text, count in zip(texts, parts, strict=True)]


def _summaries_of(
    groups: dict[int, list[str]], summarize: Callable[[list[str]], list[str]]
) -> dict[int, list[str]]:
    """The summary of each part. A single part stands for itself: only white space was too much."""
    parts = [part for group in groups.values() if len(group) > 1 for part in group]
    summaries = iter(summarize(parts))
    return {
        i: [next(summaries) for _ in group] if len(group) > 1 else group
        for i, group in groups.items()
    }
