"""Conversations as lists of messages, in the forms that data sets use, as the messages that are stored.

OpenAI's `{"role", "content"}`, ShareGPT's `{"from", "value"}`, content in parts, weights, reasoning. Each
message is used whole, or its row is rejected: transformers' templates skip the keys they do not know.
Over 250 lines: one form of a message after the other.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tasks.ingest.reasoning import settled

# How data sets name the speaker: OpenAI's names, ShareGPT's, and those of its siblings.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
TOOL_ROLES = frozenset(
    {"tool", "function", "function_call", "tool_call", "tool_response", "observation", "ipython"}
)
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
# 0: the answer is kept as context and not learned. OpenAI's name, axolotl's two, and ms-swift's.
WEIGHT_KEYS = ("weight", "train", "training", "loss")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
# What a message may also hold: it says when and where the message came from, not what is in it.
HARMLESS_KEYS = frozenset(
    {
        "id", "message_id", "msg_id", "parent_id", "parent", "uuid", "index", "idx", "turn",
        "turn_id", "timestamp", "created", "created_at", "create_time", "updated_at", "date",
        "time", "model", "lang", "language", "token_count", "tokens", "cache_control",
    }
)  # fmt: skip
TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
REASONING_PARTS = frozenset({"thinking", "reasoning"})

_BEGINS_AS_LIST = re.compile(r"\s*\[\s*[{\]]")

Message = dict[str, Any]  # role, content, and weight 0 of an answer that is not learned
Checked = Callable[[Any, str], str]  # a value and where it is: its text, or ValueError


@dataclass(frozen=True)
class Reading:
    """What the recipe says of messages."""

    checked: Checked
    reasoning: str | None = None  # prompt.reasoning; None: a row with reasoning is rejected
    ignore: frozenset[str] = frozenset()  # keys of messages that are not used


def as_messages(value: Any) -> list[Any] | None:
    """The list of messages that a column's value is, in any of its forms; None: it is none.

    A list; a text that holds one as JSON, or as Python writes it (pandas' to_csv); an object of lists,
    as `datasets` keeps a sequence of objects. Raises ValueError for a text that begins as such a list
    and cannot be read.
    """
    if isinstance(value, str):
        return _from_text(value)
    if isinstance(value, dict):
        return _from_lists(value)
    return list(value) if isinstance(value, (list, tuple)) else None


def is_messages(value: Any) -> bool:
    """Whether a column's value is a list of messages, in one of the usual forms."""
    try:
        messages = as_messages(value)
    except ValueError:
        return False
    return bool(messages) and all(
        isinstance(item, dict) and _keys(item, ROLE_KEYS) and _keys(item, CONTENT_KEYS)
        for item in messages or ()
    )


def may_be_messages(value: Any) -> bool:
    """Whether a value in a column with a usual name is meant as messages, though in a form that is not
    read: reading it says what is wrong.
    """
    if isinstance(value, str):
        return bool(_BEGINS_AS_LIST.match(value))
    return isinstance(value, (list, tuple)) and bool(value)


def ends_in_question(value: Any) -> bool:
    """Whether a column's value is a list of messages of which the last is from the user."""
    messages = as_messages(value) if is_messages(value) else None
    if not messages:
        return False
    role = messages[-1][_keys(messages[-1], ROLE_KEYS)[0]]
    return isinstance(role, str) and ROLES.get(role.strip().lower()) == "user"


def read_messages(items: Iterable[Any], reading: Reading) -> list[Message]:
    """Messages with their usual roles and stripped texts; a blank system message is left out.

    An answer has the weight that the row gives it, if it does.
    Raises ValueError with what is wrong, in which message, and how to fix it.
    """
    found = [_message(item, f"(message {number})", reading) for number, item in enumerate(items, 1)]
    if not found:
        raise ValueError("is an empty list; add messages or remove the row")
    return found if found[0]["content"] else found[1:]


def split_messages(messages: list[Message]) -> tuple[list[Message], str]:
    """The conversation up to its last question, and the answer to it.

    Raises ValueError where messages do not take turns, or the last answer is not to be learned.
    """
    require_turns(messages)
    *conversation, answer = map(_stored, messages)
    if answer["role"] != "assistant":
        raise ValueError("ends in a question without an answer; add the answer")
    if answer.get("weight") == 0:
        raise ValueError(
            "has weight 0 on its last answer, which is the one that is judged; remove what follows the "
            "last answer of weight 1, or the row"
        )
    return conversation, answer["content"]


def _stored(message: Message) -> Message:
    """Of weights only 0 is kept."""
    return {key: value for key, value in message.items() if key != "weight" or value == 0}


def require_turns(messages: list[Message]) -> None:
    """Raise ValueError unless questions and answers take turns after an optional system message."""
    first = int(bool(messages) and messages[0]["role"] == "system")
    for index, message in enumerate(messages[first:]):
        if message["role"] != ("user", "assistant")[index % 2]:
            raise ValueError(
                f"(message {index + 1 + first}) is from the {message['role']}; after an optional system "
                "message questions and answers must take turns: correct the order"
            )
    if len(messages) == first:
        raise ValueError("ends in a question without an answer; add the answer")


def with_system(messages: list[Message], system: str) -> list[Message]:
    """The messages after this system message. Raises ValueError when they begin with another one."""
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0]["content"] != system:
        raise ValueError(
            "begins with a system message, and the row's system column (data.fields.system) holds another "
            "one; remove one, or name the column in data.fields.ignore"
        )
    return messages


def unused_keys(values: Iterable[Any]) -> list[str]:
    """Keys of messages that hold something and are left out, as harmless, in the order met."""
    keys: dict[str, None] = {}
    for value in values:
        if is_messages(value):
            for item in as_messages(value) or ():
                keys |= dict.fromkeys(
                    key for key in item if key in HARMLESS_KEYS and _held(item[key])
                )
    return list(keys)


def _message(item: Any, where: str, reading: Reading) -> Message:
    if not isinstance(item, dict) or not _keys(item, ROLE_KEYS):
        raise ValueError(f"{where} has no role and content, nor from and value; add them")
    _require_known(item, where, reading.ignore)
    role = _role(item[_only(item, ROLE_KEYS, where)], where)
    if not _keys(item, CONTENT_KEYS):
        raise ValueError(f"{where} has no role and content, nor from and value; add them")
    text, thoughts = _content(item[_only(item, CONTENT_KEYS, where)], where, reading, role)
    thoughts += [
        reading.checked(item[key], f"{where} {key}")
        for key in REASONING_KEYS
        if key not in reading.ignore and _held(item.get(key))
    ]
    if role == "assistant":
        # One text under two names (a server's reasoning and reasoning_content) is one.
        text = settled(text, "\n".join(dict.fromkeys(thoughts)), where, reading.reasoning)
    elif thoughts:
        raise ValueError(f"{where} is from the {role} and has reasoning; remove it, or the row")
    message: Message = {"role": role, "content": text}
    weight = _weight(item, where, role, reading.ignore)
    return message | ({} if weight is None or role != "assistant" else {"weight": weight})


def _require_known(item: dict[str, Any], where: str, ignore: frozenset[str]) -> None:
    """What a message holds besides its text is used, or is harmless, or named in the recipe."""
    known = {*ROLE_KEYS, *CONTENT_KEYS, *WEIGHT_KEYS, *REASONING_KEYS} | HARMLESS_KEYS | ignore
    unknown = [str(key) for key, value in item.items() if key not in known and _held(value)]
    if unknown:
        names = ", ".join(unknown)
        tools = {"tool_calls", "function_call", "tool_call_id"} & set(unknown)
        why = "calls of tools cannot be learned" if tools else "it would not be seen"
        raise ValueError(
            f"{where} has {names}: {why}; remove the row, or name {names} in data.fields.ignore to leave "
            "that out of every message"
        )


def _role(value: Any, where: str) -> str:
    name = value.strip().lower() if isinstance(value, str) else ""
    if name in TOOL_ROLES:
        raise ValueError(
            f"{where} has the role {value!r}: calls of tools cannot be learned; remove the row, or write "
            "what the tool gave into a question"
        )
    if name not in ROLES:
        raise ValueError(
            f"{where} has the role {value!r}, and only {', '.join(ROLES)} are read; rename it, or remove "
            "the row"
        )
    return ROLES[name]


def _content(value: Any, where: str, reading: Reading, role: str) -> tuple[str, list[str]]:
    """A message's text, and its parts of reasoning."""
    thoughts: list[str] = []
    value = _parts_of(value)
    if isinstance(value, (list, tuple)) and value:
        texts: list[str] = []
        for number, part in enumerate(value, 1):
            is_text, text = _part(part, f"{where}, part {number},")
            (texts if is_text else thoughts).append(text)
        value = "\n".join(texts)
    if role == "system" and isinstance(value, str) and not value.strip():
        return "", thoughts
    if thoughts and not value:
        raise ValueError(f"{where} has reasoning and no answer; add the answer or remove the row")
    return reading.checked(value, where).strip(), thoughts


def _parts_of(value: Any) -> Any:
    """The parts that a text holds as JSON, as tables keep them; else the value."""
    if not isinstance(value, str) or not _BEGINS_AS_LIST.match(value):
        return value
    try:
        parts = json.loads(value)
    except (ValueError, RecursionError):
        return value
    is_parts = parts and all(isinstance(part, dict) and "type" in part for part in parts)
    return parts if is_parts else value


def _part(part: Any, where: str) -> tuple[bool, str]:
    """Whether a part is text and not reasoning, and what it holds."""
    if isinstance(part, str):
        return True, part
    if not isinstance(part, dict):
        raise ValueError(f"{where} is no text and no object; correct it or remove the row")
    held = {key: value for key, value in part.items() if _held(value) and key not in HARMLESS_KEYS}
    kind = str(held.pop("type", "text"))
    # Anthropic signs its thoughts, and names their text after their type.
    names = ("thinking", "reasoning", "text") if kind in REASONING_PARTS else ("text",)
    name = next((name for name in names if name in part), "text")
    others = set(held) - {name, "signature" if kind in REASONING_PARTS else name}
    text = part.get(name)
    if kind not in TEXT_PARTS | REASONING_PARTS or others or not isinstance(text, str):
        shown = ", ".join(dict.fromkeys([kind, *sorted(map(str, others))]))
        raise ValueError(f"{where} is of type {shown}, and only text is read; remove the row")
    return kind in TEXT_PARTS, text


def _weight(item: dict[str, Any], where: str, role: str, ignore: frozenset[str]) -> int | None:
    """0 or 1; None: the message has none."""
    weights = {
        key: item[key] for key in WEIGHT_KEYS if key not in ignore and item.get(key) is not None
    }
    for key, value in weights.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise ValueError(
                f"{where} has the {key} {value!r}, and only 0 (context) and 1 (learned) are read; correct "
                f"it, or name {key} in data.fields.ignore"
            )
    if len({int(value) for value in weights.values()}) > 1:
        raise ValueError(f"{where} has {' and '.join(weights)}, which differ; remove one")
    weight = int(next(iter(weights.values()))) if weights else None
    if weight == 1 and role != "assistant":
        key = next(iter(weights))
        raise ValueError(
            f"{where} is from the {role} and has the {key} 1, but only answers are learned; remove it, or "
            f"name {key} in data.fields.ignore"
        )
    return weight


def _keys(item: dict[str, Any], names: tuple[str, ...]) -> list[str]:
    return [name for name in names if name in item]


def _only(item: dict[str, Any], names: tuple[str, ...], where: str) -> str:
    """The one of these keys that holds something; the first of them where none does."""
    found = _keys(item, names)
    held = [name for name in found if item[name] is not None]
    if len(held) > 1:
        raise ValueError(f"{where} has both {' and '.join(held)}; remove one")
    return (held or found)[0]


def _held(value: Any) -> bool:
    """Whether a value says anything: tables fill in null, or nothing, for what a message lacks."""
    if isinstance(value, str):
        return bool(value.strip())
    return value is not None and value not in ([], {})


def _from_text(text: str) -> list[Any] | None:
    if not _BEGINS_AS_LIST.match(text):
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        value = _python_literal(text)
        if value is None:
            raise ValueError(
                f"begins as a list of messages and is not JSON ({error}); write the column as JSON, or "
                "the file as JSONL"
            ) from None
    return list(value)


def _python_literal(text: str) -> Any:
    """A list as Python prints it, with single quotes; None: it is not one. Nothing is executed."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return None


def _from_lists(value: dict[str, Any]) -> list[Any] | None:
    keys = [*_keys(value, ROLE_KEYS), *_keys(value, CONTENT_KEYS)]
    lists = {key: column for key, column in value.items() if isinstance(column, (list, tuple))}
    lengths = {len(column) for column in lists.values()}
    if len(keys) < 2 or len(lists) < len(value) or len(lengths) != 1:
        return None
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
