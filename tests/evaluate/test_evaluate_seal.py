"""The seal covers what a score depends on, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import code_digest, digest
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.records import Scores
from tasks.evaluate.scores import Scoring
from tasks.evaluate.seal import (
    METRIC_FOLDER,
    METRIC_MODULES,
    METRIC_SETTINGS,
    UNSEALED,
    evaluation_digest,
    metric_digest,
    require_same,
)
from tasks.serving.summarizer import Generator, SummarizerSettings

SETTINGS = SummarizerSettings("Sum up: {document}\n", 512, "tail", 64, 8)
CHANGES: dict[str, Any] = {
    "template": "Sum up: {document}",
    "max_source_tokens": 511,
    "truncate": "head",
    "max_new_tokens": 65,
    "stop": ("\n",),
    "summarize": "map_reduce",
    "format": "chat",
    "system": "Be brief.",
    "chat_template": "{{ messages }}",
    "decoding": "continuous",  # in 16 bits it may write other summaries
    "reasoning": "strip",
    "inputs": ("question",),
    "optional": ("question",),
}


def scores(model: str, seal: str) -> Scores:
    return Scores(model, seal, "runs:/1/table.json", 1, {}, 1.0, 0.0, 1.0)


@pytest.mark.parametrize("name", CHANGES)
def test_each_setting_is_sealed(name: str) -> None:
    """Another prompt, truncation, length or stop rule is another evaluation."""
    changed = replace(SETTINGS, **{name: CHANGES[name]})
    assert evaluation_digest("rows", changed) != evaluation_digest("rows", SETTINGS)


def test_every_field_is_sealed_or_named_as_not() -> None:
    """A new setting cannot slip past the seal, nor past this test."""
    assert {field.name for field in fields(SummarizerSettings)} == {
        *CHANGES,
        *UNSEALED,
    }


SCORINGS = [
    Scoring(words=words, references=references)
    for words in ("auto", "latin", "unicode", "characters")
    for references in ("best", "mean", "first")
]


def test_what_counts_as_a_word_is_sealed() -> None:
    """Scores by other words, or by other uses of several references, are never compared."""
    seals = {evaluation_digest("rows", SETTINGS, scoring=scoring) for scoring in SCORINGS}
    assert len(seals) == len(SCORINGS)


def test_a_loss_is_sealed_with_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores with a loss have a seal of their own, and of another definition another."""
    plain, with_loss = (evaluation_digest("rows", SETTINGS, loss=loss) for loss in (False, True))
    assert plain != with_loss
    monkeypatch.setattr(Generator, "loss_definition", "bits a word")
    assert evaluation_digest("rows", SETTINGS) == plain
    assert evaluation_digest("rows", SETTINGS, loss=True) not in {plain, with_loss}


def test_settings_that_came_later_leave_older_seals_as_they_were() -> None:
    """At their defaults, chat's settings are not in the seal; what stood there from the start is."""
    settings = {"template": "Sum up: {document}\n", "max_source_tokens": 512, "truncate": "tail"}
    first = {
        "rows": "rows",
        "settings": settings | {"max_new_tokens": 64, "stop": []},
        "metric": METRIC_SETTINGS | {"words": "auto", "references": "best"},
        "metric_code": metric_digest(METRIC_FOLDER),
        "words_code": [code_digest.of_file(path) for path in METRIC_MODULES],
    }
    assert evaluation_digest("rows", SETTINGS) == digest.of_value(first)


def test_rows_are_sealed() -> None:
    assert evaluation_digest("rows", SETTINGS) != evaluation_digest("other rows", SETTINGS)


def test_batch_size_is_not_sealed() -> None:
    """float32 outputs do not depend on it (test_evaluate_predict.py), and cards differ."""
    assert evaluation_digest("rows", SETTINGS) == evaluation_digest(
        "rows", replace(SETTINGS, batch_size=1, kv_cache="offloaded", columns=("dialogue",))
    )


@pytest.mark.parametrize("name", ["rouge.py", "scoring.py", "porter.py"])
def test_metric_code_is_sealed(name: str, tmp_path: Path) -> None:
    """Other code in any of the metric's files is another evaluation; a comment is not."""
    copy = tmp_path / "metric"
    shutil.copytree(METRIC_FOLDER, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = evaluation_digest("rows", SETTINGS, metric=copy)
    assert before == evaluation_digest("rows", SETTINGS)
    with (copy / name).open("a") as code:
        code.write("# edited\n")
    assert evaluation_digest("rows", SETTINGS, metric=copy) == before
    with (copy / name).open("a") as code:
        code.write("ADDED = 1\n")
    assert evaluation_digest("rows", SETTINGS, metric=copy) != before


def test_same_seals_pass() -> None:
    assert require_same(scores("a", "seal"), scores("b", "seal")) == "seal"


def test_different_seals_do_not_meet() -> None:
    """The error names both digests and both models."""
    with pytest.raises(SealBroken, match=r"champion.*1111.*challenger.*2222"):
        require_same(scores("champion", "1111"), scores("challenger", "2222"))


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(EvaluationError, match="no scores"):
        require_same()
