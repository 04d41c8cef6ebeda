"""Content digests: the same bytes give the same name everywhere."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

LARGE_BYTES = 64 * 2**20


def of_value(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def of_files(root: Path, paths: Iterable[Path], known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over names relative to `root` and contents, in name order.

    `known`: the SHA-256 (hex) of files by these names, of bytes that were hashed as they were written.
    """
    named = sorted((path.relative_to(root).as_posix(), path) for path in paths)
    found = dict(known or {})
    large = [(n, p) for n, p in named if n not in found and p.stat().st_size >= LARGE_BYTES]
    if len(large) > 1:  # shards of a model: hashing one file is one core's work
        with ThreadPoolExecutor(min(len(large), os.cpu_count() or 1)) as pool:
            hashes = pool.map(of_file, [path for _, path in large])
            found |= {name: sha for (name, _), sha in zip(large, hashes, strict=True)}
    return of_value([[name, found.get(name) or of_file(path)] for name, path in named])


def of_folder(root: Path, known: Mapping[str, str] | None = None) -> str:
    """SHA-256 over every file below `root` (following links), hidden files and caches left out."""
    return of_files(root, visible_files(root), known)


def visible_files(root: Path) -> list[Path]:
    """Every file below `root`, in name order; hidden files and __pycache__ left out."""
    return sorted(
        path
        for path in root.rglob("*")
        if path.is_file()
        and not any(
            part.startswith(".") or part == "__pycache__" for part in path.relative_to(root).parts
        )
    )
