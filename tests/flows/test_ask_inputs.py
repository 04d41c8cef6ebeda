"""`precis ask` of a model that takes several texts by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from flows.ask import Question, ask
from tasks.contracts.errors import PrecisError
from tasks.serving.summarizer import Generator, SummarizerSettings

SETTINGS = SummarizerSettings(
    "{question}\n{context}\nA: ", 200, "tail", 6, 3, inputs=("question", "context")
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    base = tiny.make_tiny_base(folder / "base")
    settings = replace(SETTINGS, optional=("context",))
    tiny.packaged(base, folder / "optional", settings)
    tiny.packaged(base, folder / "one", replace(SETTINGS, inputs=(), template="{document}: "))
    return tiny.packaged(base, folder / "package", SETTINGS)


def test_texts_by_name(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As text or from a file, whose CRLF is read as when rows are ingested; a question fills what is left."""
    (tmp_path / "passage.txt").write_bytes(b"One.\r\nTwo.")
    file = f"context=@{tmp_path / 'passage.txt'}"
    document = {"question": "Why?", "context": "One.\nTwo."}
    expected = Generator(package, "cpu").summarize([document])[0].text
    for asked in (
        Question(str(package), inputs=("question=Why?", file), device="cpu"),
        Question(str(package), "Why?", inputs=(file,), device="cpu"),
    ):
        assert ask(asked) == 0
        assert capsys.readouterr().out == f"{expected}\n"


def test_a_question_where_the_other_text_is_optional(
    package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    optional = package.with_name("optional")
    expected = Generator(optional, "cpu").summarize([{"question": "Why?", "context": ""}])[0].text
    assert ask(Question(str(optional), "Why?", device="cpu")) == 0
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("model", "text", "inputs", "says"),
    [
        ("package", "Why?", (), r"QUESTION could be any of question, context: .*--input question="),
        ("package", None, ("question=Why?",), "row 1: context is missing; give each as --input"),
        ("package", None, ("question=Why?", "context= "), "context is blank"),
        ("package", None, ("passage=x",), "--input passage=x: .* once each of question, context$"),
        ("package", None, ("context=@none.txt",), "--input none.txt: cannot be read"),
        ("package", None, ("question",), "--input question: write NAME=TEXT"),
        ("one", None, ("document=x",), "this model takes one document"),
    ],
)
def test_what_is_not_a_request(
    model: str, text: str | None, inputs: tuple[str, ...], says: str, package: Path
) -> None:
    """The names that the model takes are told, with the words to write."""
    with pytest.raises(PrecisError, match=says):
        ask(Question(str(package.with_name(model)), text, inputs=inputs, device="cpu"))
