"""What a column's name promises: a part of the task, its quality, a reference, or nothing that matters.

Columns with such a name are never left out silently. The lists are of names as data sets use them.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Role = Literal[
    "part of the prompt", "reference", "preference", "quality", "reasoning", "not text", "split"
]
# In order: "prompt_score" is a score, "input_image" an image.
WORDS: dict[Role, frozenset[str]] = {
    "preference": frozenset({"chosen", "rejected", "preferred", "dispreferred"}),
    "not text": frozenset({"image", "img", "picture", "photo", "audio", "video", "speech"}),
    "quality": frozenset(
        {"label", "score", "rating", "quality", "weight", "reward", "rank", "grade", "feedback"}
        | {"helpfulness", "correctness", "confidence", "preference", "vote", "upvote", "toxicity"}
        | {"keep", "valid", "good", "bad", "filtered", "mask", "masked", "accepted", "refused"}
    ),
    "reasoning": frozenset(
        {
            "reasoning",
            "thinking",
            "think",
            "thought",
            "cot",
            "rationale",
            "explanation",
            "scratchpad",
        }
    ),
    "part of the prompt": frozenset(
        {"instruction", "question", "query", "context", "passage", "choice", "option", "system"}
        | {"prompt", "tool", "function", "history", "input", "document", "article", "dialogue"}
        | {"dialog", "conversation", "transcript", "evidence", "premise", "hypothesis"}
        | {
            "claim",
            "persona",
            "hint",
            "constraint",
            "task",
            "aspect",
            "keyword",
            "guidance",
            "entity",
        }
        | {"knowledge", "background", "fact", "schema", "demonstration", "scenario", "kwarg"}
    ),
    "reference": frozenset(
        {"summary", "highlight", "abstract", "output", "answer", "response", "completion", "target"}
        | {"reference", "tldr"}
    ),
}
WHOLE_NAMES: dict[str, Role | None] = {
    "text": "part of the prompt",
    "chain_of_thought": "reasoning",
    **dict.fromkeys(["opa", "opb", "opc", "opd"], "part of the prompt"),
    "exp": "reasoning",
    "train_on": "quality",
    # Where a file has a question and an answer beside it, this is the same in another form.
    "conversations": None,
}
LETTERS = frozenset("abcdefgh")  # a multiple choice, a letter a column
# "question_id" is no question, "context_tokens" no context. Of what is not text, a place is as good as it.
LAST_WORDS = frozenset(
    {"id", "ids", "idx", "index", "uuid", "hash", "len", "length", "count", "num", "number", "size"}
    | {"token", "tokens", "words", "chars", "date", "time", "timestamp", "at", "url", "uri", "link"}
    | {
        "lang",
        "language",
        "source",
        "split",
        "version",
        "type",
        "kind",
        "category",
        "topic",
        "title",
    }
    | {"domain", "author", "license", "licence", "name", "format", "model", "width", "height"}
)
FIRST_WORDS = frozenset({"num", "n", "no", "has", "len", "length", "count"})
TRUTH = frozenset({"true", "false"})
SPLITS = frozenset(
    {"train", "training", "val", "valid", "validation", "dev", "development", "test", "testing"}
    | {"eval", "evaluation", "holdout"}
)
QUESTION_MARKS = (
    "?",
    "\uff1f",
    "\u061f",
    "\u037e",
    "\u055e",
)  # also full width, Arabic, Greek, Armenian
LONG_WORDS, LONG_CHARACTERS = 5, 15  # a text, not a name; characters for scripts without blanks
PLACES = frozenset({"url", "uri", "link"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def role_of(name: str) -> Role | None:
    """What a column of this name would be, in any case and with any prefix; None: nothing that matters."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return None
    if name.lower() in LETTERS:
        return "part of the prompt"
    if (whole := "_".join(words)) in WHOLE_NAMES:
        return WHOLE_NAMES[whole]
    roles = [role for role, known in WORDS.items() if {_singular(word) for word in words} & known]
    if not roles:
        return None
    if len(words) > 1 and (words[-1] in LAST_WORDS or words[0] in FIRST_WORDS):
        return roles[0] if roles[0] == "not text" and words[-1] in PLACES else None
    return roles[0]


def role_in(name: str, rows: list[dict[str, Any]]) -> Role | None:
    """What a column would be by its name, or else by its values in the first rows.

    Truth values choose rows, and so do names of splits. Questions, and texts that differ from row to row,
    may be the task, in whatever language the column is named, unless the name is of what only names
    something (`title`). An object matters if one of its keys does.
    """
    if role := role_of(name):
        return role
    values = [value for row in rows if not is_nothing(value := row.get(name))]
    if not values:
        return None
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) == len(values) and _are_splits(texts):
        return "split"
    words = [word.lower() for word in _WORD.findall(name)]
    if words and (words[-1] in LAST_WORDS or words[0] in FIRST_WORDS):
        return None
    return _role_of_values(values, texts)


def _role_of_values(values: list[Any], texts: list[str]) -> Role | None:
    if all(isinstance(v, bool) or (isinstance(v, str) and v.lower() in TRUTH) for v in values):
        return "quality"
    if all(isinstance(value, dict) for value in values):
        keys = [
            key for value in values for key in value if len(key) > 1
        ]  # a letter names no choice here
        return next(filter(None, map(role_of, keys)), None)
    asked = {text for text in texts if text.rstrip().endswith(QUESTION_MARKS)}
    long = {text for text in texts if _is_long(text)}
    least = max(len(values), 2) / 2
    return "part of the prompt" if max(len(asked), len(long)) > least else None


def _are_splits(texts: list[str]) -> bool:
    """Whether each text names a split of a data set, and not all the same."""
    found = {text.strip().lower() for text in texts}
    return len(found) > 1 and found <= SPLITS


def _is_long(text: str) -> bool:
    return len(text.split()) >= LONG_WORDS or (
        not text.isascii() and len(text) >= LONG_CHARACTERS and " " not in text
    )


def holds_nothing(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a column is blank in all these rows."""
    return all(is_unused(row.get(name)) for row in rows)


def is_unused(value: Any) -> bool:
    """Nothing, or an empty list or object as text: what a table has of a row without tools."""
    return is_nothing(value) or (isinstance(value, str) and value.strip() in {"[]", "{}"})


def is_nothing(value: Any) -> bool:
    """Null, NaN, a blank text, or an empty list or object."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return True
    if isinstance(value, str):
        return not value.strip()
    return isinstance(value, (list, dict)) and not value


def _singular(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
