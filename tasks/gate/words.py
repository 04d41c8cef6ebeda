"""Numbers and verdicts as people read them."""

from __future__ import annotations

from tasks.contracts.metrics import UNIT, change, direction, sign
from tasks.contracts.records import Decision, Verdict

DONE: dict[Verdict, str] = {
    "PROMOTE": "PROMOTED",
    "REJECT": "REJECTED",
    "INCONCLUSIVE": "INCONCLUSIVE",
}
SAME_MODEL = "same model"


def headline(decision: Decision, name: str, version: int | None, metric: str) -> str:
    """The verdict in a line: `PROMOTED dialogsum v3: rougeL +0.012 [0.004, 0.020]`.

    A loss is shown as it changed: `PROMOTED qa v3: loss -0.120 [-0.141, -0.098] (lower is better)`.
    `version`: the new version, None when there is none; `metric`: the gate's primary metric.
    """
    found = decision.metrics[metric]
    who = f"{DONE[decision.verdict]} {name}"
    moved, low, high = change(metric, found.gain, found.low, found.high)
    numbers = f"{metric} {signed(moved)} [{plain(low)}, {plain(high)}]{direction(metric)}"
    if decision.verdict == "PROMOTE":
        return f"{who} v{version}: {numbers}" if version is not None else f"{who}: {numbers}"
    said = SAME_MODEL if SAME_MODEL in decision.reasons else numbers
    stays = "no champion yet"
    if decision.opponent == "champion":
        stays = f"champion v{decision.opponent_version} stays"
    return f"{who}: {said}, {stays}"


def gain_of(metric: str) -> str:
    """What a gain in this metric is called: `gain`, or of a loss `fall`."""
    return "fall" if sign(metric) < 0 else "gain"


def lower_bound(metric: str, alpha: float, whose: str = "") -> str:
    """What a gain's lower bound is called: `95% lower bound`, or `the fall's 95% lower bound`."""
    owner = "the fall's " if sign(metric) < 0 else whose
    return f"{owner}{percent(alpha)} lower bound"


def size_of(metric: str, gain: float) -> str:
    """How large a gain is: `+0.012`, or of a loss `0.012 nats a token`."""
    return f"{plain(gain)} {UNIT}" if sign(metric) < 0 else signed(gain)


def gained(metric: str, gain: float) -> str:
    """A proven gain: `rougeL gained +0.530`, `loss fell by 0.120 nats a token`."""
    return changed(metric, gain) if sign(metric) < 0 else f"{metric} gained {signed(gain)}"


def changed(metric: str, gain: float) -> str:
    """A measured gain or its opposite: `rougeL changed by -0.535`, `loss rose by 0.030 nats a token`."""
    if sign(metric) > 0:
        return f"{metric} changed by {signed(gain)}"
    if gain == 0:
        return f"{metric} did not change"
    return f"{metric} {'fell' if gain > 0 else 'rose'} by {plain(abs(gain))} {UNIT}"


def signed(value: float) -> str:
    """A gain: three decimals, or one figure where three would show none of it."""
    return f"{value:+.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:+.3f}"


def plain(value: float) -> str:
    """A score or bound: three decimals, or one figure where three would show none of it."""
    return f"{value:.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:.3f}"


def percent(alpha: float) -> str:
    """The confidence of a one-sided bound at alpha: 0.05 is `95%`, 0.05/3 `98.3%`."""
    figures = 1 if alpha > 0.001 else 3
    return f"{round(100 * (1 - alpha), figures):g}%"


def many(count: int) -> str:
    """A number of rows, without false precision."""
    return f"about {count:,}" if count <= 10_000_000 else "over 10 million"
