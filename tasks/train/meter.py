"""What training uses (time, tokens, memory), kept across resumes; and progress lines of it."""

from __future__ import annotations

import math
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from tasks.contracts.errors import TrainingError
from tasks.processes import resource_usage, step_process
from tasks.train import collectives


class Meter:
    """Seconds and tokens of a job, all its devices together; `before`: what it used before."""

    def __init__(self, before: dict[str, float]) -> None:
        self._seconds = before.get("seconds", 0.0)
        self._before = [int(before.get(name, 0)) for name in ("tokens", "completion_tokens")]
        self._tokens: Any = 0
        self._completion_tokens: Any = 0
        self._started = time.monotonic()

    def start(self) -> None:
        """Training begins now; what came before was loading."""
        self._started = time.monotonic()

    def count(self, batch: dict[str, Any]) -> None:
        """Count a micro-batch's tokens, on its device: nothing waits for a GPU here."""
        mask, tokens = batch.get("attention_mask"), batch.get("real_tokens")
        if tokens is None:
            tokens = batch["input_ids"].numel() if mask is None else mask.sum()
        self._tokens = self._tokens + tokens
        self._completion_tokens = self._completion_tokens + (batch["labels"] != -100).sum()

    def read(self) -> dict[str, float]:
        """Seconds, tokens (padding excluded) and completion tokens so far; the whole team asks."""
        used = collectives.totals([int(self._tokens), int(self._completion_tokens)])
        tokens, completion = (a + b for a, b in zip(self._before, used, strict=True))
        return {
            "seconds": self._seconds + time.monotonic() - self._started,
            "tokens": tokens,
            "completion_tokens": completion,
        }


class Watch(TrainerCallback):  # type: ignore[misc]
    """Reports progress, stops at a loss that is no number, and ends the run cleanly when it is cancelled."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.cancelled = False
        self._asked = False
        self._last = meter.read()

    def cancel(self, *_: Any) -> None:
        """Stop after the step under way, with a checkpoint. A signal handler."""
        self._asked = True

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Set the clock."""
        self.meter.start()
        self._last = self.meter.read()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save before a cancelled run ends; log whatever is saved."""
        # All end after the same step. What is asked while they agree on it is heard after the next.
        self.cancelled = collectives.any_of(self._asked)
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
        """Report; raise TrainingError where the loss is not a finite number."""
        if "loss" not in logs:
            return
        _refuse_broken(logs, args, state)
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


def _refuse_broken(logs: dict[str, Any], args: TrainingArguments, state: TrainerState) -> None:
    # fp16's scaler tries scales until the gradient is finite, and skips those steps
    watched = ("loss",) if args.fp16 else ("loss", "grad_norm")
    for name in watched:
        if not math.isfinite(logs.get(name, 0.0)):
            raise TrainingError(
                f"{name} is {logs[name]} at step {state.global_step} of {state.max_steps}: lower "
                f"training.learning_rate (now {args.learning_rate:g}) or training.max_grad_norm "
                f"(now {args.max_grad_norm:g}), and look for broken rows"
            )
