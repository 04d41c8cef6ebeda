"""Training a tiny model in this process: its result, its repetition and its errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from safetensors import safe_open

from tasks.contracts import digest
from tasks.contracts.errors import DataError, TrainingError
from tasks.models.encoding import IGNORED, encode_rows
from tasks.train import qlora

STEPS = {"max_steps": 4, "learning_rate": 1e-2, "save_steps": 3, "logging_steps": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_rows(tmp_path_factory.mktemp("rows") / "train.jsonl", tiny.make_rows(24))


def train(rows: Path, base: Path, folder: Path, /, **parts: Any) -> dict[str, Any]:
    # The recipe names the base as a user does; where it lies is this machine's affair.
    parts = {"base": {"model": "models/tiny"}, "training": STEPS} | parts
    recipe = tiny.make_recipe(base, **parts)
    return qlora.train(
        str(rows),
        tiny.prepared(base, recipe).as_json(),
        recipe.model_dump(mode="json"),
        str(folder),
    )


@pytest.fixture(scope="module")
def answer(rows: Path, base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return train(rows, base, tmp_path_factory.mktemp("job"))


def test_the_adapter_is_two_files_that_name_no_machine(answer: dict[str, Any]) -> None:
    """The digest depends on weights and recipe, not on where the base lies."""
    folder = Path(answer["adapter"])
    assert {p.name for p in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    with safe_open(folder / "adapter_model.safetensors", "pt") as tensors:
        assert tensors.metadata() == {"compute_dtype": "float32"}
        assert {tensors.get_slice(n).get_dtype() for n in tensors.keys()} == {"F32"}  # noqa: SIM118
    assert answer["digest"] == digest.of_folder(folder)


def test_metrics_say_what_it_took(answer: dict[str, Any]) -> None:
    """Loss falls; tokens exclude padding; all are numbers."""
    metrics = answer["metrics"]
    assert metrics["steps"] == 4
    assert metrics["rows"] == 24
    assert metrics["last_loss"] < metrics["first_loss"]
    assert 0 < metrics["completion_tokens"] < metrics["tokens"]
    assert metrics["train_loss"] > 0
    assert metrics["trainable_parameters"] > 0
    assert 0.1 < metrics["peak_memory_gib"] < 8
    assert all(isinstance(value, (int, float)) for value in metrics.values())
    assert set(metrics) >= {"seconds", "tokens_per_second", "seconds_per_step", "epochs"}
    assert metrics["truncated_rows"] == 0


def test_a_finished_job_is_not_trained_again(
    answer: dict[str, Any], rows: Path, base: Path
) -> None:
    """The same call gives the same answer at once; its checkpoints are gone."""
    folder = Path(answer["adapter"]).parent
    assert not (folder / "checkpoints").exists()
    changed = (folder / "adapter" / "adapter_config.json").stat().st_mtime_ns
    assert train(rows, base, folder) == answer
    assert (folder / "adapter" / "adapter_config.json").stat().st_mtime_ns == changed


def test_another_seed_is_another_job_and_the_same_seed_the_same_weights(
    answer: dict[str, Any], rows: Path, base: Path, tmp_path: Path
) -> None:
    """A folder used by another job is emptied first; weights follow from the recipe."""
    other = train(rows, base, tmp_path, training=STEPS | {"seed": 7})
    assert other["digest"] != answer["digest"]
    assert train(rows, base, tmp_path)["digest"] == answer["digest"]


def test_plain_lora_without_packing_trains_too(rows: Path, base: Path, tmp_path: Path) -> None:
    """quantization none, packing off, two micro-batches a step, activations checkpointed."""
    more = {"packing": False, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    parts = {"base": {"model": "m", "quantization": "none"}, "training": STEPS | more}
    found = train(rows, base, tmp_path, **parts, adapter={"target_modules": ["q_proj", "v_proj"]})
    assert found["metrics"]["last_loss"] < found["metrics"]["first_loss"]


def test_a_loss_that_is_no_number_stops_the_run(rows: Path, base: Path, tmp_path: Path) -> None:
    """It says at which step, and what to lower; no adapter is left."""
    with pytest.raises(
        TrainingError, match=r"is (nan|inf) at step \d of 4: lower training.learning_rate"
    ):
        train(rows, base, tmp_path, training=STEPS | {"learning_rate": 1e30, "max_grad_norm": 1e30})
    assert not (tmp_path / "adapter").exists()


def test_target_modules_that_the_base_lacks_are_refused(
    rows: Path, base: Path, tmp_path: Path
) -> None:
    """Before anything is loaded, as an error of the recipe's, with the layers that it has."""
    message = (
        r"does not fit this base model:\nadapter.target_modules: .* no layer query_key; it has down"
    )
    with pytest.raises(TrainingError, match=message):
        train(rows, base, tmp_path, adapter={"target_modules": ["query_key"]})


def test_no_rows_are_refused(base: Path, tmp_path: Path) -> None:
    """An empty file trains nothing."""
    rows = tiny.write_rows(tmp_path / "train.jsonl", [])
    with pytest.raises(DataError, match="hold no rows"):
        train(rows, base, tmp_path / "job")


def test_a_completion_past_the_limit_is_cut_and_counted(base: Path) -> None:
    """It loses its end-of-text with its end; its prompt is whole."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = tiny.prepared(base).settings
    whole = encode_rows(tiny.make_rows(3), tokenizer, settings, 200)
    longest = max(map(len, whole.input_ids))
    cut = encode_rows(tiny.make_rows(3), tokenizer, settings, longest - 1)
    assert (whole.truncated, cut.truncated) == (0, sum(len(i) == longest for i in whole.input_ids))
    at = max(range(3), key=lambda i: len(whole.input_ids[i]))
    assert cut.input_ids[at] == whole.input_ids[at][:-1]
    assert whole.input_ids[at][-1] == tokenizer.eos_token_id
    assert cut.labels[at] == whole.labels[at][:-1]
    assert cut.labels[at].count(IGNORED) == whole.labels[at].count(IGNORED)


def test_every_reference_is_learned(base: Path) -> None:
    """A document with two references gives two examples with one prompt."""
    from dataclasses import replace

    from transformers import AutoTokenizer

    row = replace(tiny.make_rows(1)[0], references=("One.", "Two."))
    settings = tiny.prepared(base).settings
    encoded = encode_rows([row], AutoTokenizer.from_pretrained(base), settings, 200)
    prompts = [
        [i for i, label in zip(ids, labels, strict=True) if label == IGNORED]
        for ids, labels in zip(encoded.input_ids, encoded.labels, strict=True)
    ]
    assert prompts[0] == prompts[1]
    assert encoded.input_ids[0] != encoded.input_ids[1]
