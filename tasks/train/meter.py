"""Measure what training uses (seconds, tokens, memory), across resumes, and report progress."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.contracts.errors import TrainingError
from tasks.processes import resource_usage, step_process
from tasks.train import collectives


class Meter:
    """Seconds and tokens of a job, of all ranks together; `before`: what it had used when resumed."""

    def __init__(self, before: dict[str, float]) -> None:
        self._seconds = before.get("seconds", 0.0)
        self._before = [int(before.get(name, 0)) for name in ("tokens", "completion_tokens")]
        self._tokens: Any = 0
        self._completion_tokens: Any = 0
        self._started = time.monotonic()

    def start(self) -> None:
        """Start the clock: loading is over and training begins."""
        self._started = time.monotonic()

    def count(self, batch: dict[str, Any]) -> None:
        """Count a micro-batch's tokens, on its device, so that the CPU does not wait for a GPU."""
        mask, tokens = batch.get("attention_mask"), batch.get("real_tokens")
        if tokens is None:
            tokens = batch["input_ids"].numel() if mask is None else mask.sum()
        self._tokens = self._tokens + tokens
        self._completion_tokens = self._completion_tokens + (batch["labels"] != -100).sum()

    def read(self) -> dict[str, float]:
        """Seconds, tokens (padding excluded) and completion tokens so far. All ranks must call it."""
        counts = collectives.sums([int(self._tokens), int(self._completion_tokens)])
        tokens, completion = (a + b for a, b in zip(self._before, counts, strict=True))
        return {
            "seconds": self._seconds + time.monotonic() - self._started,
            "tokens": tokens,
            "completion_tokens": completion,
        }


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops at a loss that is not finite, and saves when training is cancelled."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.cancelled = False
        self._cancel_requested = False
        self._last = meter.read()

    def cancel(self, *_: Any) -> None:
        """Stop after the current step, with a checkpoint. A signal handler."""
        self._cancel_requested = True

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the clock."""
        self.meter.start()
        self._last = self.meter.read()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save before a cancelled training ends; log before every save."""
        # All ranks end after the same step. A cancel that comes during this call acts after the next one.
        self.cancelled = collectives.any_rank(self._cancel_requested)
        if self.cancelled:
            control.should_save = control.should_training_stop = True
        if control.should_save:
            # The losses since the last log line are not in a checkpoint; and a loss that is not
            # finite must be seen before it is saved.
            control.should_log = True

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **_: Any,
    ) -> None:
        """Report progress; raise TrainingError where the loss is not a finite number."""
        if "loss" not in logs:
            return
        _require_finite(logs, args, state)
        now = self.meter.read()
        tokens, seconds = (now[name] - self._last[name] for name in ("tokens", "seconds"))
        self._last = now
        step_process.report(
            kind="train",
            step=state.global_step,
            total_steps=state.max_steps,
            epoch=state.epoch,
            loss=logs["loss"],
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            tokens_per_second=tokens / seconds if seconds else 0.0,
            memory_gib=resource_usage.peak_gib(),
        )


def _require_finite(logs: dict[str, Any], args: TrainingArguments, state: TrainerState) -> None:
    # fp16's gradient scaler skips steps whose gradient is not finite, until its scale fits
    watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
    for name in watched:
        if not math.isfinite(logs.get(name, 0.0)):
            raise TrainingError(
                f"{name} is {logs[name]} at step {state.global_step} of {state.max_steps}: lower "
                f"training.learning_rate (now {args.learning_rate:g}) or training.max_grad_norm "
                f"(now {args.max_grad_norm:g}), and look for broken rows"
            )
