"""A package without weights: an adapter, and the base that it is added to, known by its digests.

Under `register.as: adapter` a version's package has all of the merged one but the weights: `adapter/` in
PEFT's format instead, and `adapter.json`. That names the dequantized base (a registered model of its own,
which many adapters share) with a digest of each of its files, and of each weight file of the merged model. So
the judged model is made again bit for bit, or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from .pyfunc import file_digests, printable, served_files

RECORD, FOLDER = "adapter.json", "adapter"  # of a package
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's, of an adapter
PREFIX = "base_model.model."  # PEFT's, before the base's own module names
LENGTH_BYTES = 8  # of a safetensors header
ROW_BLOCK_WEIGHTS = 1 << 20
SHOWN_FAULTS = 5


class BaseChanged(RuntimeError):
    """An adapter's base is not there, or not the one that it was judged on."""


@dataclass(frozen=True)
class StoredBase:
    """A dequantized base in the registry. `files`: digests by name (pyfunc.file_digests)."""

    name: str
    uri: str  # `models:/m-...`
    files: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 over the names and digests of its files."""
        return hashlib.sha256(json.dumps(sorted(self.files.items())).encode()).hexdigest()


def is_adapter(package: Path) -> bool:
    """Whether a package has an adapter in place of weights."""
    return (package / RECORD).is_file()


def write_record(package: Path, base: StoredBase, merged: Mapping[str, Path]) -> None:
    """Write the package's adapter.json. `merged`: the judged model's weight files by name."""
    digests = file_digests(dict(merged))
    shards = {
        name: {"digest": digests[name], "header": _header_of(path)} for name, path in merged.items()
    }
    values = {"base": asdict(base), "shards": shards}
    (package / RECORD).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def base_of(package: Path) -> StoredBase:
    """The base that a package names. Raises BaseChanged where its adapter.json cannot be read."""
    values = _record(package)
    try:
        return StoredBase(**values["base"])
    except (KeyError, TypeError) as error:
        raise BaseChanged(f"{package / RECORD} names no base; pull the package again") from error


def digests_in(folder: Path) -> dict[str, str]:
    """The digest of each file in `folder` by its name; reads all of it."""
    files = served_files(folder)
    return file_digests({name: path for name, path in files.items() if path.is_file()})


def faults_of(base: StoredBase, folder: Path) -> list[str]:
    """What of a base in `folder` is not as it was stored, a few words each; reads all of it."""
    there = digests_in(folder)
    faults = [f"{printable(name)} is missing" for name in base.files if name not in there]
    faults += [f"{printable(name)} was added" for name in there if name not in base.files]
    changed = (n for n, digest in there.items() if base.files.get(n, digest) != digest)
    return faults + [f"{printable(name)} was changed" for name in changed]


def require_base(base: StoredBase, folder: Path) -> None:
    """Raise BaseChanged, naming what differs, where `folder` is not this base."""
    if faults := faults_of(base, folder):
        shown = "; ".join(faults[:SHOWN_FAULTS])
        shown += f"; and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise BaseChanged(
            f"the base {base.name} ({base.uri}) is not the one that this adapter was judged on: {shown}. "
            "Nothing is served. Restore it from a backup, or put back a version on another base "
            "(`precis rollback`). `precis verify NAME` names all that differs"
        )


def merge_weights(package: Path, base: Path, out: Path) -> None:
    """Make the judged package in the new folder `out`: `base` with the adapter added, and all else.

    Each weight file is compared with the digest of the judged one. Raises BaseChanged where one differs.
    """
    shards = _record(package)["shards"]
    out.mkdir(parents=True)
    own = {name: path for name, path in served_files(package).items() if path.is_file()}
    for name, path in own.items():
        if name != RECORD and not name.startswith(f"{FOLDER}/"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    adapter = _Adapter(package / FOLDER)
    for name, shard in shards.items():
        _write_shard(base / name, shard["header"], adapter, out / name)
    digests = file_digests({name: out / name for name in shards})
    if odd := [name for name, shard in shards.items() if digests[name] != shard["digest"]]:
        raise BaseChanged(
            f"{', '.join(odd)}: base and adapter give other weights than those that were judged. Restore "
            "both from a backup, or put an earlier version back (`precis rollback`)"
        )


@contextlib.contextmanager
def with_weights(package: Path) -> Iterator[Path]:
    """A package with weights while the block runs: this one, or what it and its base in the registry give.

    The latter lies in the temporary folder of the machine, as large as the model. Raises BaseChanged.
    """
    if not is_adapter(package):
        yield package
        return
    with tempfile.TemporaryDirectory(prefix="precis-adapter-") as scratch:
        stored = base_of(package)
        base = _fetched(stored, Path(scratch) / "base")
        require_base(stored, base)
        merge_weights(package, base, Path(scratch) / "package")
        yield Path(scratch) / "package"


def scale_of(config: Mapping[str, Any]) -> float:
    """The factor of B A: alpha / r, or rsLoRA's alpha / sqrt(r) (arXiv:2312.03732)."""
    r = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
    scale: float = config["lora_alpha"] / r
    return scale


def exact_sum(weight: Any, a: Any, b: Any, scale: float) -> Any:
    """W + s B A as float32 [out, in], the same bits on every machine and device.

    `weight` is [out, in], `a` [r, in], `b` [out, r], float32 or less. A product of two float32 numbers is
    exact in float64, and the sums are made in one order, a term at a time: no library's choice of blocks,
    threads or fused operations changes them, as it does a matrix product.
    """
    a, b = a.double(), b.double()
    product = b[:, :1] * a[:1]
    for k in range(1, len(a)):
        product.addcmul_(b[:, k : k + 1], a[k : k + 1])
    return product.mul_(scale).add_(weight.double()).float()


class _Adapter:
    """An adapter's tensors by module."""

    def __init__(self, folder: Path) -> None:
        from safetensors.torch import load_file

        self.scale = scale_of(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        self.tensors = load_file(folder / WEIGHTS)

    def added_to(self, name: str, weight: Any, dtype: Any) -> Any:
        """The weight `name` [out, in] with the adapter's part, in `dtype`."""
        module = f"{PREFIX}{name.removesuffix('.weight')}"
        a = self.tensors.get(f"{module}.lora_A.weight")
        if a is None:
            return weight.to(dtype)
        a, b = a.float(), self.tensors[f"{module}.lora_B.weight"].float()
        merged, step = weight.to(dtype, copy=True), max(1, ROW_BLOCK_WEIGHTS // weight.shape[1])
        for begin in range(0, len(weight), step):
            rows = slice(begin, begin + step)
            merged[rows] = exact_sum(weight[rows], a, b[rows], self.scale)
        return merged


def _write_shard(base: Path, header: str, adapter: _Adapter, out: Path) -> None:
    import torch
    from safetensors import safe_open

    types = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    tensors = {name: of for name, of in json.loads(header).items() if name != "__metadata__"}
    with out.open("xb") as file, safe_open(base, framework="pt") as stored:
        file.write(len(header.encode()).to_bytes(LENGTH_BYTES, "little") + header.encode())
        for name in sorted(tensors, key=lambda name: tensors[name]["data_offsets"]):
            weight = stored.get_tensor(name)
            if weight.ndim == 2 and tensors[name]["dtype"] in types:
                weight = adapter.added_to(name, weight, types[tensors[name]["dtype"]])
            file.write(weight.contiguous().reshape(-1).view(torch.uint8).numpy())


def _header_of(shard: Path) -> str:
    with shard.open("rb") as file:
        return file.read(int.from_bytes(file.read(LENGTH_BYTES), "little")).decode()


def _record(package: Path) -> Any:
    try:
        return json.loads((package / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BaseChanged(f"{package / RECORD} cannot be read ({error}); pull it again") from error


def _fetched(base: StoredBase, folder: Path) -> Path:
    """The base's files: in place on a local store, else a copy in `folder`."""
    import mlflow

    where = f"this package is an adapter, and its base {base.name} ({base.uri})"
    if not mlflow.is_tracking_uri_set():  # asking would make a store here
        raise BaseChanged(
            f"{where} is in MLflow's registry: set MLFLOW_TRACKING_URI to it, or serve the merged model that "
            "`precis pull NAME FOLDER` makes of both"
        )
    try:
        client = mlflow.MlflowClient()
        location = client.get_logged_model(base.uri.removeprefix("models:/")).artifact_location
        parts = urlparse(location)
        if parts.scheme in ("", "file"):
            return Path(unquote(parts.path))
        folder.mkdir()
        copied = mlflow.artifacts.download_artifacts(artifact_uri=location, dst_path=str(folder))
        return Path(copied)
    except (mlflow.exceptions.MlflowException, OSError) as error:
        raise BaseChanged(f"{where} cannot be read: {error}") from error
