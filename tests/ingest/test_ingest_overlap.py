from __future__ import annotations

import itertools
import json
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from ingest_files import Ingest, document, jsonl, rows
from pydantic import ValidationError

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data
from tasks.contracts.similar_documents import LEAST_PART, SHINGLE_WORDS, DocumentIndex, forms
from tasks.ingest.row_types import source_of

DEMO = Path(__file__).parents[2] / "deployments/demo/data"
with (DEMO / "evaluation.jsonl").open() as evaluation_lines:
    DIALOGUES = [json.loads(line)["dialogue"] for line in itertools.islice(evaluation_lines, 60)]


def words(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [f"word{generator.randrange(2000)}" for _ in range(count)]


def five_grams(text: list[str]) -> list[tuple[str, ...]]:
    """Word 5-grams by their definition."""
    return [tuple(text[i : i + SHINGLE_WORDS]) for i in range(len(text) - SHINGLE_WORDS + 1)]


def changed(text: list[str], places: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    other = list(text)
    for place in generator.sample(range(len(text)), places):
        other[place] = f"new{generator.randrange(10**9)}"
    return other


def indexed(*documents: str, jaccard: float = 0.8, containment: float = 0.5) -> DocumentIndex:
    """An index of these documents, each under its number."""
    index = DocumentIndex(jaccard, containment)
    for number, text in enumerate(documents):
        index.add(source_of(text), str(number), text)
    return index


def test_similarity_and_containment_are_exact() -> None:
    """Jaccard index and shares are those of the sets of word 5-grams, to the last digit."""
    for seed in range(50):
        one = words(seed, 100)
        other = changed(one, seed % 12, seed)[: 100 - seed]
        match = indexed(" ".join(one), jaccard=0.01).near("\n".join(other))
        assert match is not None
        sets = [set(five_grams(text)) for text in (one, other)]
        shared = len(sets[0] & sets[1])
        assert match.jaccard == shared / len(sets[0] | sets[1])
        assert (match.of_evaluation, match.of_training) == (
            shared / len(sets[0]),
            shared / len(sets[1]),
        )


def test_every_near_duplicate_is_found() -> None:
    """Every document at or over a threshold is found, with its row, and none below both."""
    originals = [words(seed, 200) for seed in range(300)]
    index = indexed(*(" ".join(text) for text in originals), containment=0.7)
    near = far = 0
    for seed, text in enumerate(originals):
        for places in (0, 4, 10, 12, 13, 16, 40):
            other = changed(text, places, seed)
            sets = [set(five_grams(each)) for each in (text, other)]
            share = len(sets[0] & sets[1]) / min(map(len, sets))
            match = index.near(" ".join(other))
            if share >= 0.7:
                near += 1
                assert match is not None
                assert match.id == str(seed)
            else:
                far += 1
                assert match is None
    assert near > 500
    assert far > 500


@pytest.mark.parametrize("text", ["", "!?", "one", "one two three four", "很短", "🙂 🙂"])
def test_short_documents(text: str) -> None:
    """A document of fewer than five words equals itself and nothing else."""
    assert [len(of_form) for of_form in forms(text)] == [1]
    index = indexed(text)
    match = index.near(f" {text} ")
    assert match is not None
    assert match.jaccard == 1.0
    assert index.near(f"{text} more") is None
    assert DocumentIndex(0.8, 0.5).near(text) is None


def test_scripts_without_blanks() -> None:
    """Chinese documents are compared by characters."""
    text = "我们今天去公园散步天气很好花都开了大家都很高兴晚上回家吃饭然后看电视睡觉明天还要上班工作很忙"
    assert [len(of_form) for of_form in forms(text)] == [len(text) - SHINGLE_WORDS + 1]
    match = indexed(text).near(text[:-1])
    assert match is not None
    assert match.jaccard > 0.9


DISGUISES: dict[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "white space and line ends": lambda text: text.replace(" ", "  ").replace("\n", "\r\n\r\n"),
    "no punctuation": lambda text: re.sub(r"[^\w\s]", "", text),
    "curly apostrophes": lambda text: text.replace("'", "\u2019"),
    "apostrophes apart": lambda text: text.replace("'", " ' "),
    "other speakers": lambda text: re.sub(r"^\w+:", "#Person1#:", text, flags=re.MULTILINE),
    "times before the turns": lambda text: re.sub(r"^", "[10:32] ", text, flags=re.MULTILINE),
    "no speakers": lambda text: re.sub(r"^\w+: ", "", text, flags=re.MULTILINE),
    "accents": lambda text: unicodedata.normalize("NFD", text.replace("e", "\u00e9")),
    "zero width": lambda text: text.replace("e", "e\u200b").replace(" ", " \ufeff"),
    "soft hyphens": lambda text: text.replace("t", "t\u00ad"),
    "look-alike letters": lambda text: text.translate(
        str.maketrans("aeopcxy", "\u0430\u0435\u043e\u0440\u0441\u0445\u0443")
    ),
    "full-width letters": lambda text: text.translate({n: n + 0xFEE0 for n in range(0x61, 0x7B)}),
    "ligatures": lambda text: text.replace("fi", "\ufb01"),
    "a preamble": lambda text: f"The following is a conversation between friends.\n{text}",
    "last turn left out": lambda text: text.rpartition("\n")[0],
    "first turn left out": lambda text: text.partition("\n")[2],
    "inside a longer text": lambda text: f"{' '.join(words(5, 150))}\n{text}\n{' '.join(words(6, 150))}",
    "one word in twenty replaced": lambda text: " ".join(
        f"new{i}" if i % 20 == 9 else word for i, word in enumerate(text.split(" "))
    ),
}  # fmt: skip


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_a_disguised_evaluation_row_is_found(disguise: Callable[[str], str]) -> None:
    """Of 60 of the demo's evaluation dialogues, at least 58 are found in each disguise, as themselves."""
    index = indexed(*DIALOGUES)
    matches = [index.near(disguise(text)) for text in DIALOGUES]
    assert sum(match is not None and match.id == str(i) for i, match in enumerate(matches)) >= 58


def test_parts_of_an_evaluation_document_are_found() -> None:
    """A document that is spread over three training rows is dropped from all that are long enough."""
    index = indexed(*DIALOGUES)
    for text in DIALOGUES[:20]:
        turns = text.split("\n")
        third = len(turns) // 3
        parts = [turns[:third], turns[third : 2 * third], turns[2 * third :]]
        for part in ("\n".join(part) for part in parts):
            if len(forms(part)[0]) >= LEAST_PART:
                match = index.near(part)
                assert match is not None
                assert match.of_training == 1.0


def test_dialogues_of_one_form_are_not_near_duplicates() -> None:
    """The demo's training dialogues, of the same phrases about other things, all stay."""
    index = indexed(*DIALOGUES)
    with (DEMO / "train.jsonl").open() as lines:
        assert not [line for line in lines if index.near(json.loads(line)["dialogue"])]


def test_overlap_is_dropped_from_training(tmp_path: Path, ingest: Ingest) -> None:
    """Training documents that are evaluation documents, or nearly, are dropped and shown."""
    long = " ".join(words(1, 100))
    dev = [{"document": document(0), "summary": "a"}, {"document": long, "summary": "b"}]
    train = [
        {"document": document(0).replace(" ", "  "), "summary": "another summary"},
        {"document": long.upper() + "!", "summary": "c"},
        {"document": long.replace(" ", ", ", 3) + " end", "summary": "d"},
        *rows(3, start=10),
    ]
    made = ingest(
        train=jsonl(tmp_path / "t.jsonl", train), evaluation=jsonl(tmp_path / "e.jsonl", dev)
    )
    assert (made.train_rows, made.evaluation_rows) == (3, 2)
    assert [row.id for row in ingest.rows("train")] == ["t:4", "t:5", "t:6"]
    overlap = ingest.report()["overlap"]
    assert (overlap["exact_dropped"], overlap["near_dropped"]) == (1, 2)
    assert overlap["examples"] == [
        {"train": "t:1", "evaluation": "e:1", "jaccard": 1.0, "kind": "exact", "exact": True},
        {"train": "t:2", "evaluation": "e:2", "jaccard": 1.0, "of_evaluation": 1.0}
        | {"of_training": 1.0, "kind": "similar", "exact": False},
        {"train": "t:3", "evaluation": "e:2", "jaccard": 0.9897, "of_evaluation": 1.0}
        | {"of_training": 0.9897, "kind": "similar", "exact": False},
    ]
    assert overlap["near_dropped_by_kind"] == {"similar": 2}
    assert ingest.report()["train"]["prompt_tokens"]["max"] < 150  # of the rows that stayed


def test_overlap_after_a_split(tmp_path: Path, ingest: Ingest) -> None:
    """Near-duplicates that a split by hash sends to both sides are dropped from training too."""
    values = []
    for seed in range(40):
        text = words(seed, 60)
        values += [
            {"document": " ".join([*text, end]), "summary": f"s{seed}"} for end in ("yes", "no")
        ]
    made = ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation_share=0.5)
    near = ingest.report()["overlap"]["near_dropped"]
    assert near > 5
    assert made.train_rows + made.evaluation_rows + near == 80


def test_threshold_of_the_recipe(tmp_path: Path, ingest: Ingest) -> None:
    """Similarity and containment decide; at 1.0 only equal sets of 5-grams, or whole ones, are dropped."""
    text = words(3, 50)
    dev = jsonl(tmp_path / "e.jsonl", [{"document": " ".join(text), "summary": "s"}])
    half = [{"document": " ".join(text[:35] + words(4, 15)), "summary": "s"}, *rows(2)]
    train = jsonl(tmp_path / "t.jsonl", half)
    for jaccard, containment, kept in ((0.3, 1, 2), (0.8, 1, 3), (0.8, 0.8, 3), (0.8, 0.6, 2)):
        thresholds = {"near_duplicate_jaccard": jaccard, "near_duplicate_containment": containment}
        made = ingest(train=train, evaluation=dev, **thresholds)
        assert made.train_rows == kept
    for setting in ("near_duplicate_jaccard", "near_duplicate_containment"):
        with pytest.raises(ValidationError, match=setting):
            Data(train="t.jsonl", **{setting: 0.0})


def test_an_evaluation_reference_under_another_document_is_reported(
    tmp_path: Path, ingest: Ingest
) -> None:
    """It may be what two documents have in common, so the row stays, and the report counts it."""
    reference = "Ann and Bob agree to meet at the station on Monday at noon."
    dev = jsonl(tmp_path / "e.jsonl", [{"document": " ".join(words(1, 60)), "summary": reference}])
    leaked = {"document": " ".join(words(2, 60)), "summary": reference.upper()}
    short = {"document": " ".join(words(3, 60)), "summary": "They agree."}
    made = ingest(train=jsonl(tmp_path / "t.jsonl", [leaked, short]), evaluation=dev)
    assert made.train_rows == 2
    assert ingest.report()["overlap"]["shared_references"] == 1


def test_nothing_left(tmp_path: Path, ingest: Ingest) -> None:
    """Training data that all stand in the evaluation data stop the flow."""
    train = jsonl(tmp_path / "t.jsonl", rows(3))
    with pytest.raises(
        DataError, match=r"every training row \(3\) is, or nearly is, an evaluation"
    ):
        ingest(train=train, evaluation=train)
    assert sorted(ingest.bytes()) == ["rejects.jsonl"]
