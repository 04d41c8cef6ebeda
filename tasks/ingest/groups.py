"""Rows alike in what is odd about them: counted together, and the first of them named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tasks.contracts.documents import Document, plain_text
from tasks.ingest.row_types import Example

LISTED = 20  # groups in an error's text; the report has more, the rejects file all rows
# What programs write where a text is missing. "-" and "" are left to people: blank texts are rejected.
PLACEHOLDERS = {"nan", "none", "null", "n/a", "na", "<na>", "nat", "undefined", "#n/a"}
LONGEST_LOOKED_AT = 20
MAX_GROUPS = 500
# What differs from row to row in one problem: numbers, and excerpts of the row's text.
VARIABLE = re.compile(r"\d+|\(in .*\)|'(?:[^'\\]|\\.)*'")


@dataclass
class Group:
    """Rows with the same problem: how many, and the first, with its file and line."""

    first: str
    rows: int = 0

    def __str__(self) -> str:
        return f"{self.first} (and {self.rows - 1} more like it)" if self.rows > 1 else self.first


@dataclass
class Groups:
    """Groups by problem, in the order in which they were met."""

    by_reason: dict[str, Group] = field(default_factory=dict)

    def add(self, problem: str, first: str) -> None:
        """Count a row. Problems that differ in numbers and excerpts alone are one."""
        reason = VARIABLE.sub("N", problem)
        if len(self.by_reason) >= MAX_GROUPS and reason not in self.by_reason:
            reason = "other problems"
        self.by_reason.setdefault(reason, Group(first)).rows += 1

    def lines(self) -> list[str]:
        """A line a group, the largest first, at most LISTED."""
        groups = sorted(self.by_reason.values(), key=lambda group: -group.rows)
        more = sum(group.rows for group in groups[LISTED:])
        last = [f"... and {more} more rows with other problems"] if more else []
        return [*map(str, groups[:LISTED]), *last]

    def table(self) -> list[dict[str, str | int]]:
        """The same for the data report."""
        return [
            {"reason": reason, "rows": group.rows, "first": group.first}
            for reason, group in list(self.by_reason.items())[: 10 * LISTED]
        ]


def placeholders(example: Example) -> list[str]:
    """A remark on each whole text that only stands for a missing one; such texts are used, and counted."""
    found = []
    for what, texts in (
        ("document", _texts(example.document)),
        ("summary", example.references),
    ):
        found += [
            f'has the {what} "{text.strip()}", which may stand for a missing text; it is used'
            for text in texts
            if len(text) <= LONGEST_LOOKED_AT and text.strip().lower() in PLACEHOLDERS
        ]
    return found


def _texts(document: Document) -> list[str]:
    return list(document.values()) if isinstance(document, dict) else [plain_text(document)]
