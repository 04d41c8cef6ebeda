from __future__ import annotations

import random
from pathlib import Path

import pytest
from ingest_files import Ingest, document, jsonl, rows

from tasks.contracts.errors import DataError, RecipeError
from tasks.ingest.overlap import SHINGLE_WORDS, OverlapIndex, bands, jaccard, shingles
from tasks.ingest.row_types import source_of


def words(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return [f"word{generator.randrange(2000)}" for _ in range(count)]


def plain_jaccard(a: list[str], b: list[str]) -> float:
    """The same by the definition, on the words themselves."""
    sets = [
        {tuple(w[i : i + SHINGLE_WORDS]) for i in range(len(w) - SHINGLE_WORDS + 1)} for w in (a, b)
    ]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def changed(text: list[str], places: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    other = list(text)
    for place in generator.sample(range(len(text)), places):
        other[place] = f"new{generator.randrange(10**9)}"
    return other


def test_exact_jaccard() -> None:
    """The similarity is the Jaccard index of the sets of word 5-grams, to the last digit."""
    for seed in range(50):
        one = words(seed, 100)
        other = changed(one, seed % 12, seed)
        found = jaccard(shingles(" ".join(one)), shingles("\n".join(other)))
        assert found == plain_jaccard(one, other)


def test_every_near_duplicate_is_found() -> None:
    """Every pair at or over the threshold is found, and none below it."""
    index = OverlapIndex(0.8)
    originals = [words(seed, 200) for seed in range(300)]
    for seed, text in enumerate(originals):
        index.add(source_of(" ".join(text)), f"row {seed}", " ".join(text))
    near = far = 0
    for seed, text in enumerate(originals):
        for places in (0, 2, 3, 4, 5, 6, 8):  # at four changed words of 200 it is near 0.82
            other = changed(text, places, seed)
            similarity = plain_jaccard(text, other)
            match = index.near(" ".join(other))
            if similarity >= 0.8:
                near += 1
                assert match is not None
                assert (match.id, match.jaccard) == (f"row {seed}", similarity)
            else:
                far += 1
                assert match is None
    assert near > 500
    assert far > 500


def test_bands_keep_recall() -> None:
    """The bands of the hash propose a pair at the threshold with at least 99.9%."""
    for threshold in (0.1, 0.3, 0.5, 0.8, 0.95, 1.0):
        count, width = bands(threshold)
        assert count * width <= 128
        assert 1 - (1 - threshold**width) ** count >= 0.999
    with pytest.raises(RecipeError, match=r"near_duplicate_jaccard is 0.01.*raise it"):
        bands(0.01)


@pytest.mark.parametrize("text", ["", "!?", "one", "one two three four", "很短", "🙂 🙂"])
def test_short_documents(text: str) -> None:
    """A document of fewer than five words equals itself and nothing else."""
    assert len(shingles(text)) == 1
    assert jaccard(shingles(text), shingles(f" {text} ")) == 1.0
    assert jaccard(shingles(text), shingles(f"{text} more")) == 0.0
    index = OverlapIndex(0.8)
    assert index.near(text) is None
    index.add("source", "id", text)
    match = index.near(text)
    assert match is not None
    assert match.jaccard == 1.0


def test_scripts_without_blanks() -> None:
    """Chinese documents are compared by characters."""
    text = "我们今天去公园散步天气很好花都开了大家都很高兴晚上回家吃饭然后看电视睡觉明天还要上班工作很忙"
    assert len(shingles(text)) == len(text) - SHINGLE_WORDS + 1
    assert jaccard(shingles(text), shingles(text[:-1])) > 0.9


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
        {"train": "t:1", "evaluation": "e:1", "jaccard": 1.0, "exact": True},
        {"train": "t:2", "evaluation": "e:2", "jaccard": 1.0, "exact": False},
        {"train": "t:3", "evaluation": "e:2", "jaccard": 0.9897, "exact": False},
    ]
    assert ingest.report()["train"]["prompt_tokens"]["max"] < 150  # of the rows that stayed


def test_overlap_after_a_split(tmp_path: Path, ingest: Ingest) -> None:
    """Near-duplicates that a split by hash sends to both sides are dropped from training too."""
    values = []
    for seed in range(40):
        text = words(seed, 60)
        values += [{"document": " ".join([*text, end]), "summary": "s"} for end in ("yes", "no")]
    made = ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation_share=0.5)
    near = ingest.report()["overlap"]["near_dropped"]
    assert near > 5
    assert made.train_rows + made.evaluation_rows + near == 80


def test_threshold_of_the_recipe(tmp_path: Path, ingest: Ingest) -> None:
    """data.near_duplicate_jaccard decides; at 1.0 only equal sets of 5-grams are dropped."""
    text = words(3, 50)
    dev = jsonl(tmp_path / "e.jsonl", [{"document": " ".join(text), "summary": "s"}])
    half = [{"document": " ".join(text[:35] + words(4, 15)), "summary": "s"}, *rows(2)]
    train = jsonl(tmp_path / "t.jsonl", half)
    for threshold, kept in ((0.3, 2), (0.8, 3), (1.0, 3)):
        made = ingest(train=train, evaluation=dev, near_duplicate_jaccard=threshold)
        assert made.train_rows == kept
    with pytest.raises(RecipeError, match="near_duplicate_jaccard"):
        ingest(train=train, evaluation=dev, near_duplicate_jaccard=0.0)


def test_nothing_left(tmp_path: Path, ingest: Ingest) -> None:
    """Training data that all stand in the evaluation data stop the flow."""
    train = jsonl(tmp_path / "t.jsonl", rows(3))
    with pytest.raises(
        DataError, match=r"every training row \(3\) is, or nearly is, an evaluation"
    ):
        ingest(train=train, evaluation=train)
    assert sorted(ingest.bytes()) == ["rejects.jsonl"]
