"""What a column's name promises: a part of the task, its quality, a reference, or nothing that matters.

Columns with such a name are never left out silently. The lists are of names as data sets use them.
"""

from __future__ import annotations

import re
from typing import Any, Literal

Role = Literal["part of the prompt", "reference", "preference", "quality", "reasoning", "not text"]
# In order: "prompt_score" is a score, "input_image" an image.
WORDS: dict[Role, frozenset[str]] = {
    "preference": frozenset({"chosen", "rejected", "preferred", "dispreferred"}),
    "not text": frozenset({"image", "img", "picture", "photo", "audio", "video", "speech"}),
    "quality": frozenset(
        {"label", "score", "rating", "quality", "weight", "reward", "rank", "grade", "feedback"}
        | {"helpfulness", "correctness", "confidence", "preference", "vote", "upvote", "toxicity"}
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
        | {"claim", "persona", "hint", "constraint"}
    ),
    "reference": frozenset(
        {"summary", "highlight", "abstract", "output", "answer", "response", "completion", "target"}
        | {"reference", "tldr"}
    ),
}
WHOLE_NAMES: dict[str, Role | None] = {
    "text": "part of the prompt",
    "chain_of_thought": "reasoning",
    # Where a file has a question and an answer beside it, this is the same in another form.
    "conversations": None,
}
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
PLACES = frozenset({"url", "uri", "link"})
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


def role_of(name: str) -> Role | None:
    """What a column of this name would be, in any case and with any prefix; None: nothing that matters."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return None
    if (whole := "_".join(words)) in WHOLE_NAMES:
        return WHOLE_NAMES[whole]
    roles = [role for role, known in WORDS.items() if {_singular(word) for word in words} & known]
    if not roles:
        return None
    if len(words) > 1 and (words[-1] in LAST_WORDS or words[0] in FIRST_WORDS):
        return roles[0] if roles[0] == "not text" and words[-1] in PLACES else None
    return roles[0]


def holds_nothing(rows: list[dict[str, Any]], name: str) -> bool:
    """Whether a column is blank in all these rows."""
    return all(is_nothing(row.get(name)) for row in rows)


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
