"""The chat format of Llama 2: `<s>[INST] question [/INST] answer </s><s>[INST] ...`."""

from __future__ import annotations

import re

OPEN, CLOSE = "[INST]", "[/INST]"
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
