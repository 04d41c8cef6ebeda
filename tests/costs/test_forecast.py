"""The forecast of precis check and the report: against measured runs, and in proportion to the work.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_preflight import headers_of_llama_7b

from tasks.contracts.recipe import Recipe
from tasks.contracts.records import Cost, read_rows
from tasks.costs import (
    batches,
    calibration,
    forecast,
    hardware_speed,
    memory_plan,
    model_sizes,
    preflight,
    step_costs,
    training_memory,
)
from tasks.ingest.prepare import prepare
from tasks.models import encoding
from tasks.models.prepared_base import BaseFolder
from tasks.models.safetensors_headers import tensor_shapes

CPU = hardware_speed.Speed("cpu", "cpu", 100e9, 20e9)
FULL = memory_plan.Plan(selective=True, recomputed=32)
LEAST = memory_plan.Plan(selective=True, recomputed=32, offload=True)
# Rows and length of a micro-batch, plan, milliseconds a step: docs/benchmarks.md, Llama-2-7B's shape
# on one H200, 2026-11-21.
MEASURED = [
    (4, 2048, memory_plan.Plan(resident=True), 397.3),
    (4, 2048, memory_plan.Plan(), 431.5),
    (4, 2048, memory_plan.Plan(selective=True), 440.1),
    (4, 2048, FULL, 681.6),
    (1, 2112, LEAST, 424.7),
]


@pytest.mark.parametrize(("size", "length", "plan", "milliseconds"), MEASURED)
def test_a_gpus_step_is_estimated_within_a_fifth(
    tmp_path: Path, size: int, length: int, plan: memory_plan.Plan, milliseconds: float
) -> None:
    """From headers and the card's name alone, for all ways to train."""
    base = headers_of_llama_7b(tmp_path / "base")
    training = {"max_length": length, "per_device_train_batch_size": size}
    recipe = tiny.make_recipe(base, training=training)
    shape = model_sizes.shape_of(recipe, BaseFolder.read(base).config, tensor_shapes(base))
    card = hardware_speed.of_gpu("NVIDIA H200")
    assert shape
    assert card
    estimated = 1000 * batches.gpu_batch_seconds(shape, plan, card)
    assert estimated == pytest.approx(milliseconds, rel=0.2)


@pytest.mark.parametrize(("slots", "seconds", "gib"), [(256, 8.16, 67.0), (500, 7.65, 101.0)])
def test_continuous_writing_is_estimated_within_a_fifth(
    slots: int, seconds: float, gib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """500 dialogues, 128 tokens each, Llama-2-7B's shape on one H200, 2026-11-22 (docs/benchmarks.md)."""
    monkeypatch.setattr(preflight.device, "compute", lambda: "cuda")
    monkeypatch.setattr(preflight, "_memory_bytes", lambda: 139 * 2**30)
    base = headers_of_llama_7b(tmp_path / "base")
    writing = {"max_new_tokens": 128, "batch_size": slots if slots > 256 else 16}
    recipe = tiny.make_recipe(base, evaluation=writing, training={"max_length": 2048})
    rows = batches.RowCounts(500, 500, 114_852, 64_000, 230, 790, 127)
    card = hardware_speed.of_gpu("NVIDIA H200")
    assert card
    expected = preflight.estimate(recipe, BaseFolder.read(base), tmp_path)
    run = forecast.RunForecast(recipe, BaseFolder.read(base), expected, card, rows, rows, 0)
    model = model_sizes.ModelSizes.of(recipe, BaseFolder.read(base))
    loading = (
        calibration.START_SECONDS["cuda"]["evaluate"]
        + 2 * model.parameters / calibration.LOAD_RATE["cuda"]
    )
    steps = run.steps()
    challenger = steps["challenger"]
    assert challenger.seconds
    assert challenger.seconds - loading == pytest.approx(seconds, rel=0.2)
    assert challenger.memory_gib == pytest.approx(gib, rel=0.2)
    # The known recipes' merges with their drift checks took 26 to 28 s there.
    merged, drift = steps["merge"].seconds, steps["drift"].seconds
    assert merged
    assert drift
    assert merged + drift == pytest.approx(27, rel=0.2)


def test_a_spread_model_is_estimated_as_it_will_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By `generate`, in the recipe's own batches; each of two processes has the whole on one GPU."""
    monkeypatch.setattr(preflight.device, "compute", lambda: "cuda")
    monkeypatch.setattr(preflight.device, "count", lambda: 2)
    monkeypatch.setattr(preflight.device, "memory_bytes", lambda: 12 * 2**30)
    monkeypatch.setattr(preflight, "_memory_bytes", lambda: 11 * 2**30)
    base = headers_of_llama_7b(tmp_path / "base")
    rows = batches.RowCounts(500, 500, 114_852, 64_000, 230, 790, 127)
    card = hardware_speed.of_gpu("NVIDIA H200")
    assert card
    for devices, way, at_once in ((1, "cuda", 16), (2, "continuous", 1)):
        recipe = tiny.make_recipe(base, evaluation={"batch_size": 16, "devices": devices})
        folder = BaseFolder.read(base)
        estimate = preflight.estimate(recipe, folder, tmp_path)
        run = forecast.RunForecast(recipe, folder, estimate, card, rows, rows, 0)
        assert (run.decoding(), run.documents_at_once()[0]) == (way, at_once)


def test_cards_are_known_by_whole_names() -> None:
    """Neither an L40 for an L4 nor an A100 for an A10; others are unknown."""
    assert hardware_speed.of_gpu("NVIDIA L40") is None
    assert hardware_speed.of_gpu("NVIDIA GeForce GTX 1080") is None
    for name, tera in (("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L4", 121), ("Tesla T4", 65)):
        speed = hardware_speed.of_gpu(name)
        assert speed
        assert speed.products == pytest.approx(tera * 1e12 * hardware_speed.PRODUCTS_SHARE)


def test_this_machine_is_measured() -> None:
    """Rates that a computer can have, in less than a second."""
    begun = time.monotonic()
    speed = hardware_speed.this_machine()
    assert time.monotonic() - begun < 5
    assert speed
    assert 1e8 < speed.products < 1e14
    assert 1e8 < speed.stream < 1e13


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


def ingested(folder: Path, base: Path, count: int, **parts: Any) -> tuple[Recipe, dict[str, Any]]:
    """A recipe over `count` rows, and the data report of its ingest."""
    folder.mkdir()
    lines = [
        {"document": f"{row.document} {row.id}"}
        | {"summary": [*row.references, f"{row.id} in short."]}
        for row in tiny.make_rows(count)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    # Rows of few words are near duplicates of each other.
    data = {"train": str(folder / "rows.jsonl"), "near_duplicate_jaccard": 1.0}
    data["near_duplicate_containment"] = 1.0
    recipe = tiny.make_recipe(base, data=data, **parts)
    settings = tiny.prepared(base, recipe).settings
    prepare(recipe.data, recipe.prompt, settings, base, folder / "out")
    return recipe, json.loads((folder / "out" / "report.json").read_text())


def test_the_report_counts_the_tokens_that_are_trained_on(tmp_path: Path, base: Path) -> None:
    """Every reference after its prompt, cut as training cuts it, ends and completions included."""
    from transformers import AutoTokenizer

    parts = {"prompt": {"max_source_tokens": 60}}
    recipe, report = ingested(tmp_path / "rows", base, 60, **parts)
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = read_rows(tmp_path / "rows/out/train.jsonl")
    encoded = encoding.encode_for(rows, tokenizer, tiny.prepared(base, recipe))
    assert report["train"]["truncated_prompts"]["count"] > 0
    assert report["train"]["sequences"] == {
        "count": len(encoded.input_ids),
        "tokens": sum(map(len, encoded.input_ids)),
        "completion_tokens": sum(
            label != encoding.IGNORED for labels in encoded.labels for label in labels
        ),
    }


def test_every_step_is_estimated_and_more_work_takes_longer(tmp_path: Path, base: Path) -> None:
    """Four times the rows: training takes nearly four times as long, a process's start no longer."""
    forecasts = {}
    for count in (200, 800):
        recipe, report = ingested(tmp_path / str(count), base, count)
        prepared = tiny.prepared(base, recipe)
        forecasts[count] = forecast.forecast_steps(recipe, prepared, report, CPU)
        assert forecasts[count] == forecast.forecast_steps(recipe, prepared, report, CPU)
    few, many = forecasts[200], forecasts[800]
    assert tuple(few) == step_costs.STEPS
    for step in step_costs.STEPS:
        assert few[step].seconds
        assert (few[step].memory_gib is None) == (step == "drift")
    start = calibration.START_SECONDS["cpu"]["train"]
    work = [steps["train"].seconds - start for steps in (few, many) if steps["train"].seconds]
    assert work[1] / work[0] == pytest.approx(4, rel=0.15)
    assert many["merge"] == few["merge"]
    fast = forecast.forecast_steps(
        recipe, tiny.prepared(base, recipe), report, replace(CPU, products=1e12, stream=1e12)
    )
    assert fast["train"].seconds < many["train"].seconds  # type: ignore[operator]


def test_epochs_steps_and_padding_count(tmp_path: Path, base: Path) -> None:
    """Micro-batches are those of the whole training; max_steps ends it before the epochs do."""
    _, report = ingested(tmp_path / "rows", base, 100)
    rows = batches.RowCounts.of(report["train"], 200)

    def batch_counts(**training: Any) -> tuple[int, float]:
        return batches.batches_of(tiny.make_recipe(base, training=training), rows)

    packed, tokens = batch_counts()
    assert packed * tokens == pytest.approx(rows.tokens, rel=0.1)
    assert batch_counts(num_train_epochs=3)[0] == pytest.approx(3 * packed, abs=1)
    assert batch_counts(max_steps=7, gradient_accumulation_steps=4)[0] == 28
    alone = {"packing": False, "per_device_train_batch_size": 1}
    assert batch_counts(**alone) == (rows.sequences, rows.tokens / rows.sequences)


def test_an_unknown_gpu_is_named_unknown() -> None:
    """No time is invented."""
    [line] = step_costs.lines({}, champion=False)
    assert line.startswith("no time estimate: the throughput of this GPU is unknown")


def test_a_champion_is_evaluated_only_where_there_is_one() -> None:
    """The sum is of the steps that will be done."""
    each = dict.fromkeys(step_costs.STEPS, Cost(60.0, 1.0)) | {"drift": Cost(60.0)}
    without, with_one = (step_costs.lines(each, champion=c) for c in (False, True))
    assert without[-1].split()[-4:] == ["7", "min", "0", "s"]
    assert with_one[-1].split()[-4:] == ["8", "min", "0", "s"]
    assert not any("champion" in line for line in without)


def test_estimated_stands_beside_measured() -> None:
    """A step that was not done again was estimated, not measured; an old run shows what it has."""
    tags = {step_costs.TAG: json.dumps({"train": [60.0, 1.5], "merge": [2.0, None]})}
    metrics = {"cost/train/seconds": 66.0, "cost/gate/seconds": 1.0, "train/loss": 2.0}
    costs = {cost.step: cost for cost in step_costs.compare(tags, metrics)}
    assert list(costs) == ["train", "merge", "gate"]
    assert (costs["train"].estimated, costs["train"].measured) == (Cost(60.0, 1.5), Cost(66.0))
    assert costs["merge"].measured == Cost()
    assert costs["gate"].estimated == Cost()


def test_a_run_keeps_its_forecast_as_a_tag(tmp_path: Path, base: Path) -> None:
    """Every step's seconds and GiB."""
    recipe, _ = ingested(tmp_path / "rows", base, 60)
    tags = step_costs.forecast_tags(
        recipe, tiny.prepared(base, recipe), tmp_path / "rows/out/report.json"
    )
    costs = step_costs.compare(tags, {})
    assert [cost.estimated.seconds is not None for cost in costs] == [True] * len(step_costs.STEPS)


def test_where_no_forecast_can_be_made_the_run_goes_on(
    tmp_path: Path, base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning names what failed (here a file; on a machine with a GPU its driver)."""
    recipe, _ = ingested(tmp_path / "rows", base, 60)
    assert (
        step_costs.forecast_tags(recipe, tiny.prepared(base, recipe), tmp_path / "gone.json") == {}
    )
    assert "not estimated: [Errno 2] No such file" in caplog.text


def test_the_estimate_takes_training_s_own_memory_model(tmp_path: Path) -> None:
    """On a GPU; TRL's own path is estimated apart, and says no plan."""
    base = headers_of_llama_7b(tmp_path / "base")
    recipe = tiny.make_recipe(base, training={"max_length": 2048})
    folder = BaseFolder.read(base)
    config, shapes = folder.config, folder.tensors
    shape = model_sizes.shape_of(recipe, config, shapes)
    assert shape
    plan = memory_plan.named("auto", shape, False, preflight.CARD - training_memory.CUDA_BYTES)
    estimated = preflight.estimate(recipe, BaseFolder.read(base), tmp_path).gpu_training_bytes
    assert estimated == int(memory_plan.peak_bytes(shape, plan)) + training_memory.CUDA_BYTES
    other = tiny.make_recipe(base, training={"max_length": 2048}, adapter={"kind": "dora"})
    assert preflight.estimate(other, BaseFolder.read(base), tmp_path).gpu_training_bytes > estimated
