"""What the rows of a split are like together: which forms their documents have, and odd references.

A row by itself may well have a reference of one word, or one that another row has too; of many rows it says
that a wrong column was read, or that the prompt asks for something else.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from tasks.contracts.comparable_text import comparable_words
from tasks.contracts.documents import Document, form_of, plain_text
from tasks.contracts.recipe import Prompt
from tasks.ingest.row_types import Example, normalized

COUNTED = 10_000  # references whose texts are kept, to find the most frequent
LEAST_ROWS = 10  # of fewer, equal references may be chance
OFTEN = 0.3  # one text in so many references is worth a remark
SHORT_WORDS, SHORT_CHARACTERS = 2, 40
EXCERPT = 60
QUOTED_CHARACTERS = 30  # a shorter reference may stand in its document by chance
# What a wrong reading of a file leaves in its texts, and from which share of rows on it is worth a remark.
# ftfy was considered: it repairs texts, and what is trained on should be what stands in the file.
MARKS: dict[str, tuple[re.Pattern[str], float, str]] = {
    "U+FFFD, which stands for a character that was lost": (
        re.compile("\ufffd"),
        0.0,
        "write the file again from its source, in UTF-8",
    ),
    "characters of UTF-8 that was read as Latin-1 (such as \u00c3\u00a9 for \u00e9)": (
        re.compile(
            "\u00c3[\u0080-\u00bf]|\u00c2[\u00a0-\u00bf]|\u00e2\u20ac[\u0080-\u00bf\u2018-\u2122]"
        ),
        0.0,
        "write the file again from its source, in UTF-8",
    ),
    "HTML": (
        re.compile(
            r"</?(?:p|br|div|span|a|ul|ol|li|b|i|em|strong|table|tr|td|h[1-6])(?: [^<>]*)?/?>"
            r"|&(?:nbsp|amp|lt|gt|quot|#\d+);",
            re.IGNORECASE,
        ),
        0.1,
        "remove it, unless the model shall read and write it",
    ),
    r"the two characters \n in place of a line break": (
        re.compile(r"\\n"),
        0.1,
        "they were escaped once too often; write line breaks, unless the texts are code",
    ),
}


@dataclass
class SplitFacts:
    """Counts over the distinct rows of a split."""

    rows: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    references: int = 0
    copies: int = 0  # references that are their document
    quoted: int = 0  # that stand in their document, word for word
    marks: Counter[str] = field(default_factory=Counter)  # rows with each of MARKS
    short: int = 0  # of one or two words
    longer: int = 0  # than their document
    one_text: str | None = None  # the reference, while all are the same
    frequent: Counter[str] = field(default_factory=Counter)  # of the first COUNTED

    def add(self, example: Example) -> None:
        """Count a row."""
        self.rows += 1
        self.forms[form_of(example.document)] += 1
        document = normalized(plain_text(example.document))
        wholes = {document, *map(normalized, _texts(example.document))}
        whole = "\n".join([plain_text(example.document), *example.references])
        self.marks.update(name for name, (mark, _, _) in MARKS.items() if mark.search(whole))
        for reference in map(normalized, example.references):
            self.one_text = reference if not self.references else self.one_text
            self.one_text = self.one_text if self.one_text == reference else None
            self.references += 1
            self.copies += reference in wholes
            is_quoted = len(reference) >= QUOTED_CHARACTERS and reference in document
            self.quoted += is_quoted and reference not in wholes
            self.longer += len(reference) > len(document)
            if len(reference) <= SHORT_CHARACTERS:
                self.short += len(comparable_words(reference)) <= SHORT_WORDS
            if self.references <= COUNTED:
                self.frequent[reference] += 1

    def remarks(self, name: str, prompt: Prompt) -> list[str]:
        """What a reader should know of the split `name`, a line each."""
        if not self.references:
            return []
        lines = []
        if self.copies:
            lines.append(
                f"{name}: {self.copies} of {self.references} references equal their documents "
                f"({self.copies / self.references:.1%}): if they are no summaries, name another "
                "data.fields.summary, or remove these rows"
            )
        if self.quoted >= max(OFTEN * self.references, 2):
            lines.append(
                f"{name}: {self.quoted} of {self.references} references stand in their documents word for "
                "word: if documents were saved with their summaries, take these out"
            )
        lines += self._marks(name)
        lines += self._frequent(name)
        asks_for_summary = prompt.format == "template" and not prompt.has_own_template
        if asks_for_summary and self.rows >= LEAST_ROWS:
            lines += self._no_summaries(name)
        return lines

    def problem(self, name: str) -> str | None:
        """Why nothing can be judged by these references."""
        if self.one_text is None or self.rows < LEAST_ROWS:
            return None
        return (
            f"{name}: all {self.references} references are the same text, {_excerpt(self.one_text)}: a model "
            "that always writes it is right, so nothing can be judged; name another data.fields.summary, or "
            "other rows"
        )

    def _marks(self, name: str) -> list[str]:
        return [
            f"{name}: {self.marks[what]} of {self.rows} rows hold {what}: {advice}"
            for what, (_, share, advice) in MARKS.items()
            if self.marks[what] > share * self.rows
        ]

    def _frequent(self, name: str) -> list[str]:
        [(text, count)] = self.frequent.most_common(1)
        of = min(self.references, COUNTED)
        if of < LEAST_ROWS or count < OFTEN * of:
            return []
        first = "first " if self.references > COUNTED else ""
        return [
            f"{name}: {count} of the {first}{of} references are the same text, {_excerpt(text)}"
        ]

    def _no_summaries(self, name: str) -> list[str]:
        lines = []
        if self.short > self.references / 2:
            lines.append(
                f"{name}: {self.short} of {self.references} references have one or two words, and "
                "prompt.template is the default, which asks for a summary: if they are answers or classes, "
                "write what is asked in prompt.template"
            )
        elif self.longer > self.references / 2:
            lines.append(
                f"{name}: {self.longer} of {self.references} references are longer than their documents, and "
                "prompt.template is the default, which asks for a summary: if they are no summaries, write "
                "what is asked in prompt.template; if columns are swapped, name them in data.fields"
            )
        return lines


def _texts(document: Document) -> list[str]:
    """The texts that a reference may be a copy of: of a conversation the last question."""
    if isinstance(document, dict):
        return list(document.values())
    return [] if isinstance(document, str) else [document[-1]["content"]]


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= EXCERPT else text[: EXCERPT - 3] + "...")
