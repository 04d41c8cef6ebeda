"""What a reader should look at in an output: numbers and names that its row holds nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Prediction
from tasks.contracts.unsupported import Usage, unsupported


class Marker:
    """Marks outputs of a set of rows, whose texts show what is written with a capital."""

    def __init__(self, rows: Iterable[Prediction]) -> None:
        self.usage = Usage.of(_held(row) for row in rows)

    def parts(self, row: Prediction) -> Iterator[tuple[bool, str]]:
        """The output in pieces, in order: whether neither document nor reference holds it, and its text."""
        done = 0
        for span in unsupported(row.text, _held(row), self.usage):
            yield False, row.text[done : span.start]
            yield True, span.text
            done = span.end
        yield False, row.text[done:]

    def marked(self, row: Prediction) -> list[str]:
        """What is marked, each once, in order."""
        return list(dict.fromkeys(text for is_marked, text in self.parts(row) if is_marked))


def _held(row: Prediction) -> str:
    return "\n\n".join([plain_text(row.document), *row.references])
