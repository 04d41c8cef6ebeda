"""One document's summary, token by token: `generate` runs in a thread beside the reader."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .output import OutputRules

THREAD = "precis-stream"  # how its threads' names begin
TokenQueue = queue.SimpleQueue[int | None]  # new tokens; None after the last


def stream_text(
    write: Callable[[TokenQueue, threading.Event], None], rules: OutputRules
) -> Iterator[str]:
    """A summary in pieces as it is written; joined, they are the whole summary.

    `write` runs in a thread: it puts each new token into the queue, and None at the end, and stops
    soon after the event is set. A piece is given out once nothing can change it: no part of a stop
    string, no white space at the end, no half character. Closing the iterator ends the generation.
    """
    tokens: TokenQueue = queue.SimpleQueue()
    cancelled = threading.Event()
    ids: list[int] = []
    sent = ""
    with ThreadPoolExecutor(1, THREAD) as pool:
        writing = pool.submit(write, tokens, cancelled)
        try:
            while (token := tokens.get()) is not None:
                ids.append(token)
                certain = rules.certain_text(ids)
                if len(certain) > len(sent):
                    yield certain[len(sent) :]
                    sent = certain
            writing.result()
            if rest := rules.summary(ids, 0, 0).text[len(sent) :]:
                yield rest
        finally:
            cancelled.set()


class TokenStreamer:
    """The streamer that transformers' `generate` hands its tokens to, the prompt first."""

    def __init__(self, tokens: TokenQueue) -> None:
        self.tokens, self.is_prompt = tokens, True

    def put(self, value: Any) -> None:
        """`value`: the prompt [1, tokens], then one new token [1] at a time."""
        if not self.is_prompt:
            self.tokens.put(int(value[0]))
        self.is_prompt = False

    def end(self) -> None:
        """`generate` is done; its caller ends the queue."""


def stop_when(cancelled: threading.Event) -> Any:
    """transformers' stopping criteria: stop at the next token once the event is set."""
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList(
        [lambda ids, *_, **__: ids.new_full((len(ids),), cancelled.is_set()).bool()]
    )
