"""Evaluation by several processes of this machine: each writes its share of one plan of batches.

What is written is put back in the rows' order, so nothing depends on how many processes there were.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from tasks.contracts.errors import EvaluationError
from tasks.processes import step_process

WAIT_SECONDS = 60.0  # for a process of an earlier try that is ending


def write(call: dict[str, Any], devices: int, rows: int, folder: Path) -> list[dict[str, Any]]:
    """What `predict.write` with the arguments `call` gives in each of `devices` processes.

    Progress is reported of all together. The first failure ends the others and is raised.
    """
    halt, sums = threading.Event(), _Sums(rows)
    with ThreadPoolExecutor(devices) as pool:
        started = [
            pool.submit(
                step_process.run,
                "tasks.evaluate.predict:write",
                call | {"part": part, "parts": devices, "together": True},
                folder / str(part),
                on_progress=sums.of(part),
                wait_seconds=WAIT_SECONDS,
                halt=halt.is_set,
            )
            for part in range(devices)
        ]
        ended, _ = wait(started, return_when=FIRST_EXCEPTION)
        failed = next((error for one in ended if (error := one.exception())), None)
        if failed:
            halt.set()
            raise failed
    return [one.result() for one in started]


def in_order(name: str, parts: list[dict[str, Any]], rows: int) -> list[Any]:
    """The parts' values of `outputs` or `losses` in the rows' order.

    Raises EvaluationError when a row has none.
    """
    found = {int(i): value for part in parts for i, value in part[name].items()}
    if missing := [i for i in range(rows) if i not in found]:
        raise EvaluationError(f"evaluation rows without {name}: {missing[:10]}; run again")
    return [found[i] for i in range(rows)]


def device(part: int, parts: int) -> str:
    """The device of one of several processes of this machine.

    Raises EvaluationError where there are GPUs, but not as many.
    """
    import torch

    there = torch.cuda.device_count()
    if not there:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
        return "cpu"
    if there < parts:
        raise EvaluationError(
            f"evaluation.devices is {parts}, and this machine has {there} GPUs to give; lower it"
        )
    torch.cuda.set_device(part)
    return f"cuda:{part}"


class _Sums:
    """One line of progress from several processes' lines."""

    def __init__(self, rows: int) -> None:
        self.rows, self.lock = rows, threading.Lock()
        self.last: dict[tuple[str | None, int], dict[str, Any]] = {}

    def of(self, part: int) -> step_process.Progress:
        def add(line: dict[str, Any]) -> None:
            what = line.get("what")
            with self.lock:
                self.last[what, part] = line
                lines = [line for (kind, _), line in self.last.items() if kind == what]
                said = {"done": sum(line["done"] for line in lines), "total": self.rows}
                if what:
                    step_process.report(**said, what=what)
                else:
                    rate = sum(line["tokens_per_second"] for line in lines)
                    step_process.report(**said, tokens_per_second=rate)

        return add
