"""Whether a base's weights are those of its architecture, as transformers itself loads them.

transformers gives a tensor that no file has random numbers, and leaves out one that it has no place for,
with a warning in a log. Here the model is loaded by transformers' own rules (names, tied weights, what may
be left out) onto the meta device: headers are read, weights are not. Imports torch: five seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.contracts.formatting import listed
from tasks.contracts.recipe import Recipe
from tasks.models.prepared_base import BaseFolder

SHOWN = 3


def problems(recipe: Recipe, base: BaseFolder) -> list[str]:
    """Tensors that are missing, unknown or of another shape than config.json says; at most a few lines.

    For a base in which tasks.models.base_checks and tasks.models.compatibility find no problem.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    try:
        with _quiet():
            if (base.path / "generation_config.json").is_file():
                GenerationConfig.from_pretrained(base.path, local_files_only=True)
            model, keys = AutoModelForCausalLM.from_pretrained(
                base.path,
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=True,
                trust_remote_code=False,
            )
    except Exception as error:  # noqa: BLE001 - by any error transformers says what it cannot load
        reason = " ".join(str(error).split())[:300]
        return [
            f"base.model: transformers cannot load {base.path}: {type(error).__name__}: {reason}; correct "
            "its config.json, or fetch the model again"
        ]
    if prefix := _wrapper(keys["missing_keys"], keys["unexpected_keys"]):
        return [
            f"base.model: all weights of {base.path} have {prefix} before their names, as a wrapped model "
            "saves them (torch.compile, DistributedDataParallel, PEFT); save the model inside with "
            "save_pretrained, or remove the prefix from the names"
        ]
    found = [_line(base, kind, keys[f"{kind}_keys"]) for kind in ("missing", "unexpected")]
    found.append(_mismatch(base, keys["mismatched_keys"]))
    return [line for line in found if line] or _renamed(recipe, base, model)


def _wrapper(missing: Any, unexpected: Any) -> str:
    """What stands before all names that have no place, where the names behind it are those missing."""
    wanted = set(missing)
    prefixes = {
        name.removesuffix(end)
        for name in unexpected
        if (
            end := next(
                (w for w in sorted(wanted, key=len, reverse=True) if name.endswith(w)), None
            )
        )
    }
    if len(prefixes) != 1:
        return ""
    (prefix,) = prefixes
    return prefix if prefix and all(name.startswith(prefix) for name in unexpected) else ""


def _line(base: BaseFolder, kind: str, names: Any) -> str:
    if not names:
        return ""
    if kind == "missing":
        return (
            f"base.model: {base.path} lacks weights that its config.json asks for: {_some(names)}; "
            "transformers would make them up; fetch the model again, all of one revision"
        )
    return (
        f"base.model: {base.path} holds weights that its config.json has no place for: {_some(names)}; "
        "transformers would leave them out; fetch the model again, all of one revision"
    )


def _mismatch(base: BaseFolder, keys: Any) -> str:
    if not keys:
        return ""
    shapes = [f"{name} {_size(held)} for {_size(wanted)}" for name, held, wanted in sorted(keys)]
    return (
        f"base.model: {base.path} holds weights of other shapes than its config.json asks for: "
        f"{_some(shapes)}; fetch the model again, all of one revision"
    )


def _renamed(recipe: Recipe, base: BaseFolder, model: Any) -> list[str]:
    """Layers that transformers finds under other names than the files have: the merge goes by those."""
    import torch

    stored, targets = base.tensors, recipe.adapter.target_modules
    head = model.get_output_embeddings()
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and module is not head
        and (isinstance(targets, str) or any(f".{name}".endswith(f".{t}") for t in targets))
        and f"{name}.weight" not in stored
    ]
    if not names:
        return []
    return [
        f"base.model: {base.path} stores weights under other names than transformers gives them "
        f"({_some(names)} are not there), and the merge goes by names; load the model with transformers "
        "and save it again (save_pretrained), or adapt other layers (adapter.target_modules)"
    ]


def _some(names: Any) -> str:
    return listed(sorted(names), SHOWN)


def _size(shape: Any) -> str:
    return " x ".join(map(str, shape)) or "one number"


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report: `problems` has it in sentences."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
