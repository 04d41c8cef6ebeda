"""Our ROUGE is rouge_score's, in every bit."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.stem.porter import PorterStemmer
from rouge_score import rouge_scorer

from tasks.contracts.records import ROUGE_NAMES
from tasks.evaluate.lead3 import lead3
from tasks.evaluate.rouge import porter, scoring
from tasks.evaluate.rouge.scoring import NAMES, score, score_pairs

THEIRS = {use: rouge_scorer.RougeScorer(list(NAMES), use_stemmer=use) for use in (True, False)}
WORDS = """the a of to and doctor doctors asks asking asked Person1 #Person2# trouble breathing
happily generously running runs ran ties skies dying feed agreed hopping hoping 3:30 42 don't e-mail
co-operate café NAÏVE İstanbul Straße ΣΊΣΥΦΟΣ 东京 🙂 Ⅷ ﬁne relational conditional controlling"""
JOINTS = [" "] * 8 + [", ", ". ", ".\n", "\n", "\n\n", "\n \n", "\t", "\r\n", "\u2028", "", "'"]
VOCABULARY_SIZES = (3, 8, 1000)  # few words: long runs of repeats, many tied subsequences


def text(rng: random.Random) -> str:
    words = WORDS.split()[: rng.choice(VOCABULARY_SIZES)]
    return "".join(rng.choice(words) + rng.choice(JOINTS) for _ in range(rng.randrange(40)))


def same(prediction: str, references: list[str], stemmer: bool) -> None:
    """Precision, recall and F1 of every type, by ==: no tolerance."""
    theirs = THEIRS[stemmer].score_multi(references, prediction)
    ours = score(prediction, references, stemmer)
    assert {n: tuple(ours[n]) for n in NAMES} == {n: tuple(theirs[n]) for n in NAMES}, (
        prediction,
        references,
    )


@pytest.mark.parametrize("pairs", [150, pytest.param(600, marks=pytest.mark.full)])
@pytest.mark.parametrize("stemmer", [True, False])
@pytest.mark.parametrize("references", [1, 3])
def test_equals_rouge_score_on_random_texts(stemmer: bool, references: int, pairs: int) -> None:
    """Seeded pairs: Unicode, empty texts, blank lines, repeated words, several references."""
    rng = random.Random(references)
    for _ in range(pairs):
        same(text(rng), [text(rng) for _ in range(references)], stemmer)


@given(
    st.text(alphabet="ab \n", max_size=40),
    st.lists(st.text(alphabet="ab \n", max_size=40), min_size=1, max_size=2),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_equals_rouge_score_where_ties_abound(prediction: str, references: list[str]) -> None:
    """Two words on several lines: the union of subsequences depends on each tie's breaking."""
    same(prediction, references, stemmer=False)


@given(st.text(max_size=60), st.text(max_size=60))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_equals_rouge_score_on_any_text(prediction: str, reference: str) -> None:
    """Any Unicode text."""
    same(prediction, [reference], stemmer=True)


@pytest.mark.parametrize("prediction", ["", " \n", "!!", "the", "the\ncat", "The cat."])
@pytest.mark.parametrize("reference", ["", "\n\n", "東京", "the", "cat\nthe", "the cat"])
def test_equals_rouge_score_at_the_edges(prediction: str, reference: str) -> None:
    """Texts without words or without word pairs."""
    same(prediction, [reference], stemmer=True)


def test_equals_rouge_score_on_real_dialogues(shared: Path) -> None:
    """Lead-3 and the whole document as the summary, over real references."""
    import json

    with (shared / "data/dialogsum/dev.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, 60)]
    for row in rows:
        same(lead3(row["dialogue"]), [row["summary"]], stemmer=True)
        same(row["dialogue"], [row["summary"], row["topic"]], stemmer=True)


def test_each_type_takes_its_own_best_reference() -> None:
    """ROUGE-1 and ROUGE-2 may find their best match in different references."""
    [scores] = score_pairs(["a b c d"], [["d c b a", "a b x y"]])
    assert (scores["rouge1"], scores["rouge2"]) == (1.0, 1 / 3)


def test_a_reference_may_be_one_text() -> None:
    """A bare string is one reference, not a list of letters."""
    assert score_pairs(["a b"], ["a b"]) == score_pairs(["a b"], [["a b"]])


def test_names_are_the_records_names() -> None:
    assert NAMES == ROUGE_NAMES


@pytest.mark.parametrize(
    ("predictions", "references", "says"),
    [(["a"], [], "1 predictions, 0 references"), (["a"], [[]], "without a reference")],
)
def test_what_cannot_be_scored_is_an_error(
    predictions: list[str], references: list[list[str]], says: str
) -> None:
    """Nothing is scored as zero for want of a reference."""
    with pytest.raises(ValueError, match=says):
        score_pairs(predictions, references)


@pytest.mark.parametrize("words", [15_000, pytest.param(60_000, marks=pytest.mark.full)])
def test_stems_equal_nltk_on_every_ending(words: int) -> None:
    """Seeded words made of random beginnings and every ending that a rule names."""
    rng, theirs = random.Random(0), PorterStemmer().stem
    endings = [*porter.STEP_2, *porter.STEP_3, *porter.STEP_4, *porter.IRREGULAR]
    endings += ["s", "es", "ies", "sses", "ss", "ed", "ing", "eed", "ied", "y", "yy", "ying", "e"]
    endings += ["ll", "logi", "at", "bl", "iz"]
    for _ in range(words):
        word = "".join(rng.choices("aeioubcdlstyyxwzk7", k=rng.randrange(5)))
        word += "".join(rng.choices(endings, k=rng.randrange(1, 3)))
        assert porter.stem(word) == theirs(word), word


def test_stems_equal_nltk_on_real_words(shared: Path) -> None:
    """Every word of three real sets, tens of thousands."""
    theirs, vocabulary = PorterStemmer().stem, set()
    for name in ("dialogsum/dev.jsonl", "medquad/medquad_3k.jsonl", "billsum/us_train_100.jsonl"):
        vocabulary |= set(re.findall("[a-z0-9]+", (shared / "data" / name).read_text().lower()))
    assert len(vocabulary) > 20_000
    assert [word for word in vocabulary if porter.stem(word) != theirs(word)] == []


def test_the_stem_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random words without end do not fill the memory, and stems stay right."""
    monkeypatch.setattr(scoring, "MOST_STEMS", 10)
    stems = scoring._Stems()
    assert [stems[f"running{i}"] for i in range(30)] == [f"running{i}" for i in range(30)]
    assert len(stems) <= 10
