"""A row's conversation: up to its last question, and the answer to that.

A column holds a list of messages (tasks.ingest.messages), or Llama 2's chat format as one text:
`<s>[INST] question [/INST] answer </s><s>[INST] ...`, which stays a text. Or one column holds the
conversation and another the answer, each as a text or as messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tasks.contracts.documents import Document
from tasks.ingest.messages import (
    Message,
    Reading,
    as_messages,
    is_messages,
    read_messages,
    require_turns,
    split_messages,
    with_system,
)
from tasks.ingest.reasoning import settled
from tasks.serving.summarizer import messages_of

OPEN, CLOSE = "[INST]", "[/INST]"
# What Llama 2's chat template writes around messages.
MARKS = (OPEN, CLOSE, "<<SYS>>", "<</SYS>>", "<s>", "</s>")
_BEGIN = re.compile(r"\s*(<s>)?\s*\[INST\]")
_END_MARKS = re.compile(r"(\s*</?s>)*\s*$")


def is_chat_text(text: Any) -> bool:
    """Whether a text is in Llama 2's chat format, and does not only mention its marks."""
    return isinstance(text, str) and bool(_BEGIN.match(text)) and CLOSE in text


def mostly_chat_texts(values: Iterable[Any]) -> bool:
    """Whether more than half of a column's texts are in Llama 2's chat format: no odd row decides."""
    texts = [value for value in values if isinstance(value, str) and value.strip()]
    return 2 * sum(map(is_chat_text, texts)) > len(texts)


def split_conversation(value: Any, system: str, reading: Reading) -> tuple[Document, str]:
    """One column's conversation up to the last answer, and that answer.

    `system`: the row's own system message from another column, or nothing. Raises ValueError with
    what is wrong, where, and how to fix it.
    """
    items = as_messages(value)
    if items is not None:
        conversation, answer = split_messages(read_messages(items, reading))
        return _led_by(system, conversation), answer
    text, answer = split_chat(reading.checked(value, ""))
    answer = settled(answer, "", "(the last answer)", reading.reasoning)
    return (_led_by(system, text) if system else text), answer


def question(value: Any, system: str, reading: Reading) -> Document:
    """The conversation that another column holds the answer to.

    A text is one question. Answers among messages are context (weight 0): TRL's conversational form of
    prompt and completion learns the completion alone.
    """
    if is_messages(value):
        messages = read_messages(as_messages(value) or (), reading)
        require_turns(messages)
        if messages[-1]["role"] != "user":
            raise ValueError(
                "ends in an answer, and another column holds what follows it; add the last question, or "
                "make one text of a transcript that is to be summarized"
            )
        if any(message.get("weight") == 1 for message in messages):
            raise ValueError(
                "has an answer of weight 1, and answers in the question's column are context; remove the "
                "weight, or put the whole conversation into one column (data.fields.text)"
            )
        context = [
            message | ({"weight": 0} if message["role"] == "assistant" else {})
            for message in messages
        ]
        return _led_by(system, context)
    text = reading.checked(value, "")
    return _led_by(system, text) if system else text


def answer_of(value: Any, reading: Reading) -> str | None:
    """The one answer that a list of messages is; None: the value is not such a list."""
    if not is_messages(value):
        return None
    messages = read_messages(as_messages(value) or (), reading)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise ValueError(
            "must hold one message, the assistant's answer; put earlier ones into the question's column"
        )
    if messages[0].get("weight") == 0:
        raise ValueError("has weight 0, and it is the answer that is judged; remove the row")
    return str(messages[0]["content"])


def split_chat(text: str) -> tuple[str, str]:
    """The conversation up to the last answer, and that answer, of a text in Llama 2's format.

    A `<<SYS>>` part and earlier turns with their inner `</s><s>` stay in the conversation; the
    leading `<s>` does not: the tokenizer adds it, and two of them would be another prompt.
    Raises ValueError with what is wrong and how to fix it.
    """
    conversation, mark, answer = text.strip().removeprefix("<s>").lstrip().rpartition(CLOSE)
    if not mark or OPEN not in conversation:
        raise ValueError(
            f"is not in chat format ({OPEN} question {CLOSE} answer), nor a list of messages; correct it, "
            "or name data.fields.document and data.fields.summary"
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


def _led_by(system: str, conversation: str | list[Message]) -> list[Message]:
    """The conversation as messages, after the system message that a column of its row holds."""
    messages = messages_of(conversation) if isinstance(conversation, str) else conversation
    return with_system(messages, system) if system else messages
