"""What each step of a run will take: seconds and memory, from recipe, base, data and device.

Time is counted: operations of matrix products over this device's rate for them, plus bytes of passes
over activations over its rate for those, plus what starting a process and launching kernels cost. The
constants were fitted to the runs in docs/benchmarks.md ("Foreseen and measured"), which says by how much
it misses others. Made once the rows are known, before training; stored with the run, and shown beside
what was measured.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import formatting
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Cost, StepCost
from tasks.costs import hardware_speed, memory_plan, preflight
from tasks.costs.hardware_speed import Speed
from tasks.costs.training_memory import KEPT_BYTES, LOGIT_BYTES
from tasks.models.compatibility import Layers
from tasks.models.prepared_base import BaseFolder, PreparedBase
from tasks.processes import resource_usage, workspace
from tasks.serving.summarizer import SLOTS

TAG = "precis.forecast"  # of the MLflow run: {step: [seconds, GiB]}
GIB = 2**30
STEPS = ("ingest", "train", "merge", "drift", "challenger", "base", "champion", "gate")
NAMES = {
    "drift": "drift check",
    "challenger": "evaluate challenger",
    "base": "evaluate base",
    "champion": "evaluate champion",
}
Forecast = dict[str, Cost]

# Seconds until a step's own process begins its work: imports, mostly (2 cores; docs/benchmarks.md).
STARTING = {"train": 11.5, "merge": 5.8, "drift": 3.2, "evaluate": 7.2}
COMPILING = 45.0  # a GPU's layers, before the first step; not measured apart
DISK = 500e6  # bytes a second of a data file
# Bytes a second of a model: merged (read and written, computed with and digested), and loaded. A GPU's
# are those of an H200's host (docs/benchmarks.md).
MERGED = {"cpu": 500e6, "cuda": 4.0e9}
LOADED = {"cpu": 500e6, "cuda": 2.0e9}
INGEST_SECONDS, INGEST_TOKENS = 0.3, 0.35e6  # to begin with, and tokens a second
# Passes over what a layer keeps for its backward pass, each reading or writing all of it once at
# memory's speed. A CPU's are many: PyTorch allocates every result anew, and touching new pages costs
# ten times what reading them does.
PASSES = {"cpu": 105.0, "cuda": 15.0}
FORWARD_SHARE = 0.25  # of these, without gradients
# Writing a token of each document under way, by the device, or continuously on a GPU: passes over all
# weights, and over all keys and values. The last column is fitted to one H200 (docs/benchmarks.md).
WEIGHT_PASSES = {"cpu": 1.0, "cuda": 1.0, "continuous": 1.9}
CACHE_PASSES = {"cpu": 18.0, "cuda": 3.0, "continuous": 1.45}
PLAIN_PATH = 1.65  # TRL's own path on a GPU takes so much longer (657 ms against 397)
SMALL_PRODUCTS = 0.6  # of a CPU's rate for 1,024 x 1,024, at the widths of small models
# Launching what a CPU must launch: seconds a decoder layer, forward and backward, whatever the tokens.
LAYER_STEP = {"cpu": 4.0e-3, "cuda": 5.8e-3}
# The same for writing one token of each document of a batch.
LAYER_TOKEN = {"cpu": 0.5e-3, "cuda": 1.5e-3, "continuous": 0.08e-3}
# tasks/serving/continuous.py's own, which imports torch: a test holds them equal.
CONTINUOUS = {"llama", "mistral", "qwen2", "qwen3", "phi", "phi3"}
WRITING_BYTES = 2 * GIB  # that it sets aside
WITHOUT_BF16 = {"T4", "V100"}
DRAW = 1.5e-8  # seconds a document and resample
GATE_SECONDS = 0.2  # reading and storing what was decided from
# Resident before the work, GiB: the interpreter with its libraries.
FLOW_GIB = 0.31
LIBRARIES_GIB = {"train": 0.80, "merge": 0.65, "evaluate": 0.63}
TOKEN_LIST_BYTES = 44  # an id and a label, as Python's numbers in lists


@dataclass(frozen=True)
class Rows:
    """One side of the data, in tokens as the model will see them."""

    rows: int
    sequences: int
    tokens: int
    completion_tokens: int
    median_prompt: int
    longest_prompt: int
    long_summary: int  # 95th percentile

    @classmethod
    def of(cls, report: dict[str, Any], limit: int) -> Rows:
        """From a split of ingest's report; no prompt is longer than `limit`."""
        prompts, found = report["prompt_tokens"], report["sequences"]
        return cls(
            report["rows"],
            found["count"],
            found["tokens"],
            found["completion_tokens"],
            min(prompts["p50"], limit),
            min(prompts["max"], limit),
            report["summary_tokens"]["p95"],
        )


@dataclass(frozen=True)
class Model:
    """Sizes that time depends on."""

    parameters: int
    linear: int
    adapter: int
    layers: int
    hidden: int
    mlp: int
    vocabulary: int

    @classmethod
    def of(cls, recipe: Recipe, base: BaseFolder) -> Model:
        """From a base's config and headers."""
        tensors, config = base.tensors, base.config
        layers, hidden = Layers.of(tensors), int(config.get("hidden_size", 0))
        return cls(
            sum(map(math.prod, tensors.values())),
            sum(map(math.prod, layers.inner.values())),
            sum(recipe.adapter.r * sum(shape) for shape in layers.adapted(recipe).values()),
            int(config.get("num_hidden_layers", 0)),
            hidden,
            int(config.get("intermediate_size") or 4 * hidden),
            int(config.get("vocab_size", 0)),
        )


def foresee(
    recipe: Recipe, base: PreparedBase, report: dict[str, Any], found: Speed | None = None
) -> Forecast:
    """Each step's cost on this machine, or at the speed `found`; `report` is ingest's data report.

    Empty for a GPU whose rates are not known.
    """
    found = found or hardware_speed.here()
    if found is None:
        return {}
    foreseen = preflight.estimate(recipe, base, workspace.work_folder())
    limit = base.settings.max_source_tokens
    train, evaluation = (Rows.of(report[side], limit) for side in ("train", "evaluation"))
    size = sum(file["bytes"] for one in report["inputs"].values() for file in one["files"])
    return _Run(recipe, base, foreseen, found, train, evaluation, size).forecast()


def as_tags(recipe: Recipe, base: PreparedBase, report: Path) -> dict[str, str]:
    """The forecast as a tag of the MLflow run; `report` is the path of ingest's data report.

    No tag when it cannot be made: a driver that does not say what GPU it has must not fail the run.
    """
    try:
        found = foresee(recipe, base, json.loads(report.read_text()))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        logging.getLogger(__name__).warning("time and memory are not estimated: %s", error)
        return {}
    values = {step: [cost.seconds, cost.memory_gib] for step, cost in found.items()}
    return {TAG: json.dumps(values)}


def compared(tags: dict[str, str], metrics: dict[str, float]) -> list[StepCost]:
    """Every step of a run as it was foreseen and as it was, from its tags and metrics."""
    values = json.loads(tags.get(TAG, "{}"))
    foreseen = {step: Cost(*values.get(step, ())) for step in STEPS}
    return [
        StepCost(NAMES.get(step, step), foreseen[step], resource_usage.of_metrics(step, metrics))
        for step in STEPS
        if step in values or resource_usage.of_metrics(step, metrics) != Cost()
    ]


def lines(forecast: Forecast, champion: bool) -> list[str]:
    """For a terminal: a line a step, and their sum. Without a `champion` none is evaluated."""
    steps = {step: cost for step, cost in forecast.items() if champion or step != "champion"}
    if not steps:
        return [
            "time: not foretold, as this GPU's rates are not known (tasks/costs/hardware_speed.py)"
        ]
    found = [
        f"{NAMES.get(step, step) + ':':22}{formatting.duration(cost.seconds):>12}"
        + (f"  {cost.memory_gib:.1f} GiB" if cost.memory_gib is not None else "")
        for step, cost in steps.items()
    ]
    whole = sum(cost.seconds or 0.0 for cost in steps.values())
    return [
        "what each step will take, about, with this machine as busy as it is now:",
        *(f"  {line}" for line in found),
        f"  {'all steps:':22}{formatting.duration(whole):>12}",
    ]


@dataclass(frozen=True)
class _Run:
    recipe: Recipe
    base: BaseFolder
    foreseen: preflight.Estimate
    speed: Speed
    train_rows: Rows
    evaluation_rows: Rows
    input_bytes: int

    def forecast(self) -> Forecast:
        model = Model.of(self.recipe, self.base)
        batch, row_bytes = self._under_way()
        judging = (self.foreseen.weights_bytes + batch * row_bytes) / GIB
        merging = max(self._largest_file() / GIB * 2, self.foreseen.weights_bytes / GIB)
        tuned = self._evaluation(model, tuned=True)
        return {
            "ingest": self._ingest(),
            "train": Cost(self._training(model), self._training_gib()),
            "merge": Cost(
                STARTING["merge"] + 2 * 2 * model.parameters / MERGED[self.speed.device],
                self._with_libraries("merge", merging),
            ),
            "drift": Cost(self._drift(model)),
            "challenger": Cost(tuned, self._with_libraries("evaluate", judging)),
            "base": Cost(
                self._evaluation(model, tuned=False), self._with_libraries("evaluate", judging)
            ),
            "champion": Cost(tuned, self._with_libraries("evaluate", judging)),
            "gate": self._gate(),
        }

    def _under_way(self) -> tuple[int, float]:
        """How many documents are written about at once, and the bytes that one of them takes."""
        known, rows, asked = self.foreseen, self.evaluation_rows, self.recipe.evaluation
        mine = math.ceil(rows.rows / asked.devices)
        if self._way() != "continuous":
            tokens = min(rows.longest_prompt + asked.max_new_tokens, known.row_tokens)
            return min(known.batch_size, mine), known.row_bytes / known.row_tokens * tokens
        # Each has what it needs, and the longer half is under way first.
        tokens = (7 * rows.median_prompt + rows.longest_prompt) // 8 + asked.max_new_tokens
        config = self.base.config
        cached = preflight.cached_token_bytes(config, 2) * int(config.get("num_hidden_layers", 0))
        row_bytes = max(1, cached * tokens)
        slots = max(SLOTS, asked.batch_size) if asked.decoding == "auto" else asked.batch_size
        fitting = (known.memory_bytes - known.weights_bytes - WRITING_BYTES) // row_bytes
        return max(1, min(slots, fitting, mine)), float(row_bytes)

    def _with_libraries(self, step: str, gib: float) -> float:
        """On a CPU what is resident counts, on a GPU what is allocated."""
        return gib + (LIBRARIES_GIB[step] if self.speed.device == "cpu" else 0.0)

    def _largest_file(self) -> int:
        return max(file.stat().st_size for file in self.base.path.glob("*.safetensors"))

    def _ingest(self) -> Cost:
        tokens = self.train_rows.tokens + self.evaluation_rows.tokens
        seconds = INGEST_SECONDS + self.input_bytes / DISK + tokens / INGEST_TOKENS
        rows = self.train_rows.rows + self.evaluation_rows.rows
        held = 300 * rows + 20 * self.evaluation_rows.tokens  # of names, and to search for overlap
        return Cost(seconds, FLOW_GIB + held / GIB)

    def _training_gib(self) -> float:
        known = self.foreseen.training_bytes / GIB
        lists = TOKEN_LIST_BYTES * self.train_rows.tokens / GIB
        return self._with_libraries("train", known + (lists if self.speed.device == "cpu" else 0))

    def _training(self, model: Model) -> float:
        """Seconds of the whole step, its process's start included."""
        recipe, rows = self.recipe.training, self.train_rows
        batches, tokens = batches_of(self.recipe, rows)
        if self.speed.device == "cuda":
            return STARTING["train"] + COMPILING + batches * self._gpu_batch(tokens)
        flops = tokens * (4 * model.linear + 6 * model.adapter)
        flops += tokens * 6 * model.hidden * model.layers * rows.tokens / max(rows.sequences, 1)
        learned = tokens * rows.completion_tokens / max(rows.tokens, 1)
        flops += learned * 4 * model.hidden * model.vocabulary
        of_hidden, of_mlp = KEPT_BYTES["cpu"]
        kept = model.layers * (of_hidden * model.hidden + of_mlp * model.mlp)
        passed = PASSES["cpu"] * tokens * kept
        passed += 2 * learned * LOGIT_BYTES * model.vocabulary
        if recipe.gradient_checkpointing:
            flops, passed = 1.5 * flops, 1.5 * passed
        batch = flops / (SMALL_PRODUCTS * self.speed.products) + passed / self.speed.stream
        return STARTING["train"] + batches * (batch + LAYER_STEP["cpu"] * model.layers)

    def _gpu_batch(self, tokens: float) -> float:
        """Seconds of a micro-batch of so many tokens on a GPU."""
        shape, plan = self.foreseen.shape, self.foreseen.plan
        if shape is None or plan is None:
            model = Model.of(self.recipe, self.base)
            plain = 4 * model.linear * tokens / self.speed.products
            return max(PLAIN_PATH * plain * 1.4, LAYER_STEP["cuda"] * model.layers)
        return gpu_batch_seconds(shape, plan, self.speed)

    def _forward(self, model: Model, tokens: float) -> float:
        """Seconds of a forward pass without gradients."""
        rate = self.speed.products * (SMALL_PRODUCTS if self.speed.device == "cpu" else 1)
        of_hidden, of_mlp = KEPT_BYTES[self.speed.device]
        kept = tokens * model.layers * (of_hidden * model.hidden + of_mlp * model.mlp)
        passed = FORWARD_SHARE * PASSES[self.speed.device] * kept
        return tokens * 2 * model.linear / rate + passed / self.speed.stream

    def _drift(self, model: Model) -> float:
        rows, count = self.train_rows, min(self.recipe.merge.drift_rows, self.train_rows.rows)
        tokens = count * rows.tokens / max(rows.sequences, 1)
        launched = 2 * count * model.layers * LAYER_STEP[self.speed.device] / 2
        loaded = 2 * 2 * model.parameters / LOADED[self.speed.device]
        return STARTING["drift"] + loaded + 2 * self._forward(model, tokens) + launched

    def _evaluation(self, model: Model, *, tuned: bool) -> float:
        """Seconds of one model's evaluation: a tuned one ends by itself, an untuned one at the limit."""
        rows, settings = self.evaluation_rows, self.recipe.evaluation
        mine = math.ceil(rows.rows / settings.devices)  # each device has its share
        at_once, _ = self._under_way()
        batches = math.ceil(mine / at_once)
        written = settings.max_new_tokens
        if tuned:
            written = min(written, rows.long_summary + 1)
        read = self._forward(model, mine * rows.median_prompt)
        width = 4 if self.speed.device == "cpu" else 2
        way, weights = self._way(), width * model.parameters
        cached = 2 * width * model.hidden * model.layers * (rows.median_prompt + written / 2)
        cached *= at_once * CACHE_PASSES[way]
        token = (weights * WEIGHT_PASSES[way] + cached) / self.speed.stream
        token += LAYER_TOKEN[way] * model.layers
        found = (
            STARTING["evaluate"]
            + 2 * model.parameters / LOADED[self.speed.device]
            + read
            + batches * written * token
        )
        if self.recipe.gate.metric == "loss":
            found += self._forward(model, rows.tokens / settings.devices)
        return found

    def _way(self) -> str:
        """How summaries are written: by the device's `generate`, or continuously on a GPU."""
        asked, config = self.recipe.evaluation, self.base.config
        slides = config.get("sliding_window") and config.get("use_sliding_window", True)
        served = config.get("model_type") in CONTINUOUS and not slides
        served = served and asked.kv_cache == "device" and self.recipe.base.rope != "dynamic"
        old = WITHOUT_BF16 & set(self.speed.name.replace("-", " ").split())
        served = served and not old and not self.foreseen.is_spread()
        if self.speed.device == "cpu" or asked.decoding == "generate" or not served:
            return self.speed.device
        return "continuous"

    def _gate(self) -> Cost:
        samples, rows = self.recipe.gate.bootstrap_samples, self.evaluation_rows.rows
        seconds = GATE_SECONDS + DRAW * samples * rows
        return Cost(seconds, FLOW_GIB + 0.06 + 32 * samples / GIB)


def gpu_batch_seconds(shape: memory_plan.Shape, plan: memory_plan.Plan, found: Speed) -> float:
    """Seconds of a micro-batch, forward and backward, on a GPU's fast path."""
    products = memory_plan.relative_time(shape, plan) * shape.linear / found.products
    again = plan.recomputed / shape.layers
    kept = shape.kept * shape.element_bytes * shape.layers * shape.tokens
    passed = PASSES["cuda"] * kept * (1 + again / 2) / found.stream
    return max(products + passed, LAYER_STEP["cuda"] * shape.layers * (1 + again))


def batches_of(recipe: Recipe, rows: Rows) -> tuple[int, float]:
    """Micro-batches of a whole training on each device, and tokens in each, padding included."""
    training = recipe.training
    size, devices = training.per_device_train_batch_size, training.devices * training.nodes
    sequences, length = rows.sequences, rows.tokens / max(rows.sequences, 1)
    if training.packing:
        # Best fit leaves little room: 99% full was measured at eight rows a sequence.
        sequences = math.ceil(rows.tokens / (0.98 * training.max_length))
        length = rows.tokens / sequences
    each = training.gradient_accumulation_steps
    steps = math.ceil(math.ceil(sequences / (size * devices)) / each * training.num_train_epochs)
    if training.max_steps > 0:
        steps = training.max_steps
    return steps * each, min(size, sequences) * length
