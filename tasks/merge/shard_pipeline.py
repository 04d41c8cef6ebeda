"""Write merged shards: read, fold, write and hash at the same time, a matrix at a time.

A merge moves as many bytes as a copy. So each shard has a thread that writes, in the file's order, what
worker threads have read and folded, while others hash what was written and flush it to the disk. Memory
holds a few matrices, never a whole shard (PEFT's merge_and_unload holds the whole model).
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
from tasks.merge.layer import LayerMerger
from tasks.merge.plan import MergePlan
from tasks.merge.shard_file import header, read_into, tensors_of
from tasks.models.safetensors_headers import StoredTensor

WEIGHT = ".weight"
TYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
COPIED_CHUNK_BYTES = 32 * 2**20  # of tensors that the merge does not change
FLUSH_BYTES = 256 * 2**20  # written between two flushes to the disk
# Worker threads: on a CPU they fold (eight fold a 7B model in the time that a disk takes to write it),
# for a GPU they only copy.
MAX_CPU_WORKERS, GPU_WORKERS = 8, 4
MAX_SHARDS_AT_ONCE = 4  # a shard's hash is computed by one thread


def merge_shards(
    plan: MergePlan, folder: Path, on_progress: Callable[[int], None]
) -> dict[str, str]:
    """Write every merged shard of `plan` into `folder`, flushed to the disk; their digests by name.

    `on_progress` is called with the number of shards that are written. Raises OSError when the disk is
    full, MergeError for a base that cannot be merged.
    """
    with one_thread_each() as all_threads:
        merger = ShardMerger.of(plan, all_threads)
        chunks = {shard: merger.chunks(shard) for shard in plan.shards}
        at_once, read_ahead = _concurrency(merger.workers, list(chunks.values()))
        digests: dict[str, str] = {}
        with ThreadPoolExecutor(merger.workers) as pool, ThreadPoolExecutor(at_once) as writers:
            shard_of = {
                writers.submit(merger.write, shard, folder / shard.name, pool, read_ahead): shard
                for shard in plan.shards
            }
            try:
                for future in as_completed(shard_of):
                    digests[shard_of[future].name] = future.result()
                    on_progress(len(digests))
            except BaseException:
                merger.stopped.set()
                writers.shutdown(cancel_futures=True)
                raise
    return digests


def _concurrency(workers: int, chunks_of_shards: list[list[Chunk]]) -> tuple[int, int]:
    """Shards written at once, and chunks read ahead in each; all buffers together fit one shard's size."""
    shard_bytes = max(sum(chunk.size_bytes for chunk in chunks) for chunks in chunks_of_shards)
    chunk_bytes = [chunk.size_bytes for chunks in chunks_of_shards for chunk in chunks]
    buffers = shard_bytes // max(1, *chunk_bytes, 1)
    at_once = max(1, min(len(chunks_of_shards), MAX_SHARDS_AT_ONCE, workers // 2, buffers // 2))
    return at_once, max(1, min(-(-workers // at_once) + 1, buffers // at_once - 1))


@contextmanager
def one_thread_each() -> Iterator[Executor]:
    """Torch on one thread in every thread started inside; on as many as before in the executor.

    Many matrices at once, each on one core, do not wait for each other.
    """
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(threads,)) as executor:
        # Its thread must exist before the number is lowered for all later ones.
        executor.submit(torch.get_num_threads).result()
        torch.set_num_threads(1)
        try:
            yield executor
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Chunk:
    """Bytes that are next to each other in the base's shard, and in the merged one."""

    begin: int  # in the base's file
    size_bytes: int
    tensor: StoredTensor | None = None  # a whole tensor that the merge changes; None: only copied


@dataclass(frozen=True)
class ShardMerger:
    """Merges the shards of a plan, each by a thread of its own, with worker threads for all."""

    layers: LayerMerger
    workers: int
    stopped: Event

    @classmethod
    def of(cls, plan: MergePlan, all_threads: Executor) -> ShardMerger:
        """A merger with as many workers as the device asks for."""
        layers = LayerMerger(plan, all_threads)
        cores = all_threads.submit(torch.get_num_threads).result()
        workers = min(MAX_CPU_WORKERS, cores) if layers.device == "cpu" else GPU_WORKERS
        return cls(layers, workers, Event())

    def chunks(self, shard: Path) -> list[Chunk]:
        """What a merged shard is made of, in its order."""
        return list(self._chunks(tensors_of(shard)))

    def write(self, shard: Path, target: Path, pool: Executor, read_ahead: int) -> str:
        """Write one merged shard with `read_ahead` chunks in progress; returns its digest."""
        chunks = self.chunks(shard)
        buffer_bytes = max((chunk.size_bytes for chunk in chunks), default=0)
        free = deque(self._buffer(buffer_bytes) for _ in range(min(read_ahead + 1, len(chunks))))
        in_progress: deque[tuple[Future[memoryview], Any]] = deque()
        with shard.open("rb") as source, HashedFile(target) as out:
            out.add(header(tensors_of(shard)))
            try:
                for chunk in chunks:
                    if not free:
                        free.append(self._write_oldest(in_progress, out))
                    buffer = free.popleft()
                    future = pool.submit(self._read_and_fold, source.fileno(), chunk, buffer)
                    in_progress.append((future, buffer))
                while in_progress:
                    self._write_oldest(in_progress, out)
            finally:
                # They read from the file that is closed next.
                wait([future for future, _ in in_progress])
        return out.digest

    def _write_oldest(
        self, in_progress: deque[tuple[Future[memoryview], Any]], out: HashedFile
    ) -> Any:
        """Write the oldest chunk in progress; returns its buffer, to be filled again."""
        future, buffer = in_progress.popleft()
        out.add(future.result())
        return buffer

    def _chunks(self, tensors: list[StoredTensor]) -> Iterator[Chunk]:
        for tensor in tensors:
            module = tensor.name.removesuffix(WEIGHT)
            if module != tensor.name and self.layers.changes(module):
                if tensor.dtype not in TYPES:
                    raise MergeError(
                        f"the base stores {tensor.name} as {tensor.dtype}; store it as one of "
                        f"{', '.join(TYPES)}"
                    )
                yield Chunk(tensor.begin, tensor.size_bytes, tensor)
                continue
            end = tensor.begin + tensor.size_bytes
            for begin in range(tensor.begin, end, COPIED_CHUNK_BYTES):
                yield Chunk(begin, min(COPIED_CHUNK_BYTES, end - begin))

    def _buffer(self, size_bytes: int) -> Any:
        # Pinned, so that copies to and from a GPU have the full speed of its bus.
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self.layers.device != "cpu")

    def _read_and_fold(self, source: int, chunk: Chunk, buffer: Any) -> memoryview:
        """Read a chunk into its buffer, and fold the adapter in there."""
        content = buffer[: chunk.size_bytes]
        view = memoryview(content.numpy())
        if self.stopped.is_set():
            raise RuntimeError("another shard of this merge failed")
        read_into(source, view, chunk.begin)
        if chunk.tensor is not None:
            weight = content.view(TYPES[chunk.tensor.dtype]).view(chunk.tensor.shape)
            self.layers.fold(chunk.tensor.name.removesuffix(WEIGHT), weight)
        return view


class HashedFile:
    """A new file, hashed and flushed to the disk while it is written."""

    def __init__(self, target: Path) -> None:
        self._file = target.open("xb", buffering=0)
        self._hash, self._threads = digest.hasher(), ThreadPoolExecutor(2)
        self._unflushed_bytes = 0
        self._flush: Future[None] | None = None
        self.digest = ""  # once it is closed

    def __enter__(self) -> HashedFile:
        return self

    def add(self, data: bytes | memoryview) -> None:
        """Append `data`; when this returns it may be changed again."""
        hashing = self._threads.submit(self._hash.update, data)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])
        self._unflushed_bytes += done
        if self._flush is not None and self._flush.done():
            self._flush.result()  # the disk may have failed
            self._flush = None
        if self._unflushed_bytes >= FLUSH_BYTES and self._flush is None:
            # Not only at the end, or the disk would be idle until then.
            self._flush = self._threads.submit(os.fdatasync, self._file.fileno())
            self._unflushed_bytes = 0
        hashing.result()

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                if self._flush is not None:
                    self._flush.result()
                os.fsync(self._file.fileno())
                self.digest = self._hash.hexdigest()
        finally:
            self._threads.shutdown()
            self._file.close()
