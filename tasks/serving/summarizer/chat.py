"""Documents as conversations, written by the model's own chat template."""

from __future__ import annotations

import functools
import re
from typing import Any

from .settings import Document, Message, SummarizerSettings
from .special_tokens import special_ids
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
    """The conversation as the chat template writes it; after a question, ready for an answer.

    Raises ValueError when the template cannot write it, or leaves out what a message says.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            messages,
            chat_template=settings.chat_template,
            tokenize=False,
            add_generation_prompt=messages[-1]["role"] == "user",
        )
    except Exception as error:  # a template is a program: it may fail in any way
        raise ValueError(
            f"the chat template cannot write this conversation ({error}); correct it, or name another "
            "template in prompt.chat_template"
        ) from error
    if (index := first_left_out(text, messages)) is not None:
        raise ValueError(left_out(messages, index, settings))
    return text


def first_left_out(text: str, messages: list[Message]) -> int | None:
    """Index of the first message that does not stand in a rendering, white space around it aside.

    Questions and answers must stand there in their order; a system message may stand anywhere
    (Mistral writes it before the last question).
    """
    place = 0
    for index, message in enumerate(messages):
        content = message["content"].strip()
        if message["role"] == "system":
            if content not in text:
                return index
            continue
        found = text.find(content, place)
        if found < 0:
            return index
        place = found + len(content)
    return None


def left_out(messages: list[Message], index: int, settings: SummarizerSettings) -> str:
    """The problem with a template that does not write message `index` of these."""
    message = messages[index]
    return (
        f"message {index + 1}, from the {message['role']} ({message['content'].strip()[:60]!r}), is not "
        "written by the chat template as it is; " + remedy(settings, message["role"] == "system")
    )


def remedy(settings: SummarizerSettings, is_system: bool = False) -> str:
    """How a chat template that writes something else than it should is replaced or told."""
    another = "name another template in prompt.chat_template"
    if is_system:
        return f"{another}, or remove the system message"
    if "enable_thinking" in (settings.chat_template or ""):
        return f"set prompt.template_arguments to {{enable_thinking: false}}, or {another}"
    return another


def require_continued(before: str, text: str, answer: str, settings: SummarizerSettings) -> None:
    """Raise ValueError unless a rendering `text` is the prompt `before`, white space, and the answer."""
    if not text.startswith(before):
        pairs = enumerate(zip(before, text, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(before), len(text)))
        raise ValueError(
            "the chat template begins an answer otherwise than it asks for one: generation's prompt goes "
            f"on with {before[same:][:60]!r} where an answered question has {text[same:][:60]!r}; "
            + remedy(settings)
        )
    between = text[len(before) :].partition(answer.strip())[0]
    if between.strip():
        raise ValueError(
            f"the chat template writes {between[:60]!r} between generation's prompt and the answer, so that "
            f"the model would learn to write it too; {remedy(settings)}"
        )


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a rendered conversation: the template has written all special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def turn_end(tokenizer: Any, settings: SummarizerSettings) -> int | None:
    """The special token that the chat template writes after an answer; None: it writes none."""
    return answer_end(tokenizer, settings)[1]


@functools.lru_cache(maxsize=8)
def answer_end(tokenizer: Any, settings: SummarizerSettings) -> tuple[str, int | None]:
    """What the chat template writes after an answer: text (stripped), and the special token after it.

    Text is learned with the answer; it is no part of it, so generation stops there and leaves it out.
    """
    if settings.format != "chat":
        return "", None
    question = {"role": "user", "content": "Well?"}
    text = render(tokenizer, [question, {"role": "assistant", "content": "Yes."}], settings)
    after, special = text.rpartition("Yes.")[2], special_ids(tokenizer)
    end = next((i for i in token_ids(tokenizer, after) if i in special), None)
    if end is not None:
        after = after.partition(str(tokenizer.convert_ids_to_tokens(end)))[0]
    return after.strip(), end
