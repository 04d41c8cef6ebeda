"""Documents as conversations, written by the model's own chat template."""

from __future__ import annotations

import functools
import re
from typing import Any

from .settings import Document, Message, SummarizerSettings
from .template import question_of

OPEN, CLOSE = "[INST]", "[/INST]"
SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
END_MARKS = re.compile(r"(\s*</?s>)*\s*$")


def conversation_of(document: Document, settings: SummarizerSettings) -> list[Message]:
    """`messages_of`, also of several texts by name: they are one question."""
    if isinstance(document, dict):
        question = question_of(document, settings).strip()
        document = [{"role": "user", "content": question}]
    return messages_of(document, settings.system)


def messages_of(document: Document, system: str | None = None) -> list[Message]:
    """The conversation that a document is, up to a question without its answer.

    A text in Llama 2's chat format (`[INST] question [/INST] answer </s><s>[INST] question [/INST]`,
    perhaps with a `<<SYS>>` part) is parsed into messages; any other text is one question. Of messages
    role and content are used, with no white space around them. A conversation with no system message
    gets `system`. Raises ValueError for a conversation in which something is missing.
    """
    assert not isinstance(document, dict)  # conversation_of knows the template
    messages = _parse_llama2(document) if isinstance(document, str) else _read(document)
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the conversation ends without a question; add one")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _read(document: list[dict[str, Any]]) -> list[Message]:
    messages: list[Message] = []
    for number, given in enumerate(document, 1):
        role, text = given.get("role"), given.get("content")
        if role not in {"system", "user", "assistant"}:
            raise ValueError(
                f"message {number} has the role {role!r}; name it system, user or assistant"
            )
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"message {number} has no text in content; write it, or remove it")
        messages.append({"role": role, "content": text.strip()})
    first = bool(messages) and messages[0]["role"] == "system"
    for index, message in enumerate(messages[first:]):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise ValueError(
                f"message {index + 1 + first} is from the {message['role']}; after an optional system "
                "message questions and answers must take turns"
            )
    return messages


def _parse_llama2(text: str) -> list[Message]:
    inner = text.strip().removeprefix("<s>").strip()
    if not (inner.startswith(OPEN) and inner.endswith(CLOSE)):
        return [{"role": "user", "content": text.strip()}]
    messages: list[Message] = []
    turns = inner.split(OPEN)[1:]
    for number, turn in enumerate(turns, 1):
        question, mark, answer = turn.partition(CLOSE)
        answer = END_MARKS.sub("", answer).strip()
        if number == 1 and (system := SYSTEM.match(question)):
            messages.append({"role": "system", "content": system.group(1).strip()})
            question = question[system.end() :]
        if not question.strip():
            raise ValueError(f"turn {number} has a blank question; write it, or remove the turn")
        if number < len(turns) and not answer:
            raise ValueError(f"turn {number} has no answer; write it, or remove the turn")
        if not mark or CLOSE in answer or "</s>" in answer:
            raise ValueError(f"turn {number} is not {OPEN} question {CLOSE} answer; fix its marks")
        messages.append({"role": "user", "content": question.strip()})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    return messages


def render(tokenizer: Any, messages: list[Message], settings: SummarizerSettings) -> str:
    """The conversation as the chat template writes it; after a question, ready for an answer."""
    text: str = tokenizer.apply_chat_template(
        messages,
        chat_template=settings.chat_template,
        tokenize=False,
        add_generation_prompt=messages[-1]["role"] == "user",
    )
    return text


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered conversation: the template has written all special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


@functools.lru_cache(maxsize=8)
def turn_end(tokenizer: Any, settings: SummarizerSettings) -> int | None:
    """The special token that the chat template writes after an answer; None: it writes none."""
    if settings.format != "chat":
        return None
    question = {"role": "user", "content": "Well?"}
    text = render(tokenizer, [question, {"role": "assistant", "content": "Yes."}], settings)
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((i for i in token_ids(tokenizer, text.rpartition("Yes.")[2]) if i in special), None)
