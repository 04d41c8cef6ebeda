"""The form by which a person approves or refuses a challenger, in Prefect's UI and API, and its check."""

from __future__ import annotations

import re
import unicodedata
from datetime import datetime
from typing import Literal, NamedTuple

import pydantic
from prefect.input import RunInput
from pydantic import Field

from tasks.contracts.words import holds_words
from tasks.tracking.approvals import Question

BY_PAIRS = "as the pairs say"
MOST_NAME_CHARACTERS, MOST_COMMENT_CHARACTERS = 100, 500
JOINERS = "\u200c\u200d"  # invisible, and part of how names are written in Persian and in India
FILLERS = "\u115f\u1160\u3164\uffa0"  # letters to Unicode, and nothing to a reader


class Answer(RunInput):
    """The form that Prefect shows to the person who resumes the run."""

    decision: Literal["approve", "refuse", "as the pairs say"] = Field(
        title="Decision",
        description="as the pairs say: approved if the challenger is preferred in more pairs.",
    )
    approved_by: str = Field(
        title="Your name",
        pattern=r"\S",
        max_length=MOST_NAME_CHARACTERS,
        description="It stands in the history and at the version.",
    )
    comment: str = Field("", title="Comment", max_length=MOST_COMMENT_CHARACTERS)
    preferred: str = Field("", title="The better one of each blind pair")


class GivenAnswer(NamedTuple):
    """An answer, and when it came (UTC): at a terminal the run may wait for its slot after it."""

    answer: Answer
    time: datetime


def form_for(pairs: int) -> type[Answer]:
    """The form for so many pairs: Prefect refuses an answer with marks for more or fewer."""
    about = (
        f"{pairs} letters in the order of the pairs: A, B, or = for neither. Or leave it empty."
        if pairs
        else "There are no pairs: leave it empty."
    )
    pattern = rf"^\s*(([ABab=][\s,;.]*){{{pairs}}})?$"
    field = Field("", title="The better one of each blind pair", description=about, pattern=pattern)
    return pydantic.create_model("Answer", __base__=Answer, preferred=(str, field))


def marks_of(preferred: str) -> str:
    """The marks for the pairs, without what stands between them."""
    return re.sub(r"[\s,;.]", "", preferred).upper()


def one_line(text: str) -> str:
    """What a person typed, on one line, without characters that steer a terminal or turn the reading round.

    It goes into histories, tags and pages as it is.
    """
    kept = "".join(" " if one.isspace() else one for one in text if one.isspace() or _is_text(one))
    return " ".join(unicodedata.normalize("NFC", kept).split())


def problem_of(decision: str, approved_by: str, preferred: str, pairs: int) -> str:
    """Why an answer is none, beyond what the form refuses; empty for an answer."""
    marks = marks_of(preferred)
    if not holds_words(one_line(approved_by)):
        return f"the name {one_line(approved_by)!r} has no letter and no digit: who answers?"
    if len(marks) not in (0, pairs) or set(marks) - set("AB="):
        return f"preferred has {marks!r}, and there are {pairs} pairs: A, B or = for each"
    if decision == BY_PAIRS and not marks:
        return f"{BY_PAIRS!r} was chosen, and no pair had a letter"
    return ""


def why_again(question: Question, before: Question | None) -> str:
    """Why people are asked once more; empty the first time, and after a question that nobody answered."""
    if before and before.unusable:
        return f"Asked again: {before.unusable}."
    if before is None or before.answer is None:
        return ""
    answer = f"Asked again: it was {before.answer.sentence()}, but"
    if before.made.model.digest != question.made.model.digest:
        return f"{answer} that challenger cannot be had any more, and this is another one."
    return f"{answer} meanwhile the champion changed, and the challenger was judged against the new one."


def _is_text(character: str) -> bool:
    if character in JOINERS:
        return True
    return unicodedata.category(character)[0] != "C" and character not in FILLERS
