"""Text for people: numbers short, and never wrong by their rounding."""

from __future__ import annotations

import pytest

from tasks.contracts import formatting


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (99.4, "99 s"),
        (99.6, "1 min 40 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 0 min"),
        (18_730, "5 h 12 min"),
    ],
)
def test_a_duration_has_two_or_three_digits(seconds: float | None, text: str) -> None:
    """And never 60 s or 60 min."""
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "gain", "score"),
    [
        (0.0123, "+0.012", "0.012"),
        (-0.0, "+0.000", "0.000"),
        (0.0005, "+0.001", "0.001"),
        (0.00012, "+0.0001", "0.0001"),
        (-0.00012, "-0.0001", "-0.0001"),
    ],
)
def test_a_small_number_is_not_shown_as_zero(value: float, gain: str, score: str) -> None:
    """Three decimals; where these would be zero, one digit of the number itself."""
    assert formatting.short_gain(value) == gain
    assert formatting.short_score(value) == score


def test_a_loss_is_shown_as_it_changed() -> None:
    """A gain in a loss is a fall."""
    assert formatting.changed("rougeL", -0.5) == "rougeL changed by -0.500"
    assert formatting.changed("loss", -0.03) == "loss rose by 0.030 nats a token"
    assert formatting.gained("loss", 0.12) == "loss fell by 0.120 nats a token"
    assert formatting.lower_bound_title("loss", 0.05) == "the fall's 95% lower bound"
