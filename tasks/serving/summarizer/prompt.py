"""From a document, or several texts by name, to the token ids of a prompt, cut so that it fits."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .chat import conversation_of, messages_of, render, require_continued, token_ids, turn_end
from .settings import Document, Message, SummarizerSettings
from .special_tokens import prompt_ids, require_plain
from .template import filled, values_of


def fit(tokenizer: Any, document: Document, settings: SummarizerSettings) -> tuple[str, int]:
    """The prompt text for a document, cut to `max_source_tokens`, and how many tokens were cut.

    Cuts fall between tokens of the document, and the *text* is cut: any server that is sent this
    text sees the same tokens. Of several texts the longest is cut. Raises ValueError when not even an
    empty document fits, and for a document that spells a special token.
    """
    if settings.format == "chat":
        messages, cut_tokens = fit_chat(tokenizer, document, settings)
        return render(tokenizer, messages, settings), cut_tokens

    def length_of(values: dict[str, str]) -> int:
        return len(prompt_ids(tokenizer, filled(settings.template, values)))

    values, cut_tokens = _fit_values(tokenizer, values_of(document, settings), settings, length_of)
    return filled(settings.template, values), cut_tokens


def _fit_values(
    tokenizer: Any,
    values: dict[str, str],
    settings: SummarizerSettings,
    length_of: Callable[[dict[str, str]], int],
) -> tuple[dict[str, str], int]:
    """The values cut so that their prompt fits, and how many of their tokens were cut.

    The one with the most tokens is cut; only if the prompt is too long without it, the next one too.
    """
    for text in values.values():
        require_plain(tokenizer, text)
    excess, cut_tokens = length_of(values) - settings.max_source_tokens, 0
    if excess <= 0:
        return values, 0
    ends_of = {name: token_ends(tokenizer, text) for name, text in values.items()}
    for name, ends in sorted(ends_of.items(), key=lambda item: -len(item[1])):
        keep = max(len(ends) - excess, 0)
        while True:  # tokens may join differently at a cut: drop a few more until it fits
            cut = values | {name: _truncate(values[name], ends, keep, settings.truncate)}
            excess = length_of(cut) - settings.max_source_tokens
            if excess <= 0:
                return cut, cut_tokens + len(ends) - keep
            if not keep:
                break
            keep = max(keep - excess, 0)
        values, cut_tokens = cut, cut_tokens + len(ends)
    template = "chat template" if settings.format == "chat" else "prompt template"
    raise ValueError(
        f"the {template} alone is longer than {settings.max_source_tokens} tokens; shorten "
        f"prompt.{'system' if settings.format == 'chat' else 'template'}, or raise "
        "prompt.max_source_tokens or lower evaluation.max_new_tokens"
    )


def token_ends(tokenizer: Any, text: str) -> list[int]:
    """Where each token of a text ends, in characters."""
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return [end for _, end in encoding["offset_mapping"]]


def _truncate(document: str, ends: list[int], keep: int, truncate: str) -> str:
    """The document with only `keep` of its tokens; `ends` are its tokens' end offsets."""
    starts = [0, *ends]  # a token starts where the one before ends, so no character is lost
    head = {"tail": keep, "head": 0, "middle": (keep + 1) // 2}[truncate]
    tail = keep - head
    return document[: starts[head]] + (document[starts[len(ends) - tail] :] if tail else "")


def fit_chat(
    tokenizer: Any, document: Document, settings: SummarizerSettings
) -> tuple[list[Message], int]:
    """A document's conversation, cut to a prompt of `max_source_tokens`; how many tokens were cut.

    The oldest turns are dropped first, each question with its answer; the system message stays. Only
    a last question that is too long by itself is cut, as `settings.truncate` says; of one made of
    several texts the longest is. Raises ValueError when not even an empty one fits, and for a message
    that spells a special token.
    """
    if isinstance(document, dict):
        return _fit_chat_of_inputs(tokenizer, document, settings)
    messages, limit = messages_of(document, settings.system), settings.max_source_tokens
    for message in messages:
        require_plain(tokenizer, message["content"])
    full = length = len(token_ids(tokenizer, render(tokenizer, messages, settings)))
    first = int(messages[0]["role"] == "system")
    while length > limit and len(messages) > first + 1:
        messages = messages[:first] + messages[first + 2 :]
        length = len(token_ids(tokenizer, render(tokenizer, messages, settings)))
    if length > limit:
        messages, length = _cut_question(tokenizer, messages, length - limit, settings)
    return messages, full - length


def _fit_chat_of_inputs(
    tokenizer: Any, document: dict[str, str], settings: SummarizerSettings
) -> tuple[list[Message], int]:
    def length_of(values: dict[str, str]) -> int:
        messages = conversation_of(values, settings)
        return len(token_ids(tokenizer, render(tokenizer, messages, settings)))

    values, cut_tokens = _fit_values(tokenizer, values_of(document, settings), settings, length_of)
    return conversation_of(values, settings), cut_tokens


def _cut_question(
    tokenizer: Any, messages: list[Message], excess: int, settings: SummarizerSettings
) -> tuple[list[Message], int]:
    """The messages with the last one's text cut, and the prompt's length then."""
    *before, question = messages
    text = question["content"]
    ends = token_ends(tokenizer, text)
    keep = len(ends) - excess
    while keep >= 0:  # as in `fit`
        cut = [*before, question | {"content": _truncate(text, ends, keep, settings.truncate)}]
        length = len(token_ids(tokenizer, render(tokenizer, cut, settings)))
        if length <= settings.max_source_tokens:
            return cut, length
        keep -= max(1, length - settings.max_source_tokens)
    raise ValueError(
        f"the chat template alone is longer than {settings.max_source_tokens} tokens; shorten "
        "prompt.system, or raise prompt.max_source_tokens or lower evaluation.max_new_tokens"
    )


def encode(tokenizer: Any, document: Document, settings: SummarizerSettings) -> list[int]:
    """Token ids of the prompt, with the special tokens that the tokenizer adds by itself.

    A chat template writes all special tokens that it wants; there the tokenizer adds none.
    """
    return _encode(tokenizer, fit(tokenizer, document, settings)[0], settings)


def _encode(tokenizer: Any, prompt: str, settings: SummarizerSettings) -> list[int]:
    if settings.format == "chat":
        return token_ids(tokenizer, prompt)
    return prompt_ids(tokenizer, prompt)


def encode_and_count(
    tokenizer: Any, document: Document, settings: SummarizerSettings
) -> tuple[list[int], int]:
    """Token ids of the prompt, and how many of the document's tokens were cut."""
    if isinstance(document, str):
        return _encode_text(tokenizer, document, settings)
    if isinstance(document, dict):
        return _encode_texts(tokenizer, tuple(document.items()), settings)
    prompt, cut_tokens = fit(tokenizer, document, settings)
    return _encode(tokenizer, prompt, settings), cut_tokens


@functools.lru_cache(maxsize=2048)
def _encode_text(
    tokenizer: Any, document: str, settings: SummarizerSettings
) -> tuple[list[int], int]:
    # Asked for three times a document: without the cache a tenth of the time on a GPU.
    prompt, cut_tokens = fit(tokenizer, document, settings)
    return _encode(tokenizer, prompt, settings), cut_tokens


@functools.lru_cache(maxsize=2048)
def _encode_texts(
    tokenizer: Any, named_texts: tuple[tuple[str, str], ...], settings: SummarizerSettings
) -> tuple[list[int], int]:
    prompt, cut_tokens = fit(tokenizer, dict(named_texts), settings)
    return _encode(tokenizer, prompt, settings), cut_tokens


def encode_completion(tokenizer: Any, summary: str) -> list[int]:
    """Token ids of a reference as the model shall write it, end-of-text included.

    Raises ValueError for a reference that spells a special token.
    """
    require_plain(tokenizer, summary)
    ids = tokenizer(summary.strip(), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def encode_answer(
    tokenizer: Any, document: Document, answer: str, settings: SummarizerSettings
) -> tuple[list[int], list[int], list[int]]:
    """Prompt ids, the answer's ids with the end that the model shall write, and what follows that.

    The prompt ids are those of `encode`: the text before an answer is tokenized by itself, as a
    server does it. Where question and answer tokenized together begin otherwise (a token across the
    border), the answer is tokenized by itself too. What follows the end is what the chat template
    writes there (ChatML: a line break); it belongs to the next turn's prompt. Raises ValueError when
    the template's prompt is not how it begins an answered question, when it writes more between the two
    than white space, and for an answer that spells a special token.
    """
    if settings.format != "chat":
        return encode(tokenizer, document, settings), encode_completion(tokenizer, answer), []
    messages, _ = fit_chat(tokenizer, document, settings)
    before = render(tokenizer, messages, settings)
    answered = [*messages, {"role": "assistant", "content": answer.strip()}]
    text = render(tokenizer, answered, settings)
    require_plain(tokenizer, answer)
    require_continued(before, text, answer, settings)
    prompt, ids = token_ids(tokenizer, before), token_ids(tokenizer, text)
    after = ids[len(prompt) :]
    if ids[: len(prompt)] != prompt:
        after = token_ids(tokenizer, text[len(before) :])
    end = turn_end(tokenizer, settings)
    if end not in after:
        return prompt, [*after, tokenizer.eos_token_id], []
    length = after.index(end) + 1
    return prompt, after[:length], after[length:]


def full_length(tokenizer: Any, document: Document, settings: SummarizerSettings) -> int:
    """Tokens of the prompt with nothing cut from the document."""
    return len(encode(tokenizer, document, replace(settings, max_source_tokens=sys.maxsize)))
