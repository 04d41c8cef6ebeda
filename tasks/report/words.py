"""Numbers and names as a reader of the report meets them."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from tasks.contracts.metrics import DIRECTION, LOSS, UNIT, change
from tasks.contracts.records import MetricResult
from tasks.processes import resource_usage

GUARDRAILS = {
    "unfinished_rise": "rise in outputs cut off at the token limit (share of rows)",
    "empty_share": "empty outputs (share of rows)",
    "length_ratio": "output words over reference words",
}
DONE = {"PROMOTE": "Promoted", "REJECT": "Rejected", "INCONCLUSIVE": "Inconclusive"}


def guardrail(name: str, deciding: str = "") -> str:
    """A guardrail's name in full.

    Those of other ROUGE types are lower bounds of their gain, or the gain measured where the loss
    is `deciding`.
    """
    found = "gain measured" if deciding == LOSS else "lower bound of the gain"
    return GUARDRAILS.get(name, f"{name}: {found}")


def metric(name: str) -> str:
    """A metric's name in the table of scores."""
    return f"{name}, {UNIT} ({DIRECTION})" if name == LOSS else name


def kind(deciding: str) -> str:
    """What that table holds."""
    return "loss and ROUGE F1" if deciding == LOSS else "ROUGE F1"


def moved(deciding: str) -> str:
    """What that table calls a difference: of a loss a gain is a fall, so its change is shown."""
    return "change" if deciding == LOSS else "gain"


def moves(found: MetricResult, name: str) -> tuple[float, float, float]:
    """A metric's difference and its bounds as that table shows them."""
    return change(name, found.gain, found.low, found.high)


def axis(deciding: str) -> str:
    """What a plot of gains is of."""
    return f"fall in {LOSS}, {UNIT}" if deciding == LOSS else f"gain in {deciding}"


def score(value: float | None) -> str:
    """A score; a dash where there is none."""
    return "-" if value is None else f"{value:.4f}"


def gain(value: float) -> str:
    """A difference, with its sign."""
    return f"{value + 0.0:+.4f}"


def label(key: object) -> str:
    """A key as words: `peak_memory_gib` is `peak memory gib`."""
    return str(key).replace("_", " ")


def value(found: object) -> str:
    """A fact of the data or cost report: numbers short, long text cut."""
    if found is None:
        return "-"
    if isinstance(found, bool):
        return "yes" if found else "no"
    if isinstance(found, int):
        return f"{found:,}"
    if isinstance(found, float):
        return f"{found:,.0f}" if abs(found) >= 10_000 else f"{found:.4g}"
    return cut(str(found), 300)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them; a dash for what was not measured."""
    return resource_usage.duration(seconds)


def gib(found: float | None) -> str:
    """Memory in GiB; a dash where it is not known."""
    return "-" if found is None else f"{found:.2f} GiB"


def cut(text: str, most: int) -> str:
    """Text of at most `most` characters, and a mark where it was cut."""
    return text if len(text) <= most else f"{text[:most].rstrip()} …"


def is_link(text: str) -> bool:
    """Whether this is an address a browser may open: never `javascript:` and the like."""
    return urlsplit(text).scheme in {"http", "https"}


def levels(found: object) -> int:
    """How deep groups stand within groups: 0 for a plain fact."""
    if isinstance(found, Mapping):
        return 1 + max(map(levels, found.values()), default=0)
    if isinstance(found, (list, tuple)):
        return max(map(levels, found), default=0)
    return 0
