"""Recipes with one fault: YAML, types, unknown settings, values that cannot be, settings that exclude."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from broken_inputs import Case, recipe_of, write_recipe

LETTERS = "abcdefghijkl"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in pairwise(LETTERS)
)
MERGES = "a: &a {k: 1}\n" + "".join(
    f"{c}: &{c} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for b, c in pairwise(LETTERS)
)


def setting(name: str, value: Any, words: str = "") -> Case:
    """A whole recipe but for one setting, by its dotted name."""

    def make(folder: Path, base: Path) -> Path:
        values = recipe_of(folder, base)
        *groups, last = name.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
        return write_recipe(folder, values)

    label = str(value)[:24].replace("/", "_").replace("\n", "_").replace("\0", "0")
    return Case(f"recipe-{name}={label}", make, words or name.replace(".", r"\."))


def text(name: str, change: Callable[[str], str | bytes], words: str) -> Case:
    """The text of a whole recipe, changed."""

    def make(folder: Path, base: Path) -> Path:
        path = write_recipe(folder, recipe_of(folder, base))
        changed = change(path.read_text())
        path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
        return path

    return Case(f"recipe-{name}", make, words)


def without(name: str) -> Case:
    """A whole recipe but for what it must have."""

    def change(whole: str) -> str:
        values = yaml.safe_load(whole)
        group, _, last = name.partition(".")
        del (values[group] if last else values)[last or group]
        return yaml.safe_dump(values)

    return text(f"without-{name}", change, rf"{name}: is required; add it")


def path_of(name: str, make: Callable[[Path], Path], words: str) -> Case:
    """A path that is no recipe's."""
    return Case(f"recipe-{name}", lambda folder, _: make(folder), words)


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "recipe.yaml")
    return folder / "recipe.yaml"


def _gigabyte(folder: Path) -> Path:
    with (folder / "recipe.yaml").open("wb") as stream:
        stream.truncate(2**30)
    return folder / "recipe.yaml"


def _loop(folder: Path) -> Path:
    (folder / "recipe.yaml").symlink_to("recipe.yaml")
    return folder / "recipe.yaml"


RECIPES = [
    # no file of settings
    path_of("missing", lambda folder: folder / "gone.yaml", "no such recipe"),
    path_of("folder", lambda folder: folder, "is a folder, not a recipe"),
    path_of("pipe", _fifo, "is a pipe, not a recipe"),
    path_of("dev-zero", lambda _: Path("/dev/zero"), "is a device, not a recipe"),
    path_of("gigabyte", _gigabyte, "has 1,073,741,824 bytes"),
    path_of("5000-characters", lambda folder: folder / ("x" * 5000), "File name too long"),
    path_of("link-to-itself", _loop, "cannot be read"),
    # no YAML, or not of a recipe
    text("empty", lambda _: "", "is a mapping of settings"),
    text("scalar", lambda _: "hello\n", "is a mapping of settings"),
    text("list", lambda _: "- name: a\n", "is a mapping of settings"),
    text("binary", lambda _: bytes(range(256)) * 9, "not UTF-8|not valid YAML"),
    text("utf-16", lambda whole: whole.encode("utf-16"), "not UTF-8"),
    text("latin-1", lambda whole: whole.encode() + "# caf\xe9\n".encode("latin-1"), "not UTF-8"),
    text("null-byte", lambda whole: whole.replace("broken", "bro\0ken"), "not valid YAML"),
    text("json-cut-short", lambda _: '{"name": "a", "data": {"train"', "not valid YAML"),
    text("tabs", lambda whole: whole.replace("  ", "\t"), "not valid YAML"),
    text("unclosed-quote", lambda whole: whole.replace("broken", '"broken'), "not valid YAML"),
    text("unclosed-list", lambda whole: whole + "adapter: {r: [8\n", "not valid YAML"),
    text("unknown-alias", lambda whole: whole.replace("broken", "*x"), "undefined alias 'x'"),
    text("alias-bomb", lambda whole: BOMB + whole, "line 5: .* more than 10,000 values"),
    text("merge-bomb", lambda whole: MERGES + whole, "more than 10,000 values"),
    text("alias-of-itself", lambda whole: whole + "adapter: &a {r: *a}\n", "within what it names"),
    text("nested", lambda _: "name: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
    text("100000-keys", lambda _: "".join(f"k{i}: 1\n" for i in range(20_000)), "10,000 values"),
    text("code", lambda w: w.replace("broken", "!!python/name:os.system"), "not valid YAML"),
    text("unknown-tag", lambda whole: whole.replace("broken", "!mine x"), "not valid YAML"),
    text("two-documents", lambda whole: f"{whole}---\n{whole}", "a single document"),
    text("key-twice", lambda whole: whole + "name: again\n", "name is given again"),
    text("key-twice-inside", lambda w: w + "adapter: {r: 8, r: 16}\n", "r is given again"),
    text("number-as-key", lambda whole: whole + "1: 2\n", "1: Keys should be strings"),
    text("list-as-key", lambda whole: whole + "? [a, b]\n: 2\n", "unhashable key"),
    text("null-as-key", lambda whole: whole + "~: 2\n", "Keys should be strings"),
    text("thirteenth-month", lambda w: w.replace("broken", "2020-13-01"), "timestamp cannot be"),
    text("merge-of-a-number", lambda whole: whole + "<<: 3\n", "not valid YAML"),
    text("web-page", lambda _: "<!DOCTYPE html>\n<html><body>404</body></html>\n", "recipe.yaml"),
    text("python", lambda _: "import os\nprint('name: x')\n", "recipe.yaml"),
    text("set-of-names", lambda w: w.replace("name: broken", "name: !!set {a}"), "name"),
    # what a recipe must have
    without("name"),
    without("data"),
    without("data.train"),
    without("base"),
    without("base.model"),
    # unknown settings
    setting("epochs", 3, "epochs: unknown key"),
    setting("training.lr", 1e-3, "did you mean training.learning_rate"),
    setting("training.batch_size", 4, "did you mean training.per_device_train_batch_size"),
    setting("adapter.rank", 4, "did you mean adapter.r"),
    setting("data.evaluation_file", "x", "data.evaluation_file: unknown key"),
    setting("base.trust_remote_code", True, "base.trust_remote_code: unknown key"),
    setting("data.fields.target", "x", "data.fields.target: unknown key"),
    # types
    setting("name", 3),
    setting("name", None),
    setting("name", "a b"),
    setting("name", "../up"),
    setting("name", "x" * 5000),
    setting("data", "data.jsonl"),
    setting("data", []),
    setting("data.train", ["a.jsonl", "b.jsonl"]),
    setting("data.train", ""),
    setting("data.train", {"path": "a.jsonl"}),
    setting("base", "some/base"),
    setting("base.model", 7),
    setting("base.quantization", "nf3"),
    setting("base.context_tokens", "long"),
    setting("prompt", ["{document}"]),
    setting("training.max_steps", 1.5),
    setting("training.packing", "perhaps"),
    setting("training.learning_rate", "fast"),
    setting("adapter.target_modules", 3),
    setting("adapter.target_modules", []),
    setting("adapter.kind", "ia3"),
    setting("evaluation.stop", 3),
    setting("gate.metric", "bleu"),
    # values that cannot be
    setting("training.num_train_epochs", -1),
    setting("training.learning_rate", float("inf")),
    setting("training.learning_rate", float("nan")),
    setting("training.max_length", 0),
    setting("training.seed", -1),
    setting("training.seed", 10**4000),
    setting("adapter.r", 0),
    setting("adapter.lora_dropout", 1.5),
    setting("data.evaluation_share", 1),
    setting("data.max_rejected_share", 2),
    setting("data.train_rows", 0),
    setting("gate.alpha", 0),
    setting("base.context_tokens", 10**9, "base.context_tokens"),
    setting(
        "evaluation.max_new_tokens", 5000, r"evaluation.max_new_tokens \(5000\) leaves no room"
    ),
    setting("evaluation.cluster", "dask:nowhere"),
    # settings that exclude each other, or need another
    setting("base.rope", "ntk", "rope is ntk, but context_tokens is not set"),
    setting("prompt.template", "Summarize.", "must hold {document}"),
    setting("prompt.template", "{document} {document}", "must hold {document}"),
    setting("prompt.system", "Answer.", "need format: chat"),
    setting("prompt.max_source_tokens", 4000, "prompt.max_source_tokens"),
    setting("prompt.chat_template", "llama-2", "need format: chat"),
    setting("adapter.target_modules", ["q_projj"], "has no layer q_projj"),
    setting("adapter.target_modules", ["lm_head"], "lm_head cannot be adapted"),
    setting("data.fields", {"text": "a", "document": "b"}, "text replaces document"),
    setting("base.model", "./gone", "no such folder"),
    setting("base.model", "acme/base", "pin it with base.revision"),
    setting("base.model", "/dev/null", "is a file; name the folder"),
    setting("base.model", "x" * 5000, "base.model"),
]
