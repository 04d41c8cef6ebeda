"""Special tokens: a prompt has those of its template and tokenizer, a text has none, whatever it spells.

A document, message or reference that spells one (`</s>`) is refused, in training, evaluation, loss and
serving alike. It is not encoded as plain text, because other servers that are sent the same prompt would
read the token.
"""

from __future__ import annotations

import functools
import re
from typing import Any

# What Llama 2's format has between two turns of one text: marks, and no part of a message.
TURN_MARKS = re.compile(r"\s*</s>\s*(<s>\s*)?(?=\[INST\])|^\s*<s>\s*(?=\[INST\])")
FRAME_PROBES = ("a", "1", "the", ".", "я", "中")  # one that the tokenizer knows


@functools.lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids that no text may become. Not the unknown token, unless it has another use too (GPT-2)."""
    ids = set(tokenizer.all_special_ids)
    ids |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    used = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id)
    return frozenset(ids if tokenizer.unk_token_id in used else ids - {tokenizer.unk_token_id})


@functools.lru_cache(maxsize=8)
def frame(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The special tokens that the tokenizer adds before and after a text by itself."""
    whole: list[int] = []
    for probe in FRAME_PROBES:
        whole = tokenizer(probe)["input_ids"]
        if inner := tokenizer(probe, add_special_tokens=False)["input_ids"]:
            for start in range(len(whole) - len(inner) + 1):
                if whole[start : start + len(inner)] == inner:
                    return tuple(whole[:start]), tuple(whole[start + len(inner) :])
    return tuple(i for i in whole[:1] if i != tokenizer.eos_token_id), ()


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """Token ids of a prompt with the special tokens that the tokenizer puts before a text.

    Not those that it puts after one: after an end-of-text there is nothing to write.
    """
    return [*frame(tokenizer)[0], *tokenizer(prompt, add_special_tokens=False)["input_ids"]]


def require_plain(tokenizer: Any, text: str) -> None:
    """Raise ValueError for a text that spells a special token, saying which and where."""
    if problem := _problem(tokenizer, text):
        raise ValueError(problem)


@functools.lru_cache(maxsize=8)
def _spellings(tokenizer: Any) -> frozenset[str] | None:
    """What a text must hold to become a special token; None: only tokenizing it shows."""
    ids = set(special_ids(tokenizer)) | {tokenizer.unk_token_id} - {None}
    tokens = [tokenizer.added_tokens_decoder.get(i) for i in ids]
    if any(token is None or token.normalized for token in tokens):
        return None  # a normalizer may make one of another text
    return frozenset(token.content for token in tokens if token is not None)


@functools.lru_cache(maxsize=1024)
def _problem(tokenizer: Any, text: str) -> str | None:
    spellings = _spellings(tokenizer)
    if spellings is not None and not any(spelling in text for spelling in spellings):
        return None
    text = TURN_MARKS.sub("\n", text)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    special, unknown = special_ids(tokenizer), tokenizer.unk_token_id
    if unknown is not None and tokenizer.unk_token in text:
        special |= {unknown}
    found = next((i for i in ids if i in special), None)
    if found is None:
        return None
    token = str(tokenizer.convert_ids_to_tokens(found))
    place = text.find(token)
    if place < 0:
        return (
            f"holds a character that becomes {token}, a special token of the tokenizer; remove it, or "
            "name a base that knows it"
        )
    around = text[max(0, place - 20) : place + len(token) + 20]
    return (
        f"holds {token}, a special token of the tokenizer (in {around!r}): the model would read the "
        "token and not the text; remove it, or write it otherwise"
    )
