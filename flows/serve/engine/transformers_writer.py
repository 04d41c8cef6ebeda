"""Token ids by transformers' `generate`, for the requests of many clients: what waits becomes a batch.

In float32 a text does not depend on its batch. vLLM, where it is installed, lets a request join a batch
that is running; here it waits for the batch before.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

from flows.serve.engine.judged_package import JudgedPackage


@dataclass(eq=False)
class Job:
    """One prompt that is being written, for one reader."""

    prompt: list[int]
    limit: int
    in_pieces: bool
    loop: asyncio.AbstractEventLoop
    tokens: list[int] = field(default_factory=list)
    arrived: asyncio.Queue[list[int] | Exception | None] = field(default_factory=asyncio.Queue)
    cancelled: bool = False
    ended: bool = False


class TransformersWriter:
    """A thread that writes for all readers, a batch at a time."""

    def __init__(self, package: JudgedPackage, generator: Any) -> None:
        """`generator`: the package's own, loaded."""
        self.package, self.generator = package, generator
        self.waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    async def write(
        self, prompt: list[int], limit: int, in_pieces: bool
    ) -> AsyncGenerator[list[int]]:
        """New token ids, in one piece or as they are written. Closing it ends them."""
        job = Job(prompt, limit, in_pieces, asyncio.get_running_loop())
        self.waiting.put(job)
        try:
            while (piece := await job.arrived.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            job.cancelled = True

    def _serve(self) -> None:
        while True:
            batch = [self.waiting.get()]
            while len(batch) < self.package.settings.batch_size and not self.waiting.empty():
                batch.append(self.waiting.get())
            if batch := [job for job in batch if not job.cancelled]:
                self._write(batch)

    def _write(self, batch: list[Job]) -> None:
        try:
            self._generate(batch)
        except Exception as error:  # noqa: BLE001 - told to the readers; the thread must go on
            left = [job for job in batch if not job.ended]
            begun = [job for job in left if len(batch) == 1 or (job.in_pieces and job.tokens)]
            _tell([(job, [error]) for job in begun])
            for job in left:  # one of them may be too long for the memory beside the others
                if job not in begun:
                    job.tokens.clear()
                    self._write([job])

    def _generate(self, batch: list[Job]) -> None:
        import torch
        from transformers import StoppingCriteriaList

        package, device = self.package, self.generator.device
        width, pad = max(len(job.prompt) for job in batch), package.tokenizer.pad_token_id
        rows = [[pad] * (width - len(job.prompt)) + job.prompt for job in batch]
        mask = [[0] * (width - len(job.prompt)) + [1] * len(job.prompt) for job in batch]
        end_ids = set(package.end_ids)

        def watch(ids: Any, *_: Any, **__: Any) -> Any:
            news: list[tuple[Job, list[Any]]] = []
            for job, token in zip(batch, ids[:, -1].tolist(), strict=True):
                if not job.ended:
                    job.tokens.append(token)
                    job.ended = token in end_ids or len(job.tokens) >= job.limit or job.cancelled
                    if job.ended or job.in_pieces:
                        news.append((job, _news(job, token)))
            _tell(news)
            return torch.tensor([job.ended for job in batch], device=ids.device)

        arguments = package.output.greedy_arguments(package.rules, package.settings, device)
        with torch.inference_mode():
            self.generator.model.generate(
                input_ids=torch.tensor(rows, device=device),
                attention_mask=torch.tensor(mask, device=device),
                stopping_criteria=StoppingCriteriaList([watch]),
                **arguments,
            )
        # Those that a stop string ended: transformers has filled them up with padding.
        left = [job for job in batch if not job.ended]
        for job in left:
            job.ended = True
        _tell([(job, [None] if job.in_pieces else [job.tokens, None]) for job in left])


def _news(job: Job, token: int) -> list[Any]:
    """What its reader is told of a new token."""
    piece = [token] if job.in_pieces else job.tokens
    return [piece, None] if job.ended else [piece]


def _tell(news: list[tuple[Job, list[Any]]]) -> None:
    """Hand pieces to their readers, whose event loop runs in another thread."""
    if news:
        news[0][0].loop.call_soon_threadsafe(_deliver, news)


def _deliver(news: list[tuple[Job, list[Any]]]) -> None:
    for job, pieces in news:
        for piece in pieces:
            job.arrived.put_nowait(piece)
