"""Bases with one fault: files, formats, headers, tensors, numbers, values in config.json, tokenizers.

Over 250 lines, since it is one list of cases.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from broken_inputs import Case, recipe_of, write_recipe

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
EMBEDDING = "model.embed_tokens.weight"
Header = dict[str, Any]


def base(name: str, change: Callable[[Path], Any], words: str, **parts: Any) -> Case:
    """A whole base, changed in its folder."""

    def make(folder: Path, whole: Path) -> Path:
        shutil.copytree(whole, folder / "base")
        change(folder / "base")
        return write_recipe(folder, recipe_of(folder, folder / "base", **parts))

    return Case(f"base-{name}", make, words)


def config(words: str, name: str = "", **values: Any) -> Case:
    """Values in config.json; None takes one out."""

    def change(folder: Path) -> None:
        given = json.loads((folder / "config.json").read_text()) | values
        kept = {key: value for key, value in given.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    label = ",".join(f"{key}={str(value)[:20]}" for key, value in values.items())
    return base(f"config-{name or label.replace('/', '_')}", change, words)


def content(file: str, text: str | bytes, words: str, name: str) -> Case:
    """Other content of one file."""
    made = text.encode() if isinstance(text, str) else text
    return base(name, lambda folder: (folder / file).write_bytes(made), words)


def parts_of(path: Path) -> tuple[Header, bytes]:
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    return json.loads(whole[8 : 8 + length]), whole[8 + length :]


def put(path: Path, header: Any, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def header(name: str, change: Callable[[Header], Any], words: str = "cannot be read") -> Case:
    """The header of the weights changed; the numbers stay."""

    def make(folder: Path) -> None:
        entries, data = parts_of(folder / WEIGHTS)
        changed = change(entries)
        put(folder / WEIGHTS, entries if changed is None else changed, data)

    return base(f"header-{name}", make, rf"{WEIGHTS} {words}")


def tensors(name: str, change: Callable[[dict[str, Any]], Any], words: str) -> Case:
    """The weights themselves changed, and written as they should be."""

    def make(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        loaded = load_file(folder / WEIGHTS)
        change(loaded)
        save_file(loaded, folder / WEIGHTS, {"format": "pt"})

    return base(f"tensors-{name}", make, words)


def cut(folder: Path, count: int) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:count])


def rename(folder: Path, to: str) -> None:
    (folder / to).parent.mkdir(exist_ok=True)
    (folder / WEIGHTS).rename(folder / to)


def index(folder: Path, text: str) -> None:
    rename(folder, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(text)


def sparse(file: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        with (folder / file).open("wb") as stream:
            stream.truncate(2**30)

    return make


def pipe(file: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / file).unlink()
        os.mkfifo(folder / file)

    return make


def adapter(folder: Path, whole: bool) -> None:
    values = {"peft_type": "LORA", "base_model_name_or_path": "acme/original"}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    if not whole:
        rename(folder, "adapter_model.safetensors")
        (folder / "config.json").unlink()


def of_one(dtype: str) -> Callable[[dict[str, Any]], None]:
    def change(loaded: dict[str, Any]) -> None:
        import torch

        loaded[DOWN] = loaded[DOWN].to(getattr(torch, dtype))

    return change


def number(name: str, value: float) -> Callable[[dict[str, Any]], None]:
    def change(loaded: dict[str, Any]) -> None:
        loaded[name].view(-1)[-1] = value

    return change


def shape(name: str, *sizes: int) -> Callable[[dict[str, Any]], None]:
    def change(loaded: dict[str, Any]) -> None:
        import torch

        loaded[name] = torch.ones(sizes, dtype=torch.bfloat16)

    return change


def entry(name: str, **values: Any) -> Callable[[Header], None]:
    return lambda entries: entries[name].update(values)


def spoiled_index(weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: index(folder, json.dumps({"weight_map": weight_map}))


SHARD = "model-00001-of-00001.safetensors"
NO_WEIGHTS = f"has no {WEIGHTS} and no"
BASES = [
    # the folder's files
    base("empty-folder", lambda f: [path.unlink() for path in f.iterdir()], "has no config.json"),
    base(
        "no-config", lambda f: (f / "config.json").unlink(), "has no config.json; point base.model"
    ),
    base("no-weights", lambda f: (f / WEIGHTS).unlink(), NO_WEIGHTS),
    base("no-tokenizer", lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    base("outer-folder", lambda f: shutil.move(f / WEIGHTS, f.parent), NO_WEIGHTS),
    base("weights-in-a-folder", lambda f: rename(f, f"inner/{WEIGHTS}"), "have|has them: inner"),
    base(
        "adapter", lambda f: adapter(f, whole=False), "is an adapter on acme/original, not a model"
    ),
    base("adapter-and-model", lambda f: adapter(f, whole=True), "a whole model and an adapter"),
    base("pytorch", lambda f: rename(f, "pytorch_model.bin"), "PyTorch's .bin format"),
    base("pth", lambda f: rename(f, "consolidated.00.pth"), "PyTorch's .bin format"),
    base("gguf", lambda f: rename(f, "tiny.Q4_K_M.gguf"), "in GGUF .*; name the original"),
    base("tensorflow", lambda f: rename(f, "tf_model.h5"), "TensorFlow's format"),
    base("flax", lambda f: rename(f, "flax_model.msgpack"), "Flax's format"),
    base("onnx", lambda f: rename(f, "model.onnx"), "in ONNX"),
    base("consolidated", lambda f: rename(f, "consolidated.safetensors"), "Mistral's and Meta's"),
    base("variant", lambda f: rename(f, "model.fp16.safetensors"), "a variant"),
    base("no-index", lambda f: rename(f, SHARD), "no shards without their index"),
    base(
        "shard-missing", spoiled_index({NORM: "model-00002-of-00002.safetensors"}), "lacks weights"
    ),
    base(
        "index-outside", spoiled_index({NORM: "../model.safetensors"}), "no .safetensors beside it"
    ),
    base("index-absolute", spoiled_index({NORM: "/etc/passwd"}), "no .safetensors beside it"),
    base("index-of-numbers", spoiled_index({NORM: 3}), "no .safetensors beside it"),
    base("index-list", spoiled_index([NORM]), 'no "weight_map"'),
    base("index-empty", spoiled_index({}), 'no "weight_map"'),
    base("index-cut-short", lambda f: index(f, '{"weight_map": {"a"'), "is not valid JSON"),
    base("config-pipe", pipe("config.json"), "has no config.json"),
    base("config-gigabyte", sparse("config.json"), "has 1,073,741,824 bytes"),
    base("tokenizer-gigabyte", sparse("tokenizer.json"), "has 1,073,741,824 bytes"),
    # the weights' file
    content(WEIGHTS, b"", "ends within its header|is empty", "weights-empty"),
    content(WEIGHTS, b"\0" * 4096, "cannot be read", "weights-zeros"),
    content(WEIGHTS, bytes(range(256)) * 9, "cannot be read", "weights-garbage"),
    content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\n", "git lfs pull", "weights-lfs"),
    content(WEIGHTS, "<!DOCTYPE html><html></html>", "it is a web page", "weights-web-page"),
    base("weights-1-byte-less", lambda f: cut(f, -1), r"it has \d+ bytes, its header names"),
    base("weights-half", lambda f: cut(f, 60_000), r"it has \d+ bytes, its header names"),
    base("weights-header-alone", lambda f: cut(f, 100), "ends within its header"),
    base("weights-longer", lambda f: (f / WEIGHTS).open("ab").write(b"x" * 9), "its header names"),
    header("list", lambda _: [1, 2]),
    header("no-json", lambda _: b'{"a": '),
    header("no-utf-8", lambda _: b'{"\xff": 1}'),
    header("nested", lambda _: b'{"a": ' + b"[" * 20_000),
    header("empty", lambda _: {}),
    header("no-shape", lambda h: h[NORM].pop("shape") and None),
    header("negative-shape", entry(NORM, shape=[-64])),
    header("text-shape", entry(NORM, shape=["64"])),
    header("huge-shape", entry(NORM, shape=[2**62, 2**62])),
    header("unknown-type", entry(NORM, dtype="F13")),
    header("type-of-other-width", entry(NORM, dtype="F32")),
    header("offsets-swapped", lambda h: h[NORM]["data_offsets"].reverse()),
    header("offsets-elsewhere", lambda h: h[NORM].update(data_offsets=h[DOWN]["data_offsets"])),
    header("offsets-past-the-end", entry(NORM, data_offsets=[10**9, 10**9 + 128])),
    header("metadata-of-numbers", lambda h: h.update(__metadata__={"a": 1})),
    # the tensors
    tensors("norm-missing", lambda t: t.pop(NORM), f"lacks weights .*{NORM}"),
    tensors("embedding-missing", lambda t: t.pop(EMBEDDING), EMBEDDING),
    tensors("extra", shape("score.weight", 2, 64), "has no place for: score.weight"),
    tensors("wrong-shape", shape(NORM, 32), "of other shapes"),
    tensors("transposed", shape(DOWN, 128, 64), "of other shapes"),
    tensors("nan", number(NORM, float("nan")), f"NaN or infinite in {NORM}"),
    tensors("inf", number(DOWN, float("inf")), f"NaN or infinite in {DOWN}"),
    tensors("float8", of_one("float8_e4m3fn"), "as F8_E4M3"),
    tensors("int8", of_one("int8"), "as I8"),
    tensors("mixed-types", of_one("float32"), "adapted as BF16, F32"),
    # config.json
    content("config.json", "[]", "holds a JSON list", "config-list"),
    content("config.json", '{"model_type": ', "is not valid JSON", "config-cut-short"),
    content("config.json", '{"a": "caf\xe9"}'.encode("latin-1"), "is not UTF-8", "config-latin-1"),
    content("config.json", "[" * 100_000, "is not valid JSON", "config-nested"),
    content("config.json", b"", "it is empty", "config-empty"),
    config("model_type", model_type=None),
    config("model_type", model_type=3),
    config("model_type", model_type=["llama"]),
    config("no language model of .* acme", model_type="acme"),
    config("names code of its own", model_type="acme", auto_map={"AutoModel": "a.B"}),
    config("t5", model_type="t5"),
    config("an encoder", model_type="bert"),
    config("an encoder and decoder", model_type="bart", is_encoder_decoder=True),
    config("Conv1D", model_type="gpt2"),
    config("is quantized already", quantization_config={"quant_method": "gptq"}),
    config("hidden_size must be a whole number", hidden_size="64"),
    config("has no hidden_size", hidden_size=None),
    config("hidden_size is 1073741824, and the largest", hidden_size=2**30),
    config("vocab_size must be", vocab_size=0),
    config("of other shapes", vocab_size=256),
    config("num_hidden_layers must be", num_hidden_layers=-2),
    config("num_hidden_layers is 1000000000", num_hidden_layers=10**9),
    config("lacks weights|has no place", num_hidden_layers=1),
    config("num_attention_heads 3", num_attention_heads=3),
    config("num_attention_heads must be", num_attention_heads=0),
    config("is no multiple of num_key_value_heads", num_key_value_heads=3),
    config("head_dim must be", head_dim=-4),
    config("max_position_embeddings must be", max_position_embeddings="512"),
    config("rope_parameters must be an object", rope_parameters=[1]),
    config("rope_type|nope", rope_parameters={"rope_type": "nope", "rope_theta": 1e4}),
    config("factor must be", rope_scaling={"rope_type": "linear", "factor": -2}),
    config("rope_theta must be", rope_parameters={"rope_type": "default", "rope_theta": "big"}),
    config("rms_norm_eps", rms_norm_eps="small"),
    config("rms_norm_eps must be above 0", rms_norm_eps=-1e-6),
    config("attention_dropout must be from 0 to 1", attention_dropout=3),
    config("hidden_act|nope", hidden_act="nope"),
    config("tie_word_embeddings", tie_word_embeddings="no"),
    config("lacks weights .*lm_head", tie_word_embeddings=False),
    config("eos_token_id is 99999", eos_token_id=99999),
    config("eos_token_id is 'x'", eos_token_id="x"),
    config("pad_token_id is 512", pad_token_id=512),
    config("dtype|float99", dtype="float99"),
    config("architectures", architectures="x"),
    config("transformers_weights", transformers_weights="../x.safetensors"),
    # tokenizers
    content("tokenizer.json", "{}", "tokenizers library reads", "tokenizer-empty-object"),
    content(
        "tokenizer.json", '{"version": "1.0", "tr', "tokenizers library reads", "tokenizer-cut"
    ),
    content("tokenizer.json", bytes(range(256)), "tokenizers library reads", "tokenizer-garbage"),
    content("tokenizer_config.json", "[1]", "holds a JSON list", "tokenizer-config-list"),
    content("tokenizer_config.json", '{"a', "is not valid JSON", "tokenizer-config-cut-short"),
    content(
        "generation_config.json", '{"max_length": "x"}', "max_length must be", "generation-text"
    ),
    content("generation_config.json", '{"eos_token_id": [-3]}', "eos_token_id", "generation-eos"),
]
