"""The demo's data and base model are what deployments/demo/README.md says they are."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml

from tasks.contracts.recipe import Recipe
from tasks.models.prepared_base import read_config

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deployments/demo"
SPLITS = ("train", "evaluation", "fresh")
DAY = re.compile(r"\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day\b")


def read(split: str) -> list[dict[str, str]]:
    lines = (DEMO / f"data/{split}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict[str, str]]]:
    return {split: read(split) for split in SPLITS}


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.model_validate(
        yaml.safe_load((ROOT / "deployments/recipes/demo.yaml").read_text())
    )


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(DEMO))
    return importlib.import_module("make_dialogues")


def test_the_generator_writes_the_committed_bytes(tmp_path: Path) -> None:
    """The same seed gives the same files, in a fresh process."""
    script = DEMO / "make_dialogues.py"
    subprocess.run([sys.executable, script, "--out", tmp_path], check=True, cwd=tmp_path)
    for split in SPLITS:
        name = f"{split}.jsonl"
        assert (tmp_path / name).read_bytes() == (DEMO / "data" / name).read_bytes()


def test_the_data_are_small() -> None:
    """The files together stay below 1.5 MB."""
    assert sum(path.stat().st_size for path in (DEMO / "data").iterdir()) < 1_500_000


def test_the_agreed_day_must_be_found(rows: dict[str, list[dict[str, str]]]) -> None:
    """The first turns seldom name it; the first day named is mostly wrong, the last not always right."""
    stated = early = first = last = 0
    for row in rows["evaluation"]:
        if day := DAY.search(". ".join(row["summary"].split(". ")[:2])):
            named = DAY.findall(row["dialogue"])
            stated += 1
            early += day[0] in "\n".join(row["dialogue"].split("\n")[:3])
            first += named[0] == day[0]
            last += named[-1] == day[0]
    assert stated > 0.7 * len(rows["evaluation"])
    assert early < 0.1 * stated
    assert first < 0.5 * stated
    assert last < 0.9 * stated


def test_a_summary_quotes_nobody(rows: dict[str, list[dict[str, str]]]) -> None:
    """No sentence of a summary stands in its dialogue."""
    for row in (row for split in SPLITS for row in rows[split]):
        for sentence in row["summary"].split(". "):
            assert sentence.rstrip(".") not in row["dialogue"]


def test_rows_are_distinct(rows: dict[str, list[dict[str, str]]]) -> None:
    """No dialogue twice, and no training dialogue close to an evaluation or fresh dialogue."""
    everything = [row["dialogue"] for split in SPLITS for row in rows[split]]
    assert len(set(everything)) == len(everything)
    holders: dict[tuple[str, ...], list[int]] = {}
    training = [grams(row["dialogue"]) for row in rows["train"]]
    for number, found in enumerate(training):
        for gram in found:
            holders.setdefault(gram, []).append(number)
    for row in rows["evaluation"] + rows["fresh"]:
        mine = grams(row["dialogue"])
        shared = Counter(number for gram in mine for number in holders.get(gram, ()))
        for number, count in shared.items():
            assert count / len(mine | training[number]) < 0.8


def grams(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def test_no_combination_of_facts_is_on_both_sides(generator: Any) -> None:
    """What evaluation and fresh rows ask for is in no training row, in no text of the base, and in
    no row of the other."""
    combinations = {}
    for split in SPLITS:
        scenes = generator.scenes_of(split)
        assert len(scenes) == generator.SIZES[split]
        combinations[split] = {scene.combination for scene in scenes}
        side = (
            "train" if split == "train" else "evaluation"
        )  # the base has read the train side only
        assert {generator.split_of(scene) for scene in scenes} == {side}
    assert not combinations["train"] & combinations["evaluation"]
    assert not combinations["train"] & combinations["fresh"]
    assert not combinations["evaluation"] & combinations["fresh"]


def test_the_base_has_read_no_summary(generator: Any) -> None:
    """Its text holds conversations of the training side, no request and no summary."""
    pretrain = importlib.import_module("pretrain")
    text = "\n".join(pretrain.passages(7, 400))
    assert "ummar" not in text
    found = generator.scenes(f"pretrain-{pretrain.SEED}-7", "train")
    for _ in range(400):
        assert next(found).summary not in text


def test_the_base_is_small_and_fits_the_kernels() -> None:
    """8 MiB at most, and every size a multiple of 32."""
    assert sum(path.stat().st_size for path in (DEMO / "base").iterdir()) <= 8 * 1024**2
    config = read_config(DEMO / "base")
    names = (
        "hidden_size",
        "intermediate_size",
        "vocab_size",
        "head_dim",
        "max_position_embeddings",
    )
    assert [config[name] % 32 for name in names] == [0] * len(names)


def test_rows_fit_the_base_and_the_recipe(
    rows: dict[str, list[dict[str, str]]], recipe: Recipe
) -> None:
    """No prompt is cut, and no reference is longer than a summary may be."""
    from transformers import AutoTokenizer

    from tasks.serving.summarizer import encode_completion, fit

    base = ROOT / recipe.base.model
    tokenizer = AutoTokenizer.from_pretrained(base)
    assert tokenizer("Hi")["input_ids"][0] == tokenizer.bos_token_id
    settings = tiny.prepared(base, recipe).settings
    for row in (row for split in SPLITS for row in rows[split]):
        assert fit(tokenizer, row["dialogue"], settings)[1] == 0
        assert len(encode_completion(tokenizer, row["summary"])) <= settings.max_new_tokens


def test_the_base_loads_and_knows_conversations(rows: dict[str, list[dict[str, str]]]) -> None:
    """transformers loads the folder; a dialogue it has not seen costs less than a nat a token."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(DEMO / "base")
    model = AutoModelForCausalLM.from_pretrained(DEMO / "base", dtype=torch.float32)
    ids = tokenizer(rows["evaluation"][0]["dialogue"], return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        assert model(input_ids=ids, labels=ids).loss < 1
