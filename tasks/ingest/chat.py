"""Conversations in one column: Llama 2's chat format, or a list of messages.

`<s>[INST] question [/INST] answer </s><s>[INST] ...`, `[{"role": ..., "content": ...}, ...]`, or
ShareGPT's `[{"from": ..., "value": ...}, ...]`. Rows hold the first form: it is one text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

OPEN, CLOSE = "[INST]", "[/INST]"
# Where one of these stands in a message, the text could not be taken apart again.
MARKS = (OPEN, CLOSE, "<<SYS>>", "<</SYS>>", "<s>", "</s>")
# How data sets name who speaks: OpenAI's names, ShareGPT's, and those of its siblings.
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
Said = tuple[str, str]  # role and text
_END_MARKS = re.compile(r"(\s*</?s>)*\s*$")


def split_chat(text: str) -> tuple[str, str]:
    """The conversation up to the last answer, and that answer.

    A `<<SYS>>` part and earlier turns with their inner `</s><s>` stay in the conversation; the
    leading `<s>` does not: the tokenizer adds it by itself, and twice would be another prompt.
    Raises ValueError with what is wrong and the mend.
    """
    conversation, mark, answer = text.strip().removeprefix("<s>").lstrip().rpartition(CLOSE)
    if not mark or OPEN not in conversation:
        raise ValueError(
            f"is not in chat format ({OPEN} question {CLOSE} answer); mend it, or name "
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
        raise ValueError("goes on after the end (</s>) of its last answer; remove the rest")
    return conversation + mark, answer


def is_messages(value: Any) -> bool:
    """Whether a column's value is a list of messages, in one of the usual forms."""
    return (
        isinstance(value, (list, tuple))
        and bool(value)
        and all(isinstance(one, dict) and _form(one) is not None for one in value)
    )


def split_messages(value: Any, checked: Callable[[Any, str], str]) -> tuple[str, str]:
    """The conversation up to the last answer, as `split_chat` gives it, and that answer.

    `checked` takes a message's text and its number, and gives the text or raises ValueError. Raises
    ValueError with what is wrong, where, and the mend.
    """
    if not value:
        raise ValueError("is an empty list; add messages or remove the row")
    said = [_said(message, number, checked) for number, message in enumerate(value, 1)]
    system = said.pop(0)[1] if said[0][0] == "system" else ""
    _refuse_disorder(said, 2 if system else 1)
    head = f"<<SYS>>\n{system}\n<</SYS>>\n\n" if system else ""
    turns = []
    for number in range(0, len(said), 2):
        turns.append(f"{OPEN} {head}{said[number][1]} {CLOSE}")
        head = ""
        if number + 2 < len(said):
            turns.append(f" {said[number + 1][1]} </s><s>")
    return "".join(turns), said[-1][1]


def _said(message: Any, number: int, checked: Callable[[Any, str], str]) -> Said:
    form = _form(message) if isinstance(message, dict) else None
    if form is None:
        raise ValueError(
            f"(message {number}) has no role and content, nor from and value; add them"
        )
    role = ROLES.get(str(message[form[0]]).lower())
    if role is None:
        raise ValueError(
            f"(message {number}) is of {message[form[0]]!r}, and only {', '.join(ROLES)} are read; "
            "rename it, or remove the row"
        )
    text = checked(message[form[1]], f"(message {number})").strip()
    for mark in MARKS:
        if mark in text:
            raise ValueError(
                f"(message {number}) holds {mark}, a mark of the chat format; remove it"
            )
    return role, text


def _form(message: dict[str, Any]) -> tuple[str, str] | None:
    return next((form for form in FORMS if all(key in message for key in form)), None)


def _refuse_disorder(said: list[Said], first: int) -> None:
    for place, (role, _) in enumerate(said):
        if role != ("user", "assistant")[place % 2]:
            raise ValueError(
                f"(message {place + first}) is of the {role}; after an optional system message "
                "questions and answers must take turns: mend the order"
            )
    if len(said) % 2 or not said:
        raise ValueError("ends in a question without an answer; add the answer")
