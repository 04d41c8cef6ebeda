"""The metrics that a gate may decide by: which are measured, which direction is better, how to show them.

A *gain* is always an improvement, whatever the metric: records, bounds and rules use gains. People are
shown the *change* of the number itself (challenger minus opponent), next to both numbers: a ROUGE that
gained is higher, a loss that gained is lower.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.contracts.records import ROUGE_NAMES

if TYPE_CHECKING:
    from tasks.contracts.recipe import Gate

LOSS = "loss"
NLI, BERTSCORE = "nli", "bertscore"
MODEL_BASED = (NLI, BERTSCORE)  # computed by a model of their own, where the recipe names one
UNIT = "nats a token"  # of the loss; see Generator.losses in tasks/serving/summarizer/generate.py
DIRECTION = "lower is better"
NO_LOSS = (
    "gate.metric is loss, and {} was made by a version of precis that computes no such loss; set "
    "gate.metric to rougeL until a champion made by this version is promoted, or give the recipe "
    "another name"
)


def measured(deciding: str) -> tuple[str, ...]:
    """The metrics of a decision by `deciding`: every ROUGE, and the loss only where it decides."""
    return (LOSS, *ROUGE_NAMES) if deciding == LOSS else ROUGE_NAMES


def of_gate(gate: Gate) -> tuple[str, ...]:
    """The metrics of a decision under these settings: `measured`, and those whose model is named."""
    return (*measured(gate.metric), *(name for name in MODEL_BASED if model_of(gate, name)))


def model_of(gate: Gate, name: str) -> str | None:
    """The folder of a model-based metric's model, None where the recipe names none."""
    return gate.nli_model if name == NLI else gate.bertscore_model


def largest_drop(gate: Gate, name: str) -> float | None:
    """By how much a metric that does not decide may be measured worse; None: it is only shown."""
    drops = {NLI: gate.max_nli_drop, BERTSCORE: gate.max_bertscore_drop}
    return drops.get(name, gate.guardrail_margin)


def sign(name: str) -> int:
    """1 where more of the metric is better, -1 where less is."""
    return -1 if name == LOSS else 1


def change(name: str, gain: float, low: float, high: float) -> tuple[float, float, float]:
    """A gain with its bounds as the change of the metric itself, lower bound first."""
    if sign(name) > 0:
        return gain, low, high
    return 0.0 - gain, 0.0 - high, 0.0 - low  # and no -0.0


def direction(name: str) -> str:
    """A note after a change that a reader could misread; empty for ROUGE."""
    return f" ({DIRECTION})" if name == LOSS else ""


def other_tokenizer(challenger: str, champion: str, champion_is: str) -> str:
    """Why two models with these tokenizers (digests) cannot be compared by loss, and what to do."""
    return (
        f"gate.metric is {LOSS}, and the challenger's tokenizer ({challenger[:16]}...) is not "
        f"{champion_is}'s ({champion[:16]}...): losses a token are not comparable across tokenizers, whose "
        "tokens differ in length. Use a base.model with that tokenizer, set gate.metric to "
        "rougeL until a champion with the new one is promoted, or give the recipe another name"
    )
