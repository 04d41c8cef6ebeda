"""What a request to MLflow may ask for beside its documents (`params`): a shorter answer, what was cut.

All else that would change an answer is refused by its name: answers are those that were judged. MLflow
leaves out params that a model's signature does not name, with a warning in its log alone; so the usual ones
of other engines are named there too, each with the value that stands for greedy decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .settings import SummarizerSettings

LIMIT = "max_new_tokens"
TRUNCATED = "truncated"  # whether the answer has a column that says so
# MLflow's type, and the one value that changes nothing; None: none does.
JUDGED: dict[str, tuple[str, Any]] = {
    "temperature": ("double", 0.0),
    "top_p": ("double", 1.0),
    "top_k": ("long", None),
    "do_sample": ("boolean", False),
    "num_beams": ("long", 1),
    "n": ("long", 1),
    "repetition_penalty": ("double", None),
    "frequency_penalty": ("double", 0.0),
    "presence_penalty": ("double", 0.0),
    "stop": ("string", None),
    "max_tokens": ("long", None),  # it goes by the name LIMIT
}


def params_of(settings: SummarizerSettings) -> dict[str, tuple[str, Any]]:
    """Each param's type, as MLflow calls it, and its default: what was judged."""
    return {LIMIT: ("long", settings.max_new_tokens), TRUNCATED: ("boolean", False), **JUDGED}


def asked_for(
    params: Mapping[str, Any] | None, settings: SummarizerSettings
) -> tuple[SummarizerSettings, bool]:
    """Settings with the longest answer that these params ask for, and whether to tell what was cut.

    A null is a param that was not given. A shorter answer is written by `generate`: where batches are
    decoded continuously and in 16 bits, a tie of two tokens may be broken otherwise. Raises ValueError
    with every param that cannot be had.
    """
    given = {name: value for name, value in (params or {}).items() if value is not None}
    limit, truncated = given.pop(LIMIT, settings.max_new_tokens), given.pop(TRUNCATED, False)
    faults = []
    is_count = isinstance(limit, int) and not isinstance(limit, bool)  # true is 1 to Python
    if not is_count or not 1 <= limit <= settings.max_new_tokens:
        faults.append(
            f"{LIMIT} is {limit!r}: from 1 to {settings.max_new_tokens}, the longest that was judged"
        )
    if not isinstance(truncated, bool):
        faults.append(f"{TRUNCATED} is {truncated!r}: true or false")
    for name, value in given.items():
        _, judged = JUDGED.get(name, ("", None))
        if judged is None or value != judged:
            remedy = "leave it out" if judged is None else f"leave it out, or send {judged!r}"
            remedy = f"use {LIMIT}" if name == "max_tokens" else remedy
            faults.append(f"{name} is not taken, answers are greedy, as judged: {remedy}")
    if faults:
        raise ValueError(f"params: {'; '.join(faults)}")
    if limit == settings.max_new_tokens:
        return settings, truncated
    return replace(settings, max_new_tokens=limit, decoding="generate"), truncated
