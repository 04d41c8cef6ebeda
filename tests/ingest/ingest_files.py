"""Small real inputs for the ingest tests, and the calls they share."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import DatasetRef, Row, read_rows
from tasks.ingest.prepare import prepare
from tasks.ingest.row_types import ReadOptions, SourceFile
from tasks.serving.summarizer import SummarizerSettings

SHARED = Path(__file__).parents[2].parent / "shared"
TEMPLATE = "Read: {document}\nSummary: "
LENIENT = 1.0  # for tests that look at rejects, not at the threshold


def document(number: int) -> str:
    """A document unlike every other one."""
    words = [f"w{number}x{place}" for place in range(12)]
    return f"#Person1#: {' '.join(words)}."


def rows(count: int, start: int = 0) -> list[dict[str, str]]:
    """Rows with the columns `document` and `summary`."""
    return [
        {"document": document(n), "summary": f"Summary number {n}."}
        for n in range(start, start + count)
    ]


def jsonl(path: Path, values: Iterable[Any]) -> str:
    """Write JSONL; strings stand as they are. Returns the path, as a recipe names it."""
    lines = [v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def source_file(path: Path, **options: Any) -> SourceFile:
    """A local file as ingest hands it to its readers."""
    return SourceFile(path.name, path, path.stat().st_size, "", options=ReadOptions(**options))


def settings(max_source_tokens: int = 2000, template: str = TEMPLATE) -> SummarizerSettings:
    """Settings as the recipe would give them for a small base."""
    return SummarizerSettings(template, max_source_tokens, "tail", 32, 4)


class Ingest:
    """`prepare` into a folder of its own, and its output read back."""

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder

    def __call__(
        self,
        prompt: Prompt | None = None,
        most: int = 2000,
        slices: tuple[str, ...] = (),
        **data: Any,
    ) -> DatasetRef:
        prompt = prompt or Prompt(template=TEMPLATE)
        wanted = Data(**data)
        inputs = tuple(wanted.fields.inputs or ())
        used = replace(settings(most, prompt.template), inputs=inputs)
        return prepare(wanted, prompt, used, self.tokenizer, self.folder, slices)

    def rows(self, split: str) -> list[Row]:
        return read_rows(self.folder / f"{split}.jsonl")

    def rejects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rejects.jsonl").open()]

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return found

    def bytes(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}


def refused(ingest: Ingest, prompt: Prompt | None = None, **data: Any) -> str:
    """The message with which ingest refuses these data."""
    with pytest.raises(DataError) as caught:
        ingest(prompt, **data)
    return str(caught.value)
