"""What an engine of `precis serve` writes, of each kind of package: the judged texts, whole and in pieces."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from flows.serve.engine.__main__ import with_transformers
from tasks.serving.summarizer import Generator, SummarizerSettings

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = SummarizerSettings("Sum:\n{document}\nUp: ", 60, "tail", 10, 3)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
CHAT = replace(
    PLAIN, template="{document}", format="chat", chat_template=TEMPLATE, system="Be short."
)
TEXTS = [str(row.document) for row in tiny.make_rows(5)]
LONG = "The old map. " * 60
TURNS = [
    {"role": "user", "content": "Is Anna there?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "Where is she?\r\n"},
]
PAIRS = [{"left": text, "right": text[::-1]} for text in TEXTS[:2]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


def written(
    service: Any, kind: str, items: list[Any], in_pieces: bool
) -> list[tuple[str, bool, int]]:
    """Text, whether it ended by itself, and tokens of each item; pieces must be the text's beginning."""

    async def ask() -> list[tuple[str, bool, int]]:
        found: dict[int, tuple[str, bool, int]] = {}
        pieces = dict.fromkeys(range(len(items)), "")
        prompts = await service.prompts(kind, items)
        async for line in service.lines(
            prompts, service.package.settings.max_new_tokens, in_pieces
        ):
            assert "error" not in line, line
            if "piece" in line:
                assert line["index"] not in found
                pieces[line["index"]] += line["piece"]
            elif "text" in line:
                assert line["text"].startswith(pieces[line["index"]])
                found[line["index"]] = (line["text"], line["finished"], line["output_tokens"])
        return [found[index] for index in range(len(items))]

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("settings", "documents"),
    [
        (replace(PLAIN, truncate="head"), [*TEXTS, LONG]),
        (replace(PLAIN, truncate="middle", batch_size=1), [*TEXTS[:2], LONG]),
        (replace(PLAIN, summarize="map_reduce"), [*TEXTS[:2], LONG]),
        (replace(PLAIN, reasoning="strip"), TEXTS[:3]),
        (replace(PLAIN, decoding="continuous"), [*TEXTS, LONG]),
        (CHAT, [TURNS, TURNS[:1], LONG]),
        (replace(PLAIN, template="{left} | {right}", inputs=("left", "right")), PAIRS),
    ],
    ids=["head", "middle", "map_reduce", "reasoning", "continuous", "chat", "inputs"],
)
def test_an_engine_writes_what_evaluation_wrote(
    base: Path, tmp_path: Path, settings: SummarizerSettings, documents: list[Any]
) -> None:
    """Whatever the recipe's prompt, truncation and decoding; several at once, in one piece and in many."""
    folder = tiny.packaged(base, tmp_path / "package", settings)
    judged = [
        (s.text, s.finished, s.output_tokens) for s in Generator(folder, "cpu").summarize(documents)
    ]
    service = with_transformers(folder)
    assert written(service, "documents", documents, in_pieces=False) == judged
    assert written(service, "documents", documents, in_pieces=True) == judged


def test_a_stop_string_ends_an_answer(base: Path, tmp_path: Path) -> None:
    """Where it begins, in a stream too: no piece of it is sent before it is certain."""
    free = tiny.packaged(base, tmp_path / "free", PLAIN)
    texts = [s.text for s in Generator(free, "cpu").summarize(TEXTS)]
    longest = max(texts, key=len)
    stop = longest[len(longest) // 2 :][:2]
    folder = tiny.packaged(base, tmp_path / "package", replace(PLAIN, stop=(stop,)))
    judged = [
        (s.text, s.finished, s.output_tokens) for s in Generator(folder, "cpu").summarize(TEXTS)
    ]
    assert any(
        stop not in text and text != was for (text, *_), was in zip(judged, texts, strict=True)
    )
    service = with_transformers(folder)
    assert written(service, "documents", TEXTS, in_pieces=False) == judged
    assert written(service, "documents", TEXTS, in_pieces=True) == judged
