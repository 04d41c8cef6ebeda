"""What ROUGE does not see in an output: that it says nothing, repeats itself, says the same of every
document, or copies its document. Deterministic, offline, in every script.

Each is a fault only where the row's own reference does not have it too: there are data whose references
repeat, agree or copy.

Considered: DataStatsMetric of SummEval (Grusky's coverage and density, novel n-grams): English only,
through spaCy. n-gram blocking and distinct-n, as papers report them, are means, which hide a broken share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tasks.contracts.documents import plain_text
from tasks.contracts.records import Prediction
from tasks.contracts.words import holds_words, words

PHRASE = 3  # words of a phrase that is looked for again
LEAST_WORDS = 8  # a shorter text neither repeats nor copies: names and dates recur
REPEATED_SHARE = 0.5  # of an output's phrases that occur in it before
SAME_SHARE = 0.8  # of an output's phrases that outputs for other documents have too
SAME_OUTPUTS = 0.05  # of the other documents' outputs in which such a phrase stands, and at least
LEAST_SAME_OUTPUTS = 3
COPY_WORDS = 8  # a run of so many of the document's words, in its order, is a copy
COPIED_SHARE = 0.9  # of an output's words within such runs

Phrase = tuple[str, ...]


def empty(row: Prediction) -> bool:
    """Nothing but white space, punctuation, symbols or invisible characters."""
    return not holds_words(row.text)


def repeats(row: Prediction) -> bool:
    """At least half of the output's three-word phrases stood in it before, and no reference's do."""
    return _repeats(row.text) and not any(_repeats(text) for text in row.references)


def copies(row: Prediction) -> bool:
    """Nine tenths of the output are runs of eight or more words of the document, and of no reference."""
    document = words(plain_text(row.document))
    runs = {tuple(run) for run in _runs(document, COPY_WORDS)}
    return _copied(row.text, runs) and not any(_copied(text, runs) for text in row.references)


def same(rows: Sequence[Prediction], cluster: Sequence[int]) -> list[bool]:
    """Of each row, whether its output says what outputs for other documents say.

    Four fifths of its phrases stand in at least one in twenty outputs (and in three) for other
    clusters; and the references of this row are not alike in that way.
    """
    outputs = _alike([row.text for row in rows], cluster)
    references = _alike([row.references[0] for row in rows], cluster)
    return [output and not own for output, own in zip(outputs, references, strict=True)]


def _alike(texts: Sequence[str], cluster: Sequence[int]) -> list[bool]:
    phrases = [set(_phrases(words(text))) for text in texts]
    # Rows of one document may well say the same: a phrase counts once for each document.
    by_cluster: dict[int, set[Phrase]] = {}
    for number, own in zip(cluster, phrases, strict=True):
        by_cluster.setdefault(number, set()).update(own)
    documents = Counter(phrase for found in by_cluster.values() for phrase in found)
    others = len(by_cluster) - 1
    least = max(LEAST_SAME_OUTPUTS, SAME_OUTPUTS * others)
    return [
        bool(own) and sum(documents[p] - 1 >= least for p in own) >= SAME_SHARE * len(own)
        for own in phrases
    ]


def _repeats(text: str) -> bool:
    of_text = words(text)
    if len(of_text) < LEAST_WORDS:
        return False
    phrases = _phrases(of_text)
    return len(phrases) - len(set(phrases)) >= REPEATED_SHARE * len(phrases)


def _copied(text: str, runs: set[Phrase]) -> bool:
    of_text = words(text)
    if len(of_text) < LEAST_WORDS:
        return False
    inside, covered_to = 0, 0
    for start, run in enumerate(_runs(of_text, COPY_WORDS)):
        if tuple(run) in runs:
            end = start + COPY_WORDS
            inside += end - max(start, covered_to)
            covered_to = end
    return inside >= COPIED_SHARE * len(of_text)


def _phrases(of_text: Sequence[str]) -> list[Phrase]:
    """All phrases in order; a text of fewer words is one phrase."""
    return [tuple(run) for run in _runs(of_text, PHRASE)] or ([tuple(of_text)] if of_text else [])


def _runs(of_text: Sequence[str], length: int) -> list[Sequence[str]]:
    return [of_text[i : i + length] for i in range(len(of_text) - length + 1)]
