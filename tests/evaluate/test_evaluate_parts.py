"""map_reduce: documents longer than the prompt, read in parts, the same in evaluation and serving.

Over 250 lines: its tests share a tokenizer and a model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.contracts.records import Row
from tasks.evaluate.predict import predict
from tasks.evaluate.scores import batch_plan
from tasks.evaluate.sentences import sentences
from tasks.register import log_model
from tasks.serving.summarizer import (
    MAX_SHRINK,
    Generator,
    SummarizerSettings,
    Summary,
    encode,
    fit,
    full_length,
    split,
)
from tasks.serving.summarizer.map_reduce import UNSPACED_MARKS
from tasks.tracking.predictions_table import read_table

SETTINGS = SummarizerSettings("Sum:\n{document}\nUp: ", 60, "tail", 8, 3, summarize="map_reduce")


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(base: Path, folder: Path, wanted: SummarizerSettings = SETTINGS) -> Path:
    return tiny.packaged(base, folder, wanted)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of a random tiny model, whose texts never end by themselves but for luck."""
    base = tiny.make_tiny_base(tmp_path_factory.mktemp("base"))
    return packaged(base, tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def tokenizer(model: Path) -> Any:
    return Generator(model, "cpu").tokenizer


def joined(texts: list[str]) -> str:
    """Without white space, which may be lost between parts."""
    return "".join("".join(texts).split())


@settings(max_examples=150, deadline=None)
@given(st.text(st.sampled_from("ab z.!?\n\r\t'\"é語🙂\u2003"), max_size=400), st.integers(24, 70))
def test_parts_hold_all_of_a_document_and_each_fits(
    tokenizer: Any, document: str, most: int
) -> None:
    """Whatever the text: many-byte characters, white space alone, no break at all."""
    wanted = replace(SETTINGS, max_source_tokens=most)
    parts = split(tokenizer, document, wanted)
    assert joined(parts) == joined([document])
    assert all(full_length(tokenizer, part, wanted) <= most for part in parts)
    assert all(part == part.strip() != "" for part in parts)


def test_parts_are_about_equal_and_end_where_a_paragraph_or_sentence_does(tokenizer: Any) -> None:
    """Paragraphs first, then sentences, then words; a long word is parted between two tokens."""
    wanted = replace(SETTINGS, max_source_tokens=len(encode(tokenizer, "", SETTINGS)) + 30)
    z = "z" * 9 + "."
    paragraphs = "\n\n".join(f"{z} {z}" for _ in range(4))  # about 21 tokens each
    assert split(tokenizer, paragraphs, wanted) == [f"{z} {z}"] * 4
    sentences = " ".join([z] * 8)
    assert split(tokenizer, sentences, wanted) == [f"{z} {z}"] * 4
    words = " ".join(["zzzz"] * 16)
    found = split(tokenizer, words, wanted)
    assert {word for part in found for word in part.split()} == {"zzzz"}
    assert max(map(len, found)) - min(map(len, found)) <= 5
    assert [len(part) for part in split(tokenizer, "z" * 90, wanted)] == [30, 30, 30]
    assert [len(part) for part in split(tokenizer, "z" * 31, wanted)] == [16, 15]


@pytest.mark.parametrize("mark", [*UNSPACED_MARKS, "\u3002\u300d", "\uff01\uff1f"])
def test_parts_end_at_sentences_of_every_script(tokenizer: Any, mark: str) -> None:
    """Also where no space follows the mark, and behind a closing quote; evaluation splits there too."""
    sentence = "zzzzzzz" + mark
    wanted = replace(
        SETTINGS,
        max_source_tokens=len(encode(tokenizer, "", SETTINGS))
        + 2 * len(tokenizer(sentence, add_special_tokens=False)["input_ids"])
        + 2,
    )
    assert split(tokenizer, sentence * 8, wanted) == [sentence * 2] * 4
    assert sentences(sentence * 3) == [sentence] * 3


def test_a_template_that_leaves_no_room_is_an_error(tokenizer: Any) -> None:
    """Both when it alone is too long and when it just fits."""
    bare = len(encode(tokenizer, "", SETTINGS))
    for most in (bare, bare - 1):
        with pytest.raises(ValueError, match=r"prompt\.template"):
            split(tokenizer, "zzz", replace(SETTINGS, max_source_tokens=most))


def test_what_fits_is_written_as_without_map_reduce(model: Path) -> None:
    """Another setting, the same text and the same numbers."""
    documents = ["Anna: Yes.", "Ben: No, yes.", "z" * 10, ""]
    parted = Generator(model, "cpu")
    direct = Generator(model, "cpu")
    direct.settings = replace(SETTINGS, summarize="direct")
    assert parted.summarize(documents) == direct.summarize(documents)


def test_a_long_document_is_summarized_from_its_parts(model: Path) -> None:
    """The last prompt holds the parts' summaries; the record says how long the whole would have been."""
    generator = Generator(model, "cpu")
    document = " ".join(["zzzz."] * 20)
    whole = full_length(generator.tokenizer, document, SETTINGS)
    parts = split(generator.tokenizer, document, SETTINGS)
    assert len(parts) > 2
    part_summaries = [summary.text for summary in generator.summarize(parts)]
    together = "\n\n".join(text for text in part_summaries if text)
    assert full_length(generator.tokenizer, together, SETTINGS) <= 60  # one round is enough
    found = generator.summarize([document])[0]
    last = generator.summarize([together])[0]
    assert (found.text, found.finished, found.output_tokens) == (
        *(last.text, last.finished, last.output_tokens),
    )
    assert (found.prompt_tokens, found.parts, found.cut_tokens) == (whole, len(parts), 0)


class Parrot(Generator):
    """A model that repeats what it is given: its summaries are never shorter than their parts."""

    rounds = 0

    def _write_batch(self, documents: list[str], batch: int) -> list[Summary]:
        Parrot.rounds += 1
        return [Summary(text, True, 1, 1, batch) for text in documents]


class Shortener(Generator):
    """A model that leaves out the last character or so: it shortens, but hardly."""

    rounds = 0

    def _write_batch(self, documents: list[str], batch: int) -> list[Summary]:
        Shortener.rounds += 1
        keep = [int(len(text) * 0.86) for text in documents]
        return [
            Summary(text[:n], True, 1, 1, batch) for text, n in zip(documents, keep, strict=True)
        ]


class Silent(Generator):
    """A model that has nothing to say, but to a prompt without a document."""

    def _write_batch(self, documents: list[str], batch: int) -> list[Summary]:
        return [Summary("" if text else "made up", False, 1, 9, batch) for text in documents]


def test_it_ends_though_the_model_shortens_nothing(model: Path) -> None:
    """One round that leaves the text as long as it was, then it is cut, and that is counted."""
    generator = Parrot(model, "cpu")
    generator.settings = replace(SETTINGS, batch_size=1000)
    Parrot.rounds, document = 0, "z" * 1000
    found = generator.summarize([document])[0]
    assert Parrot.rounds == 2  # the parts, and the text that was cut
    prompt, cut = fit(
        generator.tokenizer, "\n\n".join(split(generator.tokenizer, document, SETTINGS)), SETTINGS
    )
    assert found.cut_tokens == cut > 900
    assert found.text in prompt or found.text.startswith("z")
    assert found.parts > 20


def test_it_ends_in_few_rounds_though_the_model_shortens_little(model: Path) -> None:
    """log(tokens / room) / log(1 / MAX_SHRINK) rounds and one more, at most."""
    import math

    generator = Shortener(model, "cpu")
    generator.settings = replace(SETTINGS, batch_size=1000)
    Shortener.rounds, document = 0, "z" * 3000
    generator.summarize([document])
    most = math.log(3000 / 40) / math.log(1 / MAX_SHRINK) + 2
    assert 3 < Shortener.rounds <= most


def test_parts_without_a_word_between_them_have_no_summary(model: Path) -> None:
    """Nothing is made up from a prompt without a document: the output is empty, and counts as such."""
    generator = Silent(model, "cpu")
    found = generator.summarize(["z" * 200, "short"])
    assert (found[0].text, found[0].output_tokens, found[0].parts > 1) == ("", 0, True)
    assert found[1].text == ""


def test_white_space_that_does_not_fit_is_no_part(model: Path) -> None:
    """A document that fits but for its blank lines is summarized as it is, once."""
    generator = Generator(model, "cpu")
    padded, plain = generator.summarize(["Anna: Yes." + "\n" * 300, "Anna: Yes."])
    assert (padded.text, padded.parts, padded.cut_tokens) == (plain.text, 1, 0)


def test_the_table_replays_every_batch(model: Path, tmp_path: Path) -> None:
    """Long and short documents mixed: the plan is in the table, and each batch gives the same again."""
    rows = [
        Row(f"r{i}", f"s{i}", " ".join(["zz yes."] * n) or "z", ("Yes.",))
        for i, n in enumerate((1, 30, 2, 60, 17, 0, 45))
    ]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    predict(str(model), str(path), str(tmp_path / "table.json"), "cpu")
    predictions = read_table(tmp_path / "table.json")
    generator = Generator(model, "cpu")
    plan = batch_plan(predictions)
    assert plan == generator.batches([row.document for row in rows])
    assert {p.parts > 1 for p in predictions} == {True, False}
    for number, batch in enumerate(plan):
        again = generator.summarize_batch([rows[i].document for i in batch], number)
        for summary, i in zip(again, batch, strict=True):
            one = predictions[i]
            assert vars(summary).items() <= vars(one).items()


@pytest.fixture(scope="module")
def bills(shared: Path) -> list[str]:
    """Real bills as ingest hands them on: one of about 14,000 characters, and two short ones' heads."""
    with (shared / "data/billsum/us_train_100.jsonl").open() as lines:
        texts = [json.loads(line)["text"].replace("\r\n", "\n") for line in lines]
    long = min(texts, key=lambda text: abs(len(text) - 14_000))
    assert 13_000 < len(long) < 15_000
    return [texts[0][:600], long, texts[1][:2500]]


@pytest.mark.full
def test_a_whole_bill_is_the_same_text_judged_and_served(
    shared: Path, bills: list[str], tmp_path: Path
) -> None:
    """Written by evaluation, by the MLflow model here, and by it in a clean process (batch 0)."""
    import mlflow

    template = "Summarize the following bill.\n\n{document}\n\nSummary: "
    wanted = SummarizerSettings(template, 400, "tail", 24, 2, summarize="map_reduce")
    package_folder = packaged(shared / "models/dialog-7m", tmp_path / "package", wanted)
    rows = [Row(f"r{i}", f"s{i}", text, ("A bill.",)) for i, text in enumerate(bills)]
    path = tiny.write_rows(tmp_path / "rows.jsonl", rows)
    predict(str(package_folder), str(path), str(tmp_path / "table.json"), "cpu")
    predictions = read_table(tmp_path / "table.json")
    assert predictions[1].parts >= 10
    assert predictions[1].prompt_tokens > 2048  # longer than the base's context
    assert (predictions[0].parts, predictions[0].cut_tokens) == (1, 0)
    log_model.lay_out(package_folder, tmp_path / "model")
    texts = mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(bills)
    assert list(texts) == [p.text for p in predictions]
    log_model.reproduce(str(tmp_path / "model"), predictions, tmp_path / "clean")
