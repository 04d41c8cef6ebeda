"""Rows alike in what is odd about them: counted together, and the first of them named."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

LISTED = 20  # groups in an error's text; the report has more, the rejects file all rows
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
