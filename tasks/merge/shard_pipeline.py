"""Shards in, merged shards out: reading, folding, writing and hashing at once, a matrix at a time.

A merge moves as many bytes as a copy. So each shard has a thread that writes what workers have read
and folded, in the file's order, while others hash what is written and see it to the disk. In memory
are a few matrices, never a shard.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import torch

from tasks.contracts import digest
from tasks.contracts.errors import MergeError
from tasks.merge.layer import Layers
from tasks.merge.plan import Plan
from tasks.merge.shard_file import header, read_into, tensors_of
from tasks.models.safetensors_headers import StoredTensor

WEIGHT = ".weight"
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
PIECE_BYTES = 32 * 2**20  # of what goes through unchanged
SETTLED_BYTES = 256 * 2**20  # written between two waits for the disk
# Of a CPU's: eight fold 7B in a disk's time. Of a GPU's: they only carry. And of shards at once, whose
# hashes are what cannot be shared out.
MOST_WORKERS, GPU_WORKERS, MOST_AT_ONCE = 8, 4, 4


def merge_shards(plan: Plan, folder: Path, done: Callable[[int], None]) -> dict[str, str]:
    """Write every merged shard of `plan` into `folder`, on the disk for good; their digests by name.

    `done` hears how many shards are. Raises OSError when the disk is full, MergeError.
    """
    with _one_thread_each() as wide:
        line = Line.of(plan, wide)
        work = [(shard, line.pieces(shard)) for shard in plan.shards]
        at_once, ahead = _spread(line.workers, work)
        found: dict[str, str] = {}
        with ThreadPoolExecutor(line.workers) as pool, ThreadPoolExecutor(at_once) as writers:
            writing = {
                writers.submit(line.write, shard, pieces, folder / shard.name, pool, ahead): shard
                for shard, pieces in work
            }
            try:
                for future in as_completed(writing):
                    found[writing[future].name] = future.result()
                    done(len(found))
            except BaseException:
                line.stopped.set()
                writers.shutdown(cancel_futures=True)
                raise
    return found


def _spread(workers: int, work: list[tuple[Path, list[Piece]]]) -> tuple[int, int]:
    """How many shards at once, and how many pieces ahead in each: all rooms in one shard's size."""
    sizes = [piece.size_bytes for _, pieces in work for piece in pieces]
    largest = max(sum(piece.size_bytes for piece in pieces) for _, pieces in work)
    rooms = largest // max(1, *sizes, 1)
    at_once = max(1, min(len(work), MOST_AT_ONCE, workers // 2, rooms // 2))
    return at_once, max(1, min(-(-workers // at_once) + 1, rooms // at_once - 1))


@contextmanager
def _one_thread_each() -> Iterator[Executor]:
    """Torch on one thread in every thread started inside, but in the executor: there as before.

    Many matrices side by side, each on one core, wait for nobody.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as wide:
        wide.submit(
            torch.get_num_threads
        ).result()  # its thread is there before the rest is narrowed
        torch.set_num_threads(1)
        try:
            yield wide
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Piece:
    """Bytes of a merged shard that stand side by side in the base's too."""

    begin: int  # in the base's file
    size_bytes: int
    tensor: StoredTensor | None = None  # the whole of one that the merge changes


@dataclass(frozen=True)
class Line:
    """What the shards of a merge have in common."""

    layers: Layers
    workers: int
    stopped: Event

    @classmethod
    def of(cls, plan: Plan, wide: Executor) -> Line:
        """A line with the workers that the device asks for: a CPU's fold, a GPU's only carry."""
        layers = Layers(plan, wide)
        cores = wide.submit(torch.get_num_threads).result()
        workers = min(MOST_WORKERS, cores) if layers.device == "cpu" else GPU_WORKERS
        return cls(layers, workers, Event())

    def pieces(self, shard: Path) -> list[Piece]:
        """What a merged shard is made of, in its order."""
        return list(self._pieces(tensors_of(shard)))

    def write(
        self, shard: Path, pieces: list[Piece], target: Path, pool: Executor, ahead: int
    ) -> str:
        """Write one merged shard with `ahead` pieces under way; returns its digest."""
        room = max((piece.size_bytes for piece in pieces), default=0)
        rooms = deque(self._room(room) for _ in range(min(ahead + 1, len(pieces))))
        under_way: deque[tuple[Future[Any], Any]] = deque()
        with shard.open("rb") as source, Written(target) as out:
            out.add(header(tensors_of(shard)))
            try:
                for piece in pieces:
                    if not rooms:
                        rooms.append(self._land(under_way, out))
                    mine = rooms.popleft()
                    read = pool.submit(self._fill, source.fileno(), piece, mine)
                    under_way.append((read, mine))
                while under_way:
                    self._land(under_way, out)
            finally:
                wait(
                    [read for read, _ in under_way]
                )  # they read from the file that is to be closed
        return out.digest

    def _land(self, under_way: deque[tuple[Future[Any], Any]], out: Written) -> Any:
        """Write the oldest piece; returns its room, to be filled again."""
        read, room = under_way.popleft()
        out.add(read.result())
        return room

    def _pieces(self, tensors: list[StoredTensor]) -> Iterator[Piece]:
        for tensor in tensors:
            module = tensor.name.removesuffix(WEIGHT)
            if module != tensor.name and self.layers.changes(module):
                if tensor.dtype not in TYPES:
                    raise MergeError(
                        f"the base stores {tensor.name} as {tensor.dtype}; store it as one of "
                        f"{', '.join(TYPES)}"
                    )
                yield Piece(tensor.begin, tensor.size_bytes, tensor)
                continue
            end = tensor.begin + tensor.size_bytes
            for begin in range(tensor.begin, end, PIECE_BYTES):
                yield Piece(begin, min(PIECE_BYTES, end - begin))

    def _room(self, size_bytes: int) -> Any:
        # Pinned, so that a GPU fetches and brings it at the full speed of its bus.
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self.layers.device != "cpu")

    def _fill(self, source: int, piece: Piece, room: Any) -> memoryview:
        """Read a piece into its room, and fold there."""
        here = room[: piece.size_bytes]
        view = memoryview(here.numpy())
        if self.stopped.is_set():
            raise RuntimeError("another shard of this merge failed")
        read_into(source, view, piece.begin)
        if piece.tensor is not None:
            weight = here.view(TYPES[piece.tensor.dtype]).view(piece.tensor.shape)
            self.layers.fold(piece.tensor.name.removesuffix(WEIGHT), weight)
        return view


class Written:
    """A file being written: hashed and seen to the disk on the way."""

    def __init__(self, target: Path) -> None:
        self._file = target.open("xb", buffering=0)
        self._hash, self._threads = digest.hasher(), ThreadPoolExecutor(2)
        self._unsettled = 0
        self._settling: Future[None] | None = None
        self.digest = ""

    def __enter__(self) -> Written:
        return self

    def add(self, data: bytes | memoryview) -> None:
        """Append `data`; when this returns it may be changed again."""
        hashing = self._threads.submit(self._hash.update, data)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])
        self._unsettled += done
        if self._settling is not None and self._settling.done():
            self._settling.result()  # the disk may have failed
            self._settling = None
        if self._unsettled >= SETTLED_BYTES and self._settling is None:
            # Begun now: a disk that starts when all is written has stood idle until then.
            self._settling = self._threads.submit(os.fdatasync, self._file.fileno())
            self._unsettled = 0
        hashing.result()

    def __exit__(self, *failed: object) -> None:
        try:
            if failed[0] is None:
                if self._settling is not None:
                    self._settling.result()
                os.fsync(self._file.fileno())
                self.digest = self._hash.hexdigest()
        finally:
            self._threads.shutdown()
            self._file.close()
