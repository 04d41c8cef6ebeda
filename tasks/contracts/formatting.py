"""How numbers, metrics and verdicts are shown to people: in reasons, in the report, on a terminal.

Two precisions, on purpose: a headline or a reason has three decimals (`short_score`, `short_gain`), a
table has four (`score`, `gain`).

Over 250 lines: all that is shown in the same words everywhere is in one place.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

from tasks.contracts.metrics import DIRECTION, LOSS, UNIT, change, direction, sign
from tasks.contracts.records import Ending, MetricResult, OpenPart, ShownDecision

VERDICT_TITLES: dict[Ending, str] = {
    "PROMOTE": "PROMOTED",
    "REJECT": "REJECTED",
    "INCONCLUSIVE": "INCONCLUSIVE",
    "WAITS_FOR_APPROVAL": "WAITS FOR APPROVAL",
    "NOT_APPROVED": "NOT APPROVED",
}
SAME_MODEL = "same model"
GUARDRAIL_TITLES = {
    "unfinished_rise": "rise in outputs cut off at the token limit (share of rows)",
    "empty_share": "outputs without a letter or digit (share of rows)",
    "same_share": "outputs that are alike across documents (share of rows)",
    "repeating_rise": "rise in outputs that repeat themselves (share of rows)",
    "copied_rise": "rise in outputs that copy their document (share of rows)",
    "invented_rise": "rise in outputs with invented numbers or names (share of rows)",
    "slices_lost": "slices that are lost by more than noise",
    "length_ratio": "output words over reference words",
}
METRIC_TITLES = {"nli": "NLI: supported by the document (SummaC-ZS)", "bertscore": "BERTScore F1"}
MAX_VALUE_CHARACTERS = 300
MAX_NAMES = 10  # listed in a message


def listed(names: Sequence[str], most: int) -> str:
    """At most so many names, as a sentence has them: `a, b and 3 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def headline(decision: ShownDecision, name: str, version: int | None, metric: str) -> str:
    """The verdict in one line: `PROMOTED dialogsum v3: rougeL +0.012 [0.004, 0.020]`.

    A loss is shown as it changed: `PROMOTED qa v3: loss -0.120 [-0.141, -0.098] (lower is better)`. A refusal
    under sealed feedback has the kind of its reason in place of numbers.
    `version`: the new version, None when there is none; `metric`: the gate's primary metric.
    """
    model = f"{VERDICT_TITLES[decision.ending]} {name}"
    stays = "no champion yet"
    if decision.opponent == "champion":
        stays = f"champion v{decision.opponent_version} stays"
    if decision.approval and decision.ending != "PROMOTE":
        waits = decision.approval.state == "waits" and decision.opponent == "champion"
        until = " until then" if waits else ""
        return f"{model}: passed the gate, {decision.approval.sentence()}; {stays}{until}"
    if decision.withheld:
        return f"{model}: {decision.reasons[0]}, {stays}"
    moved, low, high = change_of(decision.metrics[metric], metric)
    numbers = (
        f"{metric} {short_gain(moved)} [{short_score(low)}, {short_score(high)}]{direction(metric)}"
    )
    if decision.verdict == "PROMOTE":
        model += f" v{version}" if version is not None else ""
        approved = f", approved by {decision.approval.by}" if decision.approval else ""
        return f"{model}: {numbers}{approved}"
    why = SAME_MODEL if SAME_MODEL in decision.reasons else numbers
    return f"{model}: {why}, {stays}"


def part_titles(decision: ShownDecision) -> tuple[str, str]:
    """What the deciding and the open rows are called over their numbers."""
    if decision.feedback == "open":
        return "", ""
    of = f"of {decision.evaluation_rows} rows"
    open_rows = decision.open_part.rows if decision.open_part else 0
    return (
        f"deciding part, {decision.rows} {of}",
        f"open part, {open_rows} {of}; the verdict is of the other {decision.rows}",
    )


def open_part_notes(part: OpenPart) -> list[str]:
    """What a reader of the open part should know: guardrails broken there, and its notes."""
    broken = [
        f"{guardrail_title(one.name)} {score(one.value)}, outside its bound {one.bound}"
        for one in part.guardrails
        if not one.held
    ]
    return [*broken, *part.notes]


def about_feedback(decision: ShownDecision) -> str:
    """What is not shown, or what showing all costs; empty where there is nothing to say."""
    if decision.feedback == "open":
        return (
            "feedback is open: every row's scores were shown, so a person who chooses by them learns "
            "from the rows that decide, and the count of looks does not cover that"
        )
    if decision.withheld:
        return (
            f"sealed: the verdict is of {decision.rows} deciding rows, whose numbers are told only of a "
            "promotion"
        )
    return ""


# Numbers


def short_gain(value: float) -> str:
    """A gain: three decimals, or one digit where three decimals would show zero."""
    return f"{value:+.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:+.3f}"


def short_score(value: float) -> str:
    """A score or bound: three decimals, or one digit where three decimals would show zero."""
    return f"{value:.1g}" if 0 < abs(value) < 0.0005 else f"{value + 0.0:.3f}"


def score(value: float | None) -> str:
    """A score in a table, four decimals; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def gain(value: float) -> str:
    """A difference in a table: four decimals with the sign."""
    return f"{value + 0.0:+.4f}"


def confidence(alpha: float) -> str:
    """The confidence of a one-sided bound at alpha: 0.05 is `95%`, 0.05/3 `98.3%`."""
    digits = 1 if alpha > 0.001 else 3
    return f"{round(100 * (1 - alpha), digits):g}%"


def row_count(count: int) -> str:
    """A computed number of rows, which is known only roughly."""
    return f"about {count:,}" if count <= 10_000_000 else "over 10 million"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `3 min 20 s`, `5 h 12 min`; a dash where it is not known."""
    if seconds is None:
        return "-"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def gib(memory_gib: float | None) -> str:
    """Memory in GiB; a dash where it is not known."""
    return "-" if memory_gib is None else f"{memory_gib:.2f} GiB"


# Gains, which of a loss are falls


def change_of(result: MetricResult, name: str) -> tuple[float, float, float]:
    """A metric's gain and its bounds as the change of the metric itself, lower bound first."""
    return change(name, result.gain, result.low, result.high)


def gain_word(metric: str) -> str:
    """What a gain in this metric is called: `gain`, or of a loss `fall`."""
    return "fall" if sign(metric) < 0 else "gain"


def lower_bound_title(metric: str, alpha: float, whose: str = "") -> str:
    """What a gain's lower bound is called: `95% lower bound`, or `the fall's 95% lower bound`."""
    owner = "the fall's " if sign(metric) < 0 else whose
    return f"{owner}{confidence(alpha)} lower bound"


def gain_size(metric: str, value: float) -> str:
    """How large a gain is: `+0.012`, or of a loss `0.012 nats a token`."""
    return f"{short_score(value)} {UNIT}" if sign(metric) < 0 else short_gain(value)


def gained(metric: str, value: float) -> str:
    """A proven gain: `rougeL gained +0.530`, `loss fell by 0.120 nats a token`."""
    return changed(metric, value) if sign(metric) < 0 else f"{metric} gained {short_gain(value)}"


def changed(metric: str, value: float) -> str:
    """A measured gain or its opposite: `rougeL changed by -0.535`, `loss rose by 0.030 nats a token`."""
    if sign(metric) > 0:
        return f"{metric} changed by {short_gain(value)}"
    if value == 0:
        return f"{metric} did not change"
    return f"{metric} {'fell' if value > 0 else 'rose'} by {short_score(abs(value))} {UNIT}"


# Titles in the report, by the metric that decides


def guardrail_title(name: str) -> str:
    """A guardrail's name in full; those of other metrics are their measured gains."""
    return GUARDRAIL_TITLES.get(name, f"{name}: gain measured")


def metric_title(name: str) -> str:
    """A metric's name in the table of scores."""
    return f"{name}, {UNIT} ({DIRECTION})" if name == LOSS else METRIC_TITLES.get(name, name)


def scores_title(deciding: str) -> str:
    """What the table of scores holds."""
    return "loss and ROUGE F1" if deciding == LOSS else "ROUGE F1"


def difference_title(deciding: str) -> str:
    """What that table calls a difference: of a loss a gain is a fall, so its change is shown."""
    return "change" if deciding == LOSS else "gain"


def gain_axis_title(deciding: str) -> str:
    """What a plot of gains shows."""
    return f"fall in {LOSS}, {UNIT}" if deciding == LOSS else f"gain in {deciding}"


# Facts of the data and cost reports


def label(key: object) -> str:
    """A key with spaces: `peak_memory_gib` is `peak memory gib`."""
    return str(key).replace("_", " ")


def fact(value: object) -> str:
    """A fact's value: numbers short, long text shortened."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return shortened(str(value), MAX_VALUE_CHARACTERS)


def shortened(text: str, max_characters: int) -> str:
    """Text of at most so many characters, and a mark where the rest was left out."""
    return text if len(text) <= max_characters else f"{text[:max_characters].rstrip()} …"


def nearest(name: str, names: Iterable[str]) -> str:
    """What follows "there is no NAME": the nearest of the names that exist, and all of them."""
    known = sorted(names)
    similar = difflib.get_close_matches(name, known, n=1)
    listed = ", ".join(known[:MAX_NAMES]) + (", ..." if len(known) > MAX_NAMES else "")
    return f"{f'; nearest: {similar[0]!r}' if similar else ''}; it has: {listed or 'none'}"
