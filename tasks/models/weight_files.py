"""Which files hold a base's weights: those that transformers loads, by its own rules.

The rules are those of transformers' `_get_resolved_checkpoint_files` (5.17.0, modeling_utils.py), which
cannot be called itself: it imports torch, and goes on to the hub. In this order: model.safetensors, or
the shards that model.safetensors.index.json names. Other files of weights in the folder are not loaded,
so they are not counted, digested, merged or downloaded either.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.formatting import listed
from tasks.models.json_files import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
SHOWN = 4  # names in a message
# Weights in other forms, by the end of the name: what they are, and how they become safetensors.
TORCH = "PyTorch's .bin format"
OTHER_FORMATS = {
    ".bin": TORCH,
    ".pt": TORCH,
    ".pth": TORCH,
    ".ckpt": TORCH,
    ".gguf": "GGUF (llama.cpp's format, mostly quantized)",
    ".h5": "TensorFlow's format",
    ".msgpack": "Flax's format",
    ".onnx": "ONNX",
    ".ot": "Rust's format",
    ".npz": "NumPy's format (older MLX models)",
    ".nemo": "NeMo's format",
    ".tflite": "TensorFlow Lite",
}
NO_WEIGHTS = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "scaler.pt"}


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers loads, in name order. Raises BaseModelError where there are none.

    They exist, but have not been read.
    """
    if problems := adapter_problems(folder):
        raise BaseModelError("\n".join(problems))
    if (folder / INDEX).is_file() and not (folder / SINGLE).is_file():
        shards = shards_in(read_object(folder / INDEX), folder / INDEX)
    elif os.path.lexists(folder / SINGLE):
        shards = [SINGLE]
    else:
        raise BaseModelError(no_weights(str(folder), _all_names(folder)))
    if absent := [name for name in shards if not (folder / name).is_file()]:
        raise BaseModelError(_absent(folder, absent))
    return [folder / name for name in shards]


def shards_in(index: dict[str, Any], path: Path) -> list[str]:
    """The names of an index's files, in order. Raises BaseModelError for what is no index of this folder."""
    entries = index.get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise BaseModelError(
            f'{path} has no "weight_map" of tensors and their files; fetch it again'
        )
    odd = sorted({str(name) for name in entries.values() if not _is_file_name(name)})
    if odd:
        raise BaseModelError(
            f"{path} names files that are no .safetensors beside it: {_some(odd)}; correct the index, "
            "or fetch it again"
        )
    return sorted(set(entries.values()))


def _is_file_name(name: Any) -> bool:
    return (
        isinstance(name, str)
        and name.endswith(".safetensors")
        and not {"/", "\\", "\0"} & set(name)
    )


def _absent(folder: Path, names: list[str]) -> str:
    links = [name for name in names if (folder / name).is_symlink()]
    why = " (a link to a file that is gone)" if links else ""
    if names == [SINGLE]:
        return f"{folder / SINGLE} is no file{why}; fetch it again"
    return f"{folder} lacks weights that its index names: {_some(names)}{why}; fetch them again"


def adapter_problems(folder: Path) -> list[str]:
    """That a folder holds an adapter, not a model: transformers would load the adapter's base with it."""
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        return []
    try:
        config = read_object(path)
    except BaseModelError as error:
        config = {"base_model_name_or_path": None, "error": str(error)}
    base = config.get("base_model_name_or_path") or "an unnamed base"
    if any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return [
            f"{folder} holds a whole model and an adapter on {base} ({ADAPTER_CONFIG}), and transformers "
            f"would load {base} with the adapter: move the adapter's files out of the folder if the "
            "model is what you mean"
        ]
    return [
        f"{folder} is an adapter on {base}, not a model: name that base in base.model, or merge the "
        "adapter into it first (PEFT's merge_and_unload, then save_pretrained) and name the result"
    ]


def no_weights(folder: str, names: Iterable[str]) -> str:
    """Why files of these names (relative, with `/`) hold no weights that precis loads, and the fix."""
    names = sorted(names)
    none = f"{folder} has no {SINGLE} and no {INDEX}"
    if INDEX in names:
        none = f"{folder} has {INDEX}, and none of the files that it names"
    top = [name for name in names if "/" not in name]
    tensors = [name for name in top if name.endswith(".safetensors")]
    if [name for name in tensors if "-of-" in name]:
        return (
            f"{none}, though it has shards ({_some(tensors)}): transformers loads no shards without "
            f"their index; fetch {INDEX} too"
        )
    if [name for name in tensors if name.startswith("consolidated")]:
        return (
            f"{none}, but {_some(tensors)}, the format of Mistral's and Meta's own code, with other names "
            "of tensors; fetch the files for transformers from the same place, or convert them"
        )
    if [name for name in tensors if name.startswith("adapter_model")]:
        return f"{none}, but an adapter ({_some(tensors)}); name the base that it belongs to"
    if [name for name in tensors if name.startswith("model.")]:
        return (
            f"{none}, but a variant ({_some(tensors)}); rename the one that you mean to {SINGLE}, or "
            "fetch the plain weights"
        )
    if tensors:
        return (
            f"{none}, and transformers loads no other name than these: {_some(tensors)}; rename the file "
            f"to {SINGLE} if it holds all weights"
        )
    return _in_other_formats(folder, none, top) or _in_folders(none, names)


def _in_other_formats(folder: str, none: str, top: list[str]) -> str:
    found = {
        name: kind
        for name in top
        for end, kind in OTHER_FORMATS.items()
        if name.endswith(end) and name not in NO_WEIGHTS
    }
    if "model_index.json" in top:
        return f"{none}: it is a diffusers pipeline, no language model; choose another base"
    if not found:
        return ""
    kind = next(iter(found.values()))
    how = "fetch or make the model as safetensors"
    if TORCH in found.values():
        kind, load = TORCH, f"AutoModelForCausalLM.from_pretrained({folder!r})"
        how = (
            f"convert it with transformers, {load}.save_pretrained(NEW), copy the tokenizer's files to NEW, "
            "and name NEW"
        )
    elif "GGUF" in kind:
        how = "name the original model that it was made from"
    return f"{none}: its weights are in {kind} ({_some(sorted(found))}), which precis does not read; {how}"


def _in_folders(none: str, names: list[str]) -> str:
    folders = sorted({n.rpartition("/")[0] for n in names if n.endswith((f"/{SINGLE}", INDEX))})
    inner = f"; name the folder in it that has them: {_some(folders)}" if folders else ""
    return f"{none}: there are no .safetensors weights{inner or '; save the model as safetensors'}"


def _some(names: list[str]) -> str:
    return listed(names, SHOWN)


def _all_names(folder: Path) -> list[str]:
    """Names two levels deep: enough to say where weights are, whatever lies below."""
    if not folder.is_dir():
        return []
    return [
        path.relative_to(folder).as_posix()
        for pattern in ("*", "*/*")
        for path in folder.glob(pattern)
        if path.is_file()
    ]


def unused(folder: Path) -> list[Path]:
    """Files of weights below the folder that transformers does not load. Raises as `weight_files`."""
    used = set(weight_files(folder))
    if folder / SINGLE not in used:
        used.add(folder / INDEX)
    return [path for path in digest.visible_files(folder) if _is_weights(path) and path not in used]


def _is_weights(path: Path) -> bool:
    names = (".safetensors", ".index.json", *OTHER_FORMATS)
    return path.name.endswith(names)


def model_files(folder: Path) -> list[Path]:
    """All visible files of a base but for weights that transformers does not load: what it consists of.

    Raises as `weight_files`.
    """
    left_out = set(unused(folder))
    return [path for path in digest.visible_files(folder) if path not in left_out]


def wanted_on_hub(
    names: Iterable[str], is_companion: Callable[[str], bool], index: Callable[[], list[str]]
) -> list[str]:
    """Of a repository's files those that make a base: its weights, and what `is_companion`.

    `index`: gives the names in the index, where that decides. Empty where there are no weights.
    """
    files = set(names)
    if SINGLE in files:
        weights = {SINGLE}
    elif INDEX in files:
        weights = set(index())
    else:
        return []
    companions = {name for name in files if is_companion(name)}
    return sorted(weights | companions)
