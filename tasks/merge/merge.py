"""Merge an adapter into its base, shard by shard, into a package that loads without the adapter.

The adapter was trained against weights rounded to few bits (QLoRA, Dettmers et al. 2023,
arXiv:2305.14314), so by default it is added to those, dequantized, and not to the originals.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Recipe
from tasks.contracts.units import GIB
from tasks.merge import drift
from tasks.merge.plan import plan_merge
from tasks.merge.shard_pipeline import merge_shards
from tasks.models import engine_files, package
from tasks.models.model_card import MadeFrom
from tasks.models.prepared_base import PreparedBase
from tasks.models.weight_files import model_files
from tasks.processes import step_process

# Files that are copied with the weights: configuration, tokenizer, licence.
COMPANION_FILES = ("*.json", "*.jinja", "*.model", "*.txt", "LICENSE*", "NOTICE*", "USE_POLICY*")


def merge_and_check(
    base: dict[str, Any], adapter: str, rows: str, recipe: dict[str, Any], out: str
) -> dict[str, Any]:
    """`merge`, then `drift.measure` on canonical `rows`; `out` is removed when that is refused.

    A child-process target: JSON-able arguments (`base`: PreparedBase.as_json) and result. Returns
    merge's result with {"drift": {"kl", "top1_agreement", "tokens", "near_ties"}}.
    """
    prepared, parsed = PreparedBase.from_json(base), Recipe.model_validate(recipe)
    train_digest = digest.of_file(Path(rows))
    result = merge(prepared, Path(adapter), parsed, Path(out), train_digest)
    try:
        measured = drift.measure(prepared, Path(adapter), Path(out), Path(rows), parsed)
        drift.refuse(measured, parsed.merge)
    except BaseException:
        shutil.rmtree(out)
        raise
    return result | {"drift": asdict(measured)}


def merge(
    base: PreparedBase, adapter: Path, recipe: Recipe, out: Path, train_digest: str = ""
) -> dict[str, Any]:
    """Write the merged model to the folder `out`, complete or not at all.

    `train_digest`: of the rows that the adapter was trained on, for the model card.

    Shard names, index and stored type are the base's. Memory holds some matrices, never a whole shard.
    Returns {"path", "digest", "seconds", "bytes"}. Raises MergeError with every mismatch of base
    and adapter, or when the disk is full.
    """
    started = time.monotonic()
    plan = plan_merge(base, adapter, recipe)
    partial = out.with_name(out.name + ".partial")
    for old in (partial, out):
        shutil.rmtree(old, ignore_errors=True)
    with writing(partial, [*plan.shards, *companion_files(base.path)]):
        hashes = merge_shards(
            plan,
            partial,
            lambda n: step_process.report(kind="merge", shard=n, shards=len(plan.shards)),
        )
        copy_companions(base, partial, plan.stored)
        package.add_summarizer(partial, base.settings)
        made_from = MadeFrom(base.model, base.revision, base.digest, train_digest)
        engine_files.write(partial, base.settings, made_from)
        partial.rename(out)
    return {
        "path": str(out),
        "digest": digest.of_folder(out, hashes),
        "seconds": time.monotonic() - started,
        "bytes": sum(path.stat().st_size for path in digest.visible_files(out)),
    }


@contextmanager
def writing(folder: Path, sources: list[Path], times: int = 1) -> Iterator[None]:
    """Make `folder`; remove it when the disk fills or anything else fails.

    What is written there is up to `times` as large as `sources`. Raises MergeError where that does not fit.
    """
    from safetensors import SafetensorError

    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = times * sum(path.stat().st_size for path in sources)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise MergeError(
            f"the merged model needs {needed / GIB:.2f} GiB in {folder.parent}, where "
            f"{free / GIB:.2f} GiB are free; free some space, or set PRECIS_WORK to a larger disk"
        )
    folder.mkdir()
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise MergeError(
            f"writing the merged model to {folder.parent} failed: {error}; free space there (it "
            f"needs {needed / GIB:.2f} GiB), or set PRECIS_WORK to a larger disk"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone already when the merge succeeded


def companion_files(base: Path) -> list[Path]:
    """A base's files beside its weights that go with every model that is made of it."""
    # Not the index of weights that transformers would not load.
    used = {path.name for path in model_files(base)}
    files = {path for pattern in COMPANION_FILES for path in base.glob(pattern) if path.is_file()}
    return sorted(path for path in files if path.name in used)


def copy_companions(base: PreparedBase, folder: Path, dtype: str) -> None:
    """Copy them to `folder`, with `dtype` as the weights' type in config.json."""
    for path in companion_files(base.path):
        shutil.copyfile(path, folder / path.name)
    key = "torch_dtype" if "torch_dtype" in base.config else "dtype"
    config = base.config | {key: dtype}
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
