"""What each step of a run will take: seconds and memory, from recipe, base, data and device.

Time is counted: operations of matrix products over this device's rate for them, plus bytes of passes
over activations over its rate for those, plus what starting a process and launching kernels cost. The
constants are in tasks.costs.calibration; docs/benchmarks.md says how far the forecast is off. Made once
the rows are known, before training; stored with the run (tasks.costs.step_costs), and shown beside what
was measured. No library is known that forecasts a QLoRA run before it starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Cost
from tasks.contracts.units import GIB
from tasks.costs import calibration, hardware_speed, preflight
from tasks.costs.batches import RowCounts, batches_of, gpu_batch_seconds
from tasks.costs.hardware_speed import Speed
from tasks.costs.model_sizes import ModelSizes
from tasks.costs.training_memory import KEPT_BYTES, LOGIT_BYTES
from tasks.models.config_checks import count
from tasks.models.prepared_base import BaseFolder, PreparedBase
from tasks.models.weight_files import weight_files
from tasks.processes import workspace
from tasks.serving.summarizer import AUTO_SLOTS, CONTINUOUS_MODEL_TYPES, RESERVED_BYTES

Forecast = dict[str, Cost]  # by step, as tasks.costs.step_costs.STEPS
WITHOUT_BF16 = {"T4", "V100"}


def forecast_steps(
    recipe: Recipe, base: PreparedBase, report: dict[str, Any], speed: Speed | None = None
) -> Forecast:
    """Each step's cost on this machine, or at `speed`; `report` is ingest's data report.

    Empty for a GPU whose rates are not known. Raises BaseModelError for a base that cannot be read.
    """
    speed = speed or hardware_speed.this_machine()
    if speed is None:
        return {}
    estimate = preflight.estimate(recipe, base, workspace.work_folder())
    most = base.settings.max_source_tokens
    train, evaluation = (RowCounts.of(report[split], most) for split in ("train", "evaluation"))
    input_bytes = sum(
        file["bytes"] for source in report["inputs"].values() for file in source["files"]
    )
    return RunForecast(recipe, base, estimate, speed, train, evaluation, input_bytes).steps()


@dataclass(frozen=True)
class RunForecast:
    """What decides a run's costs; `steps` gives them."""

    recipe: Recipe
    base: BaseFolder
    estimate: preflight.Estimate
    speed: Speed
    train_rows: RowCounts
    evaluation_rows: RowCounts
    input_bytes: int

    def steps(self) -> Forecast:
        """Seconds and GiB of every step, as tasks.costs.step_costs.STEPS names them."""
        model = ModelSizes.of(self.recipe, self.base)
        documents, row_bytes = self.documents_at_once()
        weights_bytes = self.estimate.weights_bytes
        evaluation_gib = (weights_bytes + documents * row_bytes) / GIB
        merge_gib = max(self._largest_file_bytes() / GIB * 2, weights_bytes / GIB)
        merge_seconds = 2 * 2 * model.parameters / calibration.MERGE_RATE[self.speed.device]
        tuned_seconds = self._evaluation_seconds(model, tuned=True)
        untuned_seconds = self._evaluation_seconds(model, tuned=False)
        evaluation_gib = self._with_libraries("evaluate", evaluation_gib)
        return {
            "ingest": self._ingest(),
            "train": Cost(self._training_seconds(model), self._training_gib()),
            "merge": Cost(
                self._start["merge"] + merge_seconds,
                self._with_libraries("merge", merge_gib),
            ),
            "drift": Cost(self._drift_seconds(model)),
            "challenger": Cost(tuned_seconds, evaluation_gib),
            "base": Cost(untuned_seconds, evaluation_gib),
            "champion": Cost(tuned_seconds, evaluation_gib),
            "gate": self._gate(),
        }

    def documents_at_once(self) -> tuple[int, float]:
        """How many summaries are written at the same time, and the bytes that each of them takes."""
        estimate, rows, evaluation = self.estimate, self.evaluation_rows, self.recipe.evaluation
        rows_per_device = math.ceil(rows.rows / evaluation.devices)
        if self.decoding() != "continuous":
            tokens = min(rows.longest_prompt + evaluation.max_new_tokens, estimate.row_tokens)
            token_bytes = estimate.row_bytes / estimate.row_tokens
            return min(estimate.batch_size, rows_per_device), token_bytes * tokens
        # Each has the memory it needs, and the longer half of the documents comes first.
        tokens = (7 * rows.median_prompt + rows.longest_prompt) // 8 + evaluation.max_new_tokens
        config = self.base.config
        layers = count(config, "num_hidden_layers")
        row_bytes = max(1, preflight.cached_token_bytes(config, 2) * layers * tokens)
        slots = evaluation.batch_size
        if evaluation.decoding == "auto":
            slots = max(AUTO_SLOTS, slots)
        free = estimate.memory_bytes - estimate.weights_bytes - RESERVED_BYTES
        return max(1, min(slots, free // row_bytes, rows_per_device)), float(row_bytes)

    def decoding(self) -> str:
        """How summaries are written: `continuous`, or by `generate` on the device that it names."""
        evaluation, config = self.recipe.evaluation, self.base.config
        slides = config.get("sliding_window") and config.get("use_sliding_window", True)
        supported = config.get("model_type") in CONTINUOUS_MODEL_TYPES and not slides
        supported = supported and evaluation.kv_cache == "device"
        supported = supported and self.recipe.base.rope != "dynamic"
        supported = supported and not WITHOUT_BF16 & set(self.speed.name.replace("-", " ").split())
        supported = supported and not self.estimate.is_spread()
        if self.speed.device == "cpu" or evaluation.decoding == "generate" or not supported:
            return self.speed.device
        return "continuous"

    @property
    def _start(self) -> dict[str, float]:
        return calibration.START_SECONDS[self.speed.device]

    def _with_libraries(self, step: str, gib: float) -> float:
        """On a CPU what is resident counts, on a GPU what is allocated."""
        return gib + (calibration.LIBRARIES_GIB[step] if self.speed.device == "cpu" else 0.0)

    def _largest_file_bytes(self) -> int:
        return max(file.stat().st_size for file in weight_files(self.base.path))

    def _ingest(self) -> Cost:
        train, evaluation = self.train_rows, self.evaluation_rows
        tokens = train.tokens + evaluation.tokens
        seconds = calibration.INGEST_START_SECONDS
        seconds += self.input_bytes / calibration.DATA_FILE_RATE
        seconds += tokens / calibration.INGEST_TOKENS_PER_SECOND
        kept_bytes = calibration.ROW_BYTES * (train.rows + evaluation.rows)
        kept_bytes += calibration.OVERLAP_TOKEN_BYTES * evaluation.tokens
        return Cost(seconds, calibration.FLOW_GIB + kept_bytes / GIB)

    def _training_gib(self) -> float:
        gib = self.estimate.training_bytes / GIB
        if self.speed.device == "cpu":
            gib += calibration.TOKEN_LIST_BYTES * self.train_rows.tokens / GIB
        return self._with_libraries("train", gib)

    def _training_seconds(self, model: ModelSizes) -> float:
        """Of the whole step, its process's start included."""
        batches, tokens = batches_of(self.recipe, self.train_rows)
        seconds = self._start["train"]
        if self.speed.device == "cuda":
            seconds += 2 * model.parameters / calibration.LOAD_RATE["cuda"]
            return seconds + calibration.COMPILE_SECONDS + batches * self._gpu_batch(tokens)
        return seconds + batches * self._cpu_batch(model, tokens)

    def _cpu_batch(self, model: ModelSizes, tokens: float) -> float:
        """Seconds of a micro-batch of so many tokens on a CPU."""
        rows = self.train_rows
        flops = tokens * (4 * model.linear + 6 * model.adapter)
        flops += tokens * 6 * model.hidden * model.layers * rows.tokens / max(rows.sequences, 1)
        learned = tokens * rows.completion_tokens / max(rows.tokens, 1)
        flops += learned * 4 * model.hidden * model.vocabulary
        moved = calibration.ACTIVATION_PASSES["cpu"] * tokens * _kept_bytes(model, "cpu")
        moved += 2 * learned * LOGIT_BYTES * model.vocabulary
        if self.recipe.training.gradient_checkpointing:
            flops, moved = 1.5 * flops, 1.5 * moved
        rate = calibration.SMALL_PRODUCTS_SHARE * self.speed.products
        launched = calibration.LAYER_STEP_SECONDS["cpu"] * model.layers
        return flops / rate + moved / self.speed.stream + launched

    def _gpu_batch(self, tokens: float) -> float:
        """Seconds of a micro-batch of so many tokens on a GPU."""
        shape, plan = self.estimate.shape, self.estimate.plan
        if shape is None or plan is None:
            model = ModelSizes.of(self.recipe, self.base)
            products = 4 * model.linear * tokens / self.speed.products
            launched = calibration.LAYER_STEP_SECONDS["cuda"] * model.layers
            return max(calibration.TRL_PATH_FACTOR * products * 1.4, launched)
        return gpu_batch_seconds(shape, plan, self.speed)

    def _forward_seconds(self, model: ModelSizes, tokens: float) -> float:
        """Of a forward pass without gradients."""
        device = self.speed.device
        share = calibration.SMALL_PRODUCTS_SHARE if device == "cpu" else 1
        rate = self.speed.products * share
        passes = calibration.FORWARD_SHARE * calibration.ACTIVATION_PASSES[device]
        moved = passes * (tokens * _kept_bytes(model, device))
        return tokens * 2 * model.linear / rate + moved / self.speed.stream

    def _drift_seconds(self, model: ModelSizes) -> float:
        rows, device = self.train_rows, self.speed.device
        merge, of_row = self.recipe.merge, rows.completion_tokens / max(rows.sequences, 1)
        count = min(
            rows.rows, max(merge.drift_rows, math.ceil(merge.drift_tokens / max(of_row, 1)))
        )
        tokens = count * rows.tokens / max(rows.sequences, 1)
        passes = count  # on a GPU rows are packed
        if device == "cuda":
            passes = min(count, math.ceil(tokens / self.recipe.training.max_length))
        launched = 2 * passes * model.layers * calibration.LAYER_STEP_SECONDS[device] / 2
        loaded = 2 * 2 * model.parameters / calibration.LOAD_RATE[device]
        forward = 2 * self._forward_seconds(model, tokens)
        return self._start["drift"] + loaded + forward + launched

    def _evaluation_seconds(self, model: ModelSizes, *, tuned: bool) -> float:
        """Of one model's evaluation: a tuned one ends by itself, an untuned one at the limit."""
        rows, evaluation = self.evaluation_rows, self.recipe.evaluation
        rows_per_device = math.ceil(rows.rows / evaluation.devices)
        written = evaluation.max_new_tokens
        if tuned:
            written = min(written, rows.long_summary + 1)
        batches = math.ceil(rows_per_device / self.documents_at_once()[0])
        prompts = self._forward_seconds(model, rows_per_device * rows.median_prompt)
        loaded = 2 * model.parameters / calibration.LOAD_RATE[self.speed.device]
        seconds = self._start["evaluate"] + loaded + prompts
        seconds += batches * written * self._token_seconds(model, written)
        if self.recipe.gate.metric == "loss":
            seconds += self._forward_seconds(model, rows.tokens / evaluation.devices)
        return seconds

    def _token_seconds(self, model: ModelSizes, written: int) -> float:
        """To write one token of each document of a batch, halfway through `written` tokens."""
        decoding, width = self.decoding(), 4 if self.speed.device == "cpu" else 2
        weights = width * model.parameters * calibration.WEIGHT_PASSES[decoding]
        context = self.evaluation_rows.median_prompt + written / 2
        cached = 2 * width * model.hidden * model.layers * context
        cached *= self.documents_at_once()[0] * calibration.CACHE_PASSES[decoding]
        launched = calibration.LAYER_TOKEN_SECONDS[decoding] * model.layers
        return (weights + cached) / self.speed.stream + launched

    def _gate(self) -> Cost:
        samples, rows = self.recipe.gate.bootstrap_samples, self.evaluation_rows.rows
        seconds = calibration.GATE_SECONDS + calibration.RESAMPLE_SECONDS * samples * rows
        gib = calibration.FLOW_GIB + calibration.GATE_GIB + calibration.SAMPLE_BYTES * samples / GIB
        return Cost(seconds, gib)


def _kept_bytes(model: ModelSizes, device: str) -> int:
    """What all layers keep of a token for the backward pass."""
    of_hidden, of_mlp = KEPT_BYTES[device]
    return model.layers * (of_hidden * model.hidden + of_mlp * model.mlp)
