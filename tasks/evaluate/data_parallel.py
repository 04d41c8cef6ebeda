"""Evaluation by several processes on this machine, each of which generates a part of the batches.

Outputs are put back in the rows' order, so that they do not depend on the number of processes.
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
    """What `predict.write` with the arguments `call` returns in each of `devices` processes.

    Progress is reported for all of them together. The first failure ends the others and is raised.
    """
    halt, progress = threading.Event(), _SummedProgress(rows)
    with ThreadPoolExecutor(devices) as pool:
        started = [
            pool.submit(
                step_process.run,
                "tasks.evaluate.predict:write",
                call | {"part": part, "parts": devices, "together": True},
                folder / str(part),
                on_progress=progress.of(part),
                wait_seconds=WAIT_SECONDS,
                halt=halt.is_set,
            )
            for part in range(devices)
        ]
        ended, _ = wait(started, return_when=FIRST_EXCEPTION)
        failure = next((error for future in ended if (error := future.exception())), None)
        if failure:
            halt.set()
            raise failure
    return [future.result() for future in started]


def in_order(name: str, parts: list[dict[str, Any]], rows: int) -> list[Any]:
    """The parts' values of `outputs` or `losses` in the rows' order.

    Raises EvaluationError when a row has none.
    """
    by_row = {int(i): value for part in parts for i, value in part[name].items()}
    if missing := [i for i in range(rows) if i not in by_row]:
        raise EvaluationError(f"evaluation rows without {name}: {missing[:10]}; run again")
    return [by_row[i] for i in range(rows)]


def device(part: int, parts: int) -> str:
    """The device of one of several processes on this machine.

    Raises EvaluationError where there are GPUs, but not as many.
    """
    import torch

    gpus = torch.cuda.device_count()
    if not gpus:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // parts))
        return "cpu"
    if gpus < parts:
        raise EvaluationError(
            f"evaluation.devices is {parts}, and this machine has {gpus} GPUs for it; lower it"
        )
    torch.cuda.set_device(part)
    return f"cuda:{part}"


class _SummedProgress:
    """Progress of several processes as one line."""

    def __init__(self, rows: int) -> None:
        self.rows, self.lock = rows, threading.Lock()
        self.last: dict[tuple[str | None, int], dict[str, Any]] = {}

    def of(self, part: int) -> step_process.Progress:
        def add(line: dict[str, Any]) -> None:
            what = line.get("what")
            with self.lock:
                self.last[what, part] = line
                lines = [line for (kind, _), line in self.last.items() if kind == what]
                counts = {"done": sum(line["done"] for line in lines), "total": self.rows}
                if what:
                    step_process.report(**counts, what=what)
                else:
                    rate = sum(line["tokens_per_second"] for line in lines)
                    step_process.report(**counts, tokens_per_second=rate)

        return add
