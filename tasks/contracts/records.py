"""What steps hand each other: small frozen records and references, never models or tensors.

A reference is a URI that another machine can read (MLflow's `runs:/RUN/path`), with a content digest.

Over 250 lines: every record stands here, so that what a step may hand over is read in one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import TypeAdapter

from tasks.contracts.documents import Document

Verdict = Literal["PROMOTE", "REJECT", "INCONCLUSIVE"]
# What a run ends in: a challenger that passed the gate may wait for people, or be refused by them.
Ending = Literal["PROMOTE", "REJECT", "INCONCLUSIVE", "WAITS_FOR_APPROVAL", "NOT_APPROVED"]
ROUGE_NAMES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
T = TypeVar("T")


@dataclass(frozen=True)
class DatasetRef:
    """Canonical rows of one run: `train.jsonl`, `evaluation.jsonl`, `rejects.jsonl`, `report.json`."""

    uri: str  # a folder
    digest: str  # of train and evaluation rows together
    train_digest: str
    evaluation_digest: str  # of the evaluation rows alone
    train_rows: int
    evaluation_rows: int
    rejected: int
    labels_digest: str = ""  # of `labels.json`, which is there if gate.slices needs it


@dataclass(frozen=True)
class Row:
    """One canonical row. `source` names the document: rows of one source are one cluster."""

    id: str
    source: str
    document: Document
    references: tuple[str, ...]


@dataclass(frozen=True)
class AdapterRef:
    """A trained adapter in PEFT's format."""

    uri: str
    digest: str
    base_digest: str
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AdapterParts:
    """What a version under `register.as: adapter` holds in place of merged weights."""

    adapter: AdapterRef
    base: str  # a folder: the base as the adapter was trained on it, dequantized


@dataclass(frozen=True)
class Drift:
    """Merged model against adapter on sample rows, over completion tokens."""

    kl: float  # mean KL(adapter || merged), nats a token
    top1_agreement: float  # share of tokens with the same most likely next token, or a near tie
    tokens: int
    near_ties: float = 0.0  # share of tokens with another one, which rounding to 16 bits explains


@dataclass(frozen=True)
class ModelRef:
    """A package: weights, tokenizer, `summarizer.json` and the code in `summarizer/`."""

    path: str
    digest: str
    base_digest: str
    adapter_digest: str | None = None  # None: the untuned base
    drift: Drift | None = None


@dataclass(frozen=True)
class Output:
    """What a model wrote for one document."""

    text: str
    finished: bool  # it ended with end-of-text or a stop string, not at max_new_tokens
    prompt_tokens: int
    output_tokens: int
    batch: int  # index of the batch it was generated in
    cut_tokens: int | None = None  # of the document, to make it fit; None: its package does not say
    parts: int = 1  # texts it was summarized from: 1, or more under prompt.summarize: map_reduce


@dataclass(frozen=True)
class Prediction:
    """One evaluation row with a model's output and its scores."""

    id: str
    source: str
    document: Document
    references: tuple[str, ...]
    text: str
    finished: bool
    prompt_tokens: int
    output_tokens: int
    batch: int
    # ROUGE F1 by name, the best over the references; where it decides, "loss" in nats a token; of the models
    # that the recipe names, "nli" and "bertscore"
    scores: dict[str, float]
    cut_tokens: int | None = None
    parts: int = 1


@dataclass(frozen=True)
class MetricModel:
    """What a model-based metric (NLI, BERTScore) was computed with."""

    digest: str  # of the model folder's files
    key: str  # of all that decides its numbers: folder, layer, code, libraries, kind of processor


@dataclass(frozen=True)
class Scores:
    """One model's results on one sealed evaluation set. `uri`: the predictions table.

    Its per-example scores are in the table; `table_digest` is of that file's bytes. What was measured
    stands there alone where means are empty: a record travels as a run's tag, which anyone reads.
    """

    model_digest: str
    evaluation_digest: str  # the seal: rows, prompt, generation settings, metrics
    uri: str
    rows: int
    means: dict[str, float]
    finished_share: float | None
    empty_share: float | None
    length_ratio: float | None  # output words over (first) reference words
    seconds: float = 0.0
    table_digest: str = ""
    tokenizer_digest: str = ""  # of the model's package; a loss is compared only under the same one
    metric_models: dict[str, MetricModel] = field(default_factory=dict)  # by metric


@dataclass(frozen=True)
class MetricResult:
    """One metric's means, and the challenger's gain with its one-sided bounds.

    A gain is an improvement: challenger minus opponent, of a loss opponent minus challenger.
    """

    base: float | None
    lead3: float | None
    champion: float | None
    challenger: float
    gain: float
    low: float
    high: float


@dataclass(frozen=True)
class Guardrail:
    """One condition besides the primary metric, as measured."""

    name: str
    value: float
    bound: str  # e.g. ">= -0.005"
    held: bool


@dataclass(frozen=True)
class SliceResult:
    """The gain in the deciding metric on a part of the evaluation rows. None: too few documents."""

    by: str  # of gate.slices
    value: str
    rows: int
    documents: int
    gain: float
    low: float | None  # one-sided bounds that hold for all slices at once
    high: float | None


@dataclass(frozen=True)
class Decision:
    """The gate's answer: a pure function of stored scores and the gate's settings."""

    verdict: Verdict
    reasons: tuple[str, ...]
    metrics: dict[str, MetricResult]
    guardrails: tuple[Guardrail, ...]
    opponent: Literal["champion", "base"]
    opponent_version: int | None
    challenger_digest: str
    opponent_digest: str
    evaluation_digest: str
    rows: int
    clusters: int
    looks: int  # challengers judged on these evaluation rows, this one included
    alpha: float  # the level used, after correction for looks
    smallest_gain: float | None = None  # this set could have shown (80% power)
    rows_needed: int | None = None  # to show the observed gain (80% power)
    notes: tuple[str, ...] = ()  # shown, do not affect the verdict: below lead-3, many looks
    schema_version: int = 1
    slices: tuple[SliceResult, ...] = ()


@dataclass(frozen=True)
class OpenPart:
    """What was measured on the open part of the evaluation set; it decides nothing.

    Bounds are at the gate's alpha, not corrected for looks.
    """

    metrics: dict[str, MetricResult]
    guardrails: tuple[Guardrail, ...]
    rows: int
    clusters: int
    alpha: float
    notes: tuple[str, ...] = ()
    slices: tuple[SliceResult, ...] = ()


@dataclass(frozen=True)
class Approval:
    """What people answered about a challenger that passed the gate (gate.approval)."""

    state: Literal["waits", "approved", "refused"]
    until: str = ""  # UTC, ISO 8601: when the question ends
    by: str = ""  # who answered, as typed
    comment: str = ""
    pairs: str = ""  # which side was preferred in the blind pairs, in a sentence

    def sentence(self) -> str:
        """Who answered what."""
        if self.state == "waits":
            return f"waits for approval until {self.until}"
        answer = f"{'approved' if self.state == 'approved' else 'not approved'} by {self.by}"
        return "; ".join(
            filter(None, (f"{answer}: {self.comment}" if self.comment else answer, self.pairs))
        )


@dataclass(frozen=True)
class ShownDecision(Decision):
    """What people are told of a decision; made by tasks/gate/shown.py alone.

    Everything that is printed, logged, tagged, sent or drawn takes this record, never a Decision. Under
    sealed feedback and without a promotion, `metrics`, `guardrails` and `slices` are empty, `reasons` have no
    numbers, and `rows` and `clusters` count the deciding part.
    """

    feedback: Literal["sealed", "open"] = "open"
    evaluation_rows: int = 0  # of the whole set: deciding, open, and left out of both
    open_part: OpenPart | None = None  # None under open feedback, or where there are no open rows
    approval: Approval | None = None  # None where nobody is asked

    @property
    def ending(self) -> Ending:
        """The verdict, unless people's approval is missing."""
        if self.approval is None or self.approval.state == "approved":
            return self.verdict
        return "WAITS_FOR_APPROVAL" if self.approval.state == "waits" else "NOT_APPROVED"

    @property
    def withheld(self) -> bool:
        """Whether the deciding numbers are not told."""
        return not self.metrics


@dataclass(frozen=True)
class VersionRef:
    """A registered model version."""

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class Cost:
    """What a step takes, estimated or measured. None: not known."""

    seconds: float | None = None
    memory_gib: float | None = None  # of its process: on the GPU if it uses one, else resident


@dataclass(frozen=True)
class StepCost:
    """A step as estimated and as measured; one whose stored result was taken was not measured."""

    step: str
    estimated: Cost
    measured: Cost


def to_json(record: Any) -> str:
    """A record as JSON; floats keep every digit."""
    return TypeAdapter(type(record)).dump_json(record).decode()


def from_json(kind: type[T], text: str | bytes) -> T:
    """The record back from `to_json`."""
    return TypeAdapter(kind).validate_json(text)


def read_rows(path: Path) -> list[Row]:
    """Canonical rows from a JSONL file."""
    adapter = TypeAdapter(Row)
    with path.open("rb") as lines:
        return [adapter.validate_json(line) for line in lines]
