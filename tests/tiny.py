"""Tiny but real inputs for tests: a random Llama with its own tokenizer, and rows to train it on.

Everything is made from seeds, offline, in about a second, and the same on every machine.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Row, to_json
from tasks.models import find_base, package
from tasks.models.prepared_base import BaseFolder, PreparedBase
from tasks.serving.summarizer import SummarizerSettings

NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry")
THINGS = ("a ticket", "the report", "a new bike", "two lamps", "some tea", "the old map")
PLACES = ("the market", "the station", "the office", "her garden", "the library")
SPECIAL = ("<pad>", "<s>", "</s>")  # ids 0, 1, 2
VOCABULARY = 512


def make_rows(n: int, seed: int = 0) -> list[Row]:
    """`n` short dialogues with summaries, each its own source; other seeds give other dialogues."""
    return [_row(f"row-{seed}-{i}", random.Random(f"{seed}/{i}")) for i in range(n)]


def _row(name: str, rng: random.Random) -> Row:
    first, second = rng.sample(NAMES, 2)
    thing, place = rng.choice(THINGS), rng.choice(PLACES)
    lines = [
        f"{first}: Hello {second}, I am looking for {thing}.",
        f"{second}: You can find {thing} at {place}.",
    ]
    lines += [f"{rng.choice((first, second))}: Yes, yes."] * rng.randrange(4)
    summary = f"{second} tells {first} to look for {thing} at {place}."
    return Row(id=name, source=name, document="\n".join(lines), references=(summary,))


def write_rows(path: Path, rows: list[Row]) -> Path:
    """The rows as canonical JSONL, as ingest writes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(to_json(row) + "\n" for row in rows))
    return path


def make_recipe(base: Path, /, **parts: Any) -> Recipe:
    """A recipe over `base`; `parts` are its groups of settings: training={"max_steps": 3}."""
    return Recipe.model_validate(
        {"name": "tiny", "data": {"train": "rows.jsonl"}}
        | parts
        | {
            "base": {"model": str(base)} | parts.get("base", {}),
            "training": {"max_length": 256} | parts.get("training", {}),
            "evaluation": {"max_new_tokens": 32} | parts.get("evaluation", {}),
        }
    )


def prepared(base: Path, recipe: Recipe | None = None) -> PreparedBase:
    """The folder `base` as find_base prepares it for `recipe` (None: make_recipe's defaults)."""
    folder = BaseFolder.read(base)
    return find_base.prepare(recipe or make_recipe(base), folder, digest.of_folder(base))


def packaged(base: Path, folder: Path, settings: SummarizerSettings) -> Path:
    """A base as a package with these settings, in `folder`."""
    return Path(package.package_base(prepared(base), settings, folder).path)


def edit_package(folder: Path, old: str, new: str) -> None:
    """Change the code that a package carries, in the one file that holds `old`."""
    [file] = [f for f in (folder / "summarizer").glob("*.py") if old in f.read_text()]
    file.write_text(file.read_text().replace(old, new))


def make_tiny_base(
    folder: Path,
    shards: int = 1,
    hidden: int = 64,
    layers: int = 2,
    context: int = 512,
    tied: bool = True,
    seed: int = 0,
) -> Path:
    """A random Llama (bf16, every size a multiple of 32) in `folder`, in exactly `shards` files."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        initializer_range=0.1,  # ten times less leaves all logits nearly equal
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if tied:
        del tensors["lm_head.weight"]
    _write_shards(folder, tensors, shards)
    return folder


def _write_shards(folder: Path, tensors: dict[str, Any], shards: int) -> None:
    from safetensors.torch import save_file

    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = names[number::shards]  # neighbours fall apart, as at the borders of real shards
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=2)
    )


def make_tokenizer(folder: Path) -> None:
    """A byte-level BPE tokenizer (at most 512 entries) that puts <s> before every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rows = make_rows(200, seed=-1)
    tokenizer.train_from_iterator([f"{r.document}\n{r.references[0]}" for r in rows], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ).save_pretrained(folder)
