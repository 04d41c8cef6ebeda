"""Streaming gives out, piece by piece, the very text that a batch gives.

Over 250 lines: its tests share one generator.
"""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.errors import EvaluationError, PrecisError
from tasks.models.chat_session import ChatSession
from tasks.models.chat_templates import LLAMA_2
from tasks.serving.summarizer import Generator, SummarizerSettings, messages_of
from tasks.serving.summarizer.stream import THREAD

SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 24, 3)
TALK = [
    {"role": "user", "content": "Where is Ben?"},
    {"role": "assistant", "content": "At the market."},
    {"role": "user", "content": "Why?"},
]


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(base: Path, folder: Path, **changes: Any) -> Path:
    return tiny.packaged(base, folder, replace(SETTINGS, **changes))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def generator(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    """A random model: it writes rubbish, halves of characters and blanks included."""
    return Generator(packaged(base, tmp_path_factory.mktemp("package")), "cpu")


def limited(generator: Generator, **changes: Any) -> Generator:
    """The same model under other settings."""
    made = Generator.__new__(Generator)
    made.__dict__ |= vars(generator)
    made.settings = replace(generator.settings, **changes)
    return made


def test_the_pieces_are_the_batch_s_text(generator: Generator) -> None:
    """For each document alone."""
    for row in tiny.make_rows(8):
        pieces = list(generator.stream(row.document))
        assert "".join(pieces) == generator.summarize_batch([row.document])[0].text
        assert all(pieces)


def test_a_conversation_streams_as_its_text_does(base: Path, tmp_path: Path) -> None:
    """Messages and Llama 2's text are the same prompt."""
    chat = packaged(base, tmp_path, format="chat", chat_template=LLAMA_2)
    generator = Generator(chat, "cpu")
    text = "[INST] Where is Ben? [/INST] At the market. </s><s>[INST] Why? [/INST]"
    expected = generator.summarize([text, "Why?"])
    assert (
        "".join(generator.stream(TALK)) == expected[0].text == generator.summarize([TALK])[0].text
    )
    assert "".join(generator.stream("Why?")) == expected[1].text
    assert expected[0].prompt_tokens > expected[1].prompt_tokens


def test_nothing_of_a_stop_string_is_shown(generator: Generator) -> None:
    """Whatever part of the text it is, also over several tokens; blanks before it go too."""
    document = tiny.make_rows(1)[0].document
    whole = generator.summarize_batch([document])[0].text
    assert len(whole) > 20
    stopped = 0
    for place in range(1, len(whole) - 6):
        for stop in (whole[place : place + 1], whole[place : place + 5]):
            stopping = limited(generator, stop=(stop, "never this"))
            expected = stopping.summarize_batch([document])[0]
            assert "".join(stopping.stream(document)) == expected.text
            stopped += expected.finished
    assert stopped > 20


def piece_by_piece(generator: Generator, text: str) -> Iterator[str]:
    """What is certain after each token of a text."""
    ids = generator.tokenizer(text, add_special_tokens=False)["input_ids"]
    yield from (
        generator._output_rules().certain_text(ids[:count]) for count in range(1, len(ids) + 1)
    )


@pytest.mark.parametrize(
    "text",
    [
        "Ben — 市場 😀😀 at the  market.",
        "  \n a\u0301b \ufffd c  ",
        "So, EN",
        "END",
        "E EN END x",
        "abr\u00e9 c",
        "\ufffd",
    ],
)
def test_a_piece_that_was_given_out_never_changes(text: str, generator: Generator) -> None:
    """Each certain part begins with the one before, and the whole summary with all of them."""
    stopping = limited(generator, stop=("END", "ENOUGH", "r\u00e9"))
    parts = list(piece_by_piece(stopping, text))
    ids = generator.tokenizer(text, add_special_tokens=False)["input_ids"]
    final = stopping._output_rules().summary(ids, 0, 0).text
    for before, after in zip(parts, [*parts[1:], final], strict=True):
        assert after.startswith(before), (before, after)
        assert not before.endswith(" ")
    assert "END" not in final
    assert "r\u00e9" not in final


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nBen, or Anna?\n</think>\n\nAnna.", "Anna."),
        ("<think></think>Anna.", "Anna."),
        (" <think>Ben, or", ""),
        ("<think>a</think> What is </think> for?", "What is </think> for?"),
        ("A <think> block</think> later", "A <think> block</think> later"),
        ("<thick> paint", "<thick> paint"),
        ("<thi", "<thi"),
        ("[THINK]Ben?[/THINK]\nAnna.", "Anna."),
        ("<reasoning>\nBen?", ""),
    ],
)
@pytest.mark.parametrize("special", [False, True])
def test_reasoning_is_left_out_of_an_answer_that_begins_with_it(
    text: str, answer: str, special: bool, generator: Generator
) -> None:
    """Whether or not the tokenizer has tokens for its marks; and nothing of it is streamed."""
    stripping = limited(generator, reasoning="strip")
    if special:
        stripping.tokenizer = copy.deepcopy(generator.tokenizer)
        stripping.tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<think>", "</think>"]}
        )
    ids = stripping.tokenizer(text, add_special_tokens=False)["input_ids"]
    ids.append(generator.tokenizer.eos_token_id)
    assert stripping._output_rules().summary(ids, 0, 0).text == answer
    assert all(answer.startswith(part) for part in piece_by_piece(stripping, text))
    if not special:
        assert limited(generator)._output_rules().summary(ids, 0, 0).text == text.strip()


def test_an_end_token_ends_it(generator: Generator) -> None:
    """Nothing after it is decoded."""
    ids = generator.tokenizer("Yes.", add_special_tokens=False)["input_ids"]
    more = [*ids, generator.tokenizer.eos_token_id, *ids]
    rules = generator._output_rules()
    assert rules.certain_text(more) == "Yes." == rules.summary(more, 0, 0).text


def generating() -> int:
    return sum(thread.name.startswith(THREAD) for thread in threading.enumerate())


def test_closing_ends_the_generation(generator: Generator) -> None:
    """A reader that leaves stops the model within a token, and no thread stays."""
    long = limited(generator, max_new_tokens=250)
    long.end_ids = []  # never by itself
    document = tiny.make_rows(1)[0].document
    started = time.monotonic()
    whole = "".join(long.stream(document))
    full = time.monotonic() - started
    pieces: Any = long.stream(document)
    started = time.monotonic()
    first = next(pieces)
    assert generating() == 1
    pieces.close()
    assert time.monotonic() - started < full / 3
    assert generating() == 0
    assert whole.startswith(first)


def test_a_failure_reaches_the_reader(generator: Generator) -> None:
    """An error in the generating thread is no endless wait."""
    broken = limited(generator, max_source_tokens=5)
    with pytest.raises(ValueError, match=r"shorten prompt\.template"):
        list(broken.stream("Ann: hello"))
    assert generating() == 0


# --- ChatSession: what `precis ask` loads ---------------------------------------------------------


def test_the_package_s_own_code_answers(base: Path, tmp_path: Path) -> None:
    """Edited in the package, and nowhere else."""
    folder = packaged(base, tmp_path)
    tiny.edit_package(folder, "return Summary(text.strip(),", "return Summary('X',")
    assert ChatSession(folder, "cpu").generator.summarize(["Ann: hello"])[0].text == "X"


def test_a_package_of_before_streaming_answers_at_once(base: Path, tmp_path: Path) -> None:
    """It has no `stream`, no `format`: the whole answer in one piece."""
    folder = packaged(base, tmp_path)
    expected = Generator(folder, "cpu").summarize(["Ann: hello"])[0].text
    tiny.edit_package(folder, "def stream(", "def _not_yet(")
    values = json.loads((folder / "summarizer.json").read_text())
    old = {k: v for k, v in values.items() if k not in {"format", "system", "chat_template"}}
    (folder / "summarizer.json").write_text(json.dumps(old))
    session = ChatSession(folder, "cpu")
    assert (list(session.answer("Ann: hello")), session.chat) == ([expected], False)


def test_a_longer_answer_leaves_less_room(base: Path, tmp_path: Path) -> None:
    """Question and answer stay within the model's context together."""
    folder = packaged(base, tmp_path)
    session = ChatSession(folder, "cpu", max_new_tokens=480)
    assert session.generator.settings.max_source_tokens == 512 - 480
    assert session.generator.settings.max_new_tokens == 480
    assert ChatSession(folder, "cpu", max_new_tokens=3).generator.settings.max_source_tokens == 200
    with pytest.raises(
        PrecisError, match=r"--max-new-tokens 512 leaves no room.*512 tokens; lower"
    ):
        ChatSession(folder, "cpu", max_new_tokens=512)


def test_a_broken_package_is_explained(base: Path, tmp_path: Path) -> None:
    with pytest.raises(PrecisError, match=r"is no package: it has no summarizer\.json"):
        ChatSession(tmp_path, "cpu")
    folder = packaged(base, tmp_path / "package")
    (folder / "summarizer/output.py").write_text("raise RuntimeError('torn')")
    with pytest.raises(EvaluationError, match=r"could not be loaded \(RuntimeError: torn\)"):
        ChatSession(folder, "cpu")


def test_a_gpu_that_is_not_there(base: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(PrecisError, match=r"--device cuda: no GPU.*leave it out"):
        ChatSession(packaged(base, tmp_path), "cuda")


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator:
    folder = tmp_path_factory.mktemp("real")
    return Generator(packaged(shared / "models/dialog-7m", folder, max_source_tokens=900), "cpu")


@pytest.mark.parametrize("count", [4, pytest.param(12, marks=pytest.mark.full)])
def test_real_dialogues_stream_as_they_are_judged(
    real: Generator, shared: Path, count: int
) -> None:
    """Dev documents, with and without a stop string."""
    with (shared / "data/dialogsum/dev.jsonl").open() as lines:
        documents = [json.loads(line)["dialogue"] for line in islice(lines, count)]
    for stop in ((), (". ", "the")):
        stopping = limited(real, stop=stop)
        for document in documents:
            pieces = list(stopping.stream(document))
            assert "".join(pieces) == stopping.summarize_batch([document])[0].text
            assert stop or len(pieces) > 8


def test_the_model_that_mlflow_loads_takes_conversations_and_texts(
    base: Path, tmp_path: Path
) -> None:
    """In one call, as lists or as a frame's column; extra keys of messages are not seen by the model."""
    import mlflow
    import pandas

    from tasks.register import log_model

    made = packaged(base, tmp_path / "package", format="chat", chat_template=LLAMA_2)
    log_model.lay_out(made, tmp_path / "model")
    served = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    text = "[INST] Where is Ben? [/INST] At the market. </s><s>[INST] Why? [/INST]"
    weighed = [message | {"weight": 0, "id": "x"} for message in TALK]
    documents: list[Any] = [TALK, "Why?", text, weighed]
    expected = [summary.text for summary in Generator(made, "cpu").summarize(documents)]
    assert expected[0] == expected[2] == expected[3] != expected[1]
    assert served.predict(documents) == expected
    assert served.predict(pandas.DataFrame({"document": documents})) == expected
    with pytest.raises(ValueError, match="row 2: document is null, not text"):
        served.predict(["Why?", None])


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], "ends without a question"),
        (TALK[:2], "ends without a question"),
        (TALK[1:], "message 1 is from the assistant"),
        ([TALK[0], TALK[0]], "message 2 is from the user"),
        ([{"role": "tool", "content": "3"}], "message 1 has the role 'tool'"),
        ([{"role": "user", "content": " "}], "message 1 has no text in content"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "message 1 has no text"),
        ([{"content": "a"}], "message 1 has the role None"),
    ],
)
def test_a_conversation_that_cannot_be_answered_is_refused(document: Any, says: str) -> None:
    """With the message that is wrong; the chat template may not notice."""
    with pytest.raises(ValueError, match=says):
        messages_of(document)
