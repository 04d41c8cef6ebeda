"""Conversations in one column: Llama 2's chat format, or a list of messages.

`<s>[INST] question [/INST] answer </s><s>[INST] ...`, `[{"role": ..., "content": ...}, ...]`, or
ShareGPT's `[{"from": ..., "value": ...}, ...]`. Rows hold the first form: it is one text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

OPEN, CLOSE = "[INST]", "[/INST]"
# A message must not hold these: the conversation could not be split into messages again.
MARKS = (OPEN, CLOSE, "<<SYS>>", "<</SYS>>", "<s>", "</s>")
# How data sets name the speaker: OpenAI's names, ShareGPT's, and those of its siblings.
ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
FORMS = (("role", "content"), ("from", "value"))
Message = tuple[str, str]  # role and text
_END_MARKS = re.compile(r"(\s*</?s>)*\s*$")


def split_chat(text: str) -> tuple[str, str]:
    """The conversation up to the last answer, and that answer.

    A `<<SYS>>` part and earlier turns with their inner `</s><s>` stay in the conversation; the
    leading `<s>` does not: the tokenizer adds it, and two of them would be another prompt.
    Raises ValueError with what is wrong and how to fix it.
    """
    conversation, mark, answer = text.strip().removeprefix("<s>").lstrip().rpartition(CLOSE)
    if not mark or OPEN not in conversation:
        raise ValueError(
            f"is not in chat format ({OPEN} question {CLOSE} answer); correct it, or name "
            "data.fields.document and data.fields.summary"
        )
    if not conversation.rpartition(OPEN)[2].strip():
        raise ValueError(f"has a blank question before its last {CLOSE}; write or remove it")
    answer = _END_MARKS.sub("", answer).strip()
    if not answer:
        raise ValueError(f"has no answer after its last {CLOSE}; add one")
    if OPEN in answer:
        raise ValueError("ends in a question without an answer; add the answer")
    if "</s>" in answer:
        raise ValueError("has text after the end (</s>) of its last answer; remove it")
    return conversation + mark, answer


def is_messages(value: Any) -> bool:
    """Whether a column's value is a list of messages, in one of the usual forms."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(item, dict) and _form(item) is not None for item in value)
    )


def split_messages(value: Any, checked: Callable[[Any, str], str]) -> tuple[str, str]:
    """The conversation up to the last answer, as `split_chat` gives it, and that answer.

    `checked` takes a message's text and its number, and gives the text or raises ValueError. Raises
    ValueError with what is wrong, where, and how to fix it.
    """
    if not value:
        raise ValueError("is an empty list; add messages or remove the row")
    messages = [_message(item, number, checked) for number, item in enumerate(value, 1)]
    system = messages.pop(0)[1] if messages[0][0] == "system" else ""
    _require_turns(messages, 2 if system else 1)
    head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    turns = []
    for number in range(0, len(messages), 2):
        turns.append(f"{OPEN} {head}{messages[number][1]} {CLOSE}")
        head = ""
        if number + 2 < len(messages):
            turns.append(f" {messages[number + 1][1]} </s><s>")
    return "".join(turns), messages[-1][1]


def _message(item: Any, number: int, checked: Callable[[Any, str], str]) -> Message:
    form = _form(item) if isinstance(item, dict) else None
    if form is None:
        raise ValueError(
            f"(message {number}) has no role and content, nor from and value; add them"
        )
    role = ROLES.get(str(item[form[0]]).lower())
    if role is None:
        raise ValueError(
            f"(message {number}) has the role {item[form[0]]!r}, and only {', '.join(ROLES)} are read; "
            "rename it, or remove the row"
        )
    text = checked(item[form[1]], f"(message {number})").strip()
    for mark in MARKS:
        if mark in text:
            raise ValueError(
                f"(message {number}) holds {mark}, a mark of the chat format; remove it"
            )
    return role, text


def _form(message: dict[str, Any]) -> tuple[str, str] | None:
    return next((form for form in FORMS if all(key in message for key in form)), None)


def _require_turns(messages: list[Message], first_number: int) -> None:
    for index, (role, _) in enumerate(messages):
        if role != ("user", "assistant")[index % 2]:
            raise ValueError(
                f"(message {index + first_number}) is from the {role}; after an optional system "
                "message questions and answers must take turns: correct the order"
            )
    if len(messages) % 2 or not messages:
        raise ValueError("ends in a question without an answer; add the answer")
