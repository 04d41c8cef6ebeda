"""The drift check: what counts as drift, on how many tokens, and what its refusal tells."""

from __future__ import annotations

import re
from pathlib import Path

import numeric
import pytest
import tiny
import torch
from transformers import AutoTokenizer

from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Merge
from tasks.contracts.records import Drift
from tasks.merge import drift
from tasks.models.encoding import IGNORED


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


@pytest.mark.parametrize(
    ("kl", "agreement", "refused"),
    [
        (0.01, 0.98, False),
        (0.0101, 1.0, True),
        (0.0, 0.979, True),
        (float("nan"), 1.0, True),
    ],
)
def test_drift_is_refused_past_the_tolerance(kl: float, agreement: float, refused: bool) -> None:
    """At the tolerance it passes; what is no number never does."""
    measured = Drift(kl=kl, top1_agreement=agreement, tokens=100)
    if refused:
        with pytest.raises(MergeError, match="drifted from its adapter, over 100 tokens"):
            drift.refuse(measured, Merge())
    else:
        drift.refuse(measured, Merge())


@pytest.mark.parametrize("kl", [0.0101, 0.0999999, 3.14159, 12345.0])
@pytest.mark.parametrize("agreement", [0.97999, 0.0, 0.5, 1.0])
def test_the_settings_that_a_refusal_names_accept_that_drift(kl: float, agreement: float) -> None:
    """They are no looser than they must be, and only those that were passed are named."""
    measured = Drift(kl=kl, top1_agreement=agreement, tokens=100)
    with pytest.raises(MergeError) as caught:
        drift.refuse(measured, Merge())
    sets = dict(re.findall(r"--set merge\.(\w+)=(\S+)", str(caught.value)))
    assert set(sets) == {"max_kl"} | ({"min_top1_agreement"} if agreement < 0.98 else set())
    accepting = Merge.model_validate(sets)
    drift.refuse(measured, accepting)
    assert accepting.max_kl < 1.2 * kl
    assert accepting.min_top1_agreement >= min(0.98, agreement - 0.0011)


def test_a_drift_that_is_no_number_cannot_be_accepted() -> None:
    """No setting is named that would let it pass."""
    with pytest.raises(MergeError) as caught:
        drift.refuse(Drift(float("nan"), 0.5, 100), Merge())
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs", "counted"),
    [
        ([2.00, 1.95, 0.0], [1.95, 2.00, 0.0], (0, 1)),  # near ties, which rounding turns round
        ([2.00, 1.85, 0.0], [1.90, 1.92, 0.0], (0, 1)),
        ([2.00, 1.85, 0.0], [1.85, 2.00, 0.0], (1, 0)),  # by 0.3 nats
        ([2.00, 1.99, 0.0], [1.00, 1.99, 0.0], (1, 0)),  # a near tie of which one fell
        ([2.00, 1.00, 0.0], [1.10, 1.00, 0.0], (0, 0)),  # far, but in the same order
        ([9.00, 1.00, 0.0], [1.00, 9.00, 0.0], (1, 0)),
    ],
)
def test_near_ties_that_rounding_turns_round_are_not_counted(
    ours: list[float], theirs: list[float], counted: tuple[int, int]
) -> None:
    """Tokens ranked otherwise: beyond what rounding moves log-odds by, and within it."""
    p, q = torch.tensor([ours]), torch.tensor([theirs])
    allowed = torch.tensor([drift.ROUNDED_NATS])
    kl, *found = drift._differences(p, allowed, q)
    assert tuple(found) == counted
    assert kl == pytest.approx(
        float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
    )


@pytest.mark.parametrize("wanted", [1, 100, 4000])
def test_rows_are_taken_until_they_hold_enough_tokens(base: Path, wanted: int) -> None:
    """Spread over the file; all of them where they hold fewer, and never fewer than drift_rows."""
    recipe = tiny.make_recipe(base, merge={"drift_rows": 3, "drift_tokens": wanted})
    rows = tiny.make_rows(60)
    prepared = tiny.prepared(base, recipe)
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = drift._sample(rows, tokenizer, prepared, recipe.merge)
    tokens = sum(label != IGNORED for labels in examples.labels for label in labels)
    count = len(examples.input_ids)
    assert (count == 3) if wanted == 1 else (tokens >= wanted or count == len(rows))
    assert tokens < 3 * max(wanted, 60) or count == 3
    packs = drift._packs(examples, recipe)
    assert sum(len(pack.predicted_at) for pack in packs) == tokens


def test_rows_in_one_sequence_are_predicted_as_by_themselves(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU reads several rows in one pass; positions that begin again keep them apart."""
    recipe = tiny.make_recipe(base, merge={"drift_rows": 5, "drift_tokens": 1})
    tokenizer = AutoTokenizer.from_pretrained(base)
    prepared = tiny.prepared(base, recipe)
    examples = drift._sample(tiny.make_rows(20), tokenizer, prepared, recipe.merge)
    model = drift._merged_model(base)
    alone = torch.cat(list(drift._logits(model, drift._packs(examples, recipe))))
    monkeypatch.setattr(drift.loading, "device", lambda: "cuda:0")
    packs = drift._packs(examples, recipe)
    assert len(packs) < 5
    together = torch.cat(list(drift._logits(model, packs)))
    numeric.assert_close(together, alone, numeric.MODEL)
