"""What cannot be merged is refused with every reason, and leaves nothing behind."""

from __future__ import annotations

import json
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numeric
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tasks.contracts.errors import MergeError
from tasks.contracts.recipe import Merge
from tasks.contracts.records import Drift
from tasks.merge import drift, merge
from tasks.models import find_base
from tasks.models.encoding import IGNORED
from tasks.models.prepared_base import BaseFolder

MODULES = ("self_attn.q_proj", "mlp.down_proj")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In PEFT's format, random: what it says is of no matter here."""
    folder = tmp_path_factory.mktemp("adapter")
    weights = load_file(base / "model.safetensors")
    tensors = {}
    for layer in range(2):
        for name in MODULES:
            rows, columns = weights[f"model.layers.{layer}.{name}.weight"].shape
            prefix = f"base_model.model.model.layers.{layer}.{name}.lora_"
            tensors[f"{prefix}A.weight"] = torch.randn(4, columns)
            tensors[f"{prefix}B.weight"] = torch.randn(rows, 4)
    save_file(tensors, folder / "adapter_model.safetensors", {"compute_dtype": "float32"})
    config = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "down_proj"],
        "base_model_name_or_path": "tiny",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def call(base: Path, adapter: Path, out: Path, /, **parts: Any) -> dict[str, Any]:
    recipe = tiny.make_recipe(base, base={"model": "tiny"}, **parts)
    prepared = find_base.prepare(recipe, BaseFolder.read(base))  # one is too large to digest
    return merge.merge(prepared, adapter, recipe, out)


def refusal(base: Path, adapter: Path, out: Path, /, **parts: Any) -> list[str]:
    with pytest.raises(MergeError) as caught:
        call(base, adapter, out, **parts)
    assert not out.parent.exists() or not list(out.parent.glob(f"{out.name}*"))
    return str(caught.value).splitlines()


def test_the_adapter_fits_its_own_base(base: Path, adapter: Path, tmp_path: Path) -> None:
    """What the refusals below refuse is not refused in itself."""
    assert call(base, adapter, tmp_path / "out")["bytes"] > 0


def test_a_base_of_other_sizes_is_refused_with_every_mismatch(
    adapter: Path, tmp_path: Path
) -> None:
    """Wider, and a layer deeper: four shapes, two missing layers, in one message."""
    other = tiny.make_tiny_base(tmp_path / "other", hidden=96, layers=3)
    lines = refusal(other, adapter, tmp_path / "out")
    layer = "model.layers.{}."
    assert lines == sorted(
        [
            f"{layer}{name}: the adapter is {ours}, the base {theirs}".format(number)
            for name, ours, theirs in (
                ("self_attn.q_proj", "64 x 64", "96 x 96"),
                ("mlp.down_proj", "64 x 128", "96 x 192"),
            )
            for number in (0, 1)
        ]
        + [f"model.layers.2.{name}: the base has it, the adapter does not" for name in MODULES]
    )


def test_a_shallower_base_is_refused(adapter: Path, tmp_path: Path) -> None:
    """Layers that only the adapter has are named."""
    other = tiny.make_tiny_base(tmp_path / "other", layers=1)
    assert refusal(other, adapter, tmp_path / "out") == [
        "model.layers.1.mlp.down_proj: the adapter has it, the base does not",
        "model.layers.1.self_attn.q_proj: the adapter has it, the base does not",
    ]


def test_other_kinds_of_adapter_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """DoRA's norms, another base's name, a wrong rank, half a pair: all at once."""
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    config |= {"use_rslora": True, "alpha_pattern": {"0": 4}}
    config |= {"base_model_name_or_path": "elsewhere", "r": 5}
    (odd / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_"
    del tensors[f"{first}B.weight"]
    tensors[f"{first}magnitude_vector"] = torch.ones(64)
    save_file(tensors, odd / "adapter_model.safetensors")
    lines = refusal(base, odd, tmp_path / "out")
    assert lines[:3] == [
        "the adapter sets alpha_pattern, which cannot be merged",
        "the adapter's kind is rslora; adapter.kind is lora",
        "the adapter was trained on elsewhere; base.model is tiny",
    ]
    assert f"{first}B.weight: missing in the adapter" in lines
    assert f"{first}magnitude_vector: the adapter has this tensor, rslora does not" in lines
    assert (
        "model.layers.1.mlp.down_proj: rank 4, 4 in the weights, 5 in adapter_config.json" in lines
    )


def test_a_dora_without_its_magnitudes_is_refused(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """Each layer needs them, one a row."""
    odd = tmp_path / "odd"
    odd.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text())
    (odd / "adapter_config.json").write_text(json.dumps(config | {"use_dora": True}))
    tensors = load_file(adapter / "adapter_model.safetensors")
    first = "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector"
    save_file(tensors | {first: torch.ones(65)}, odd / "adapter_model.safetensors")
    lines = refusal(base, odd, tmp_path / "out", adapter={"kind": "dora"})
    assert lines == sorted(
        [
            "model.layers.0.mlp.down_proj: 65 magnitudes for 64 rows",
            *(
                f"base_model.model.model.layers.{layer}.{name}.lora_magnitude_vector: "
                "missing in the adapter"
                for layer, name in ((0, MODULES[0]), (1, MODULES[0]), (1, MODULES[1]))
            ),
        ]
    )


def test_a_quantized_base_is_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Its weights are not those that training quantized."""
    other = tiny.make_tiny_base(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (other / "config.json").write_text(json.dumps(config))
    assert "quantized already; name the original" in refusal(other, adapter, tmp_path / "out")[0]


def test_broken_files_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A missing adapter, and a shard cut short."""
    assert "is no adapter" in refusal(base, tmp_path, tmp_path / "out")[0]
    other = tiny.make_tiny_base(tmp_path / "other")
    shard = other / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    assert "model.safetensors cannot be read" in refusal(other, adapter, tmp_path / "out")[0]


def test_a_disk_too_small_is_refused_before_anything_is_written(
    adapter: Path, tmp_path: Path
) -> None:
    """A base of 8 TiB (a sparse file) would not fit here."""
    other = tiny.make_tiny_base(tmp_path / "other")
    with (other / "tokenizer.model").open("wb") as file:
        file.truncate(8 << 40)
    line = refusal(other, adapter, tmp_path / "out")[0]
    assert line.startswith(f"the merged model needs 8192.00 GiB in {tmp_path}, where ")


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Writes past `size` bytes fail, as they do on a full disk; needs no rights and no mount."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_while_writing_leaves_nothing(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    """The error names place and need; the half-written folder is gone."""
    assert (base / "model.safetensors").stat().st_size > 150_000
    with largest_file(150_000):
        line = refusal(base, adapter, tmp_path / "out")[0]
    assert line.startswith(f"writing the merged model to {tmp_path} failed: ")
    assert "free space there" in line
    assert list(tmp_path.iterdir()) == []


def test_a_drifted_model_is_refused_and_removed(base: Path, adapter: Path, tmp_path: Path) -> None:
    """A tolerance below what rounding costs: no package stays."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(4))
    recipe = tiny.make_recipe(base, base={"model": "tiny"}, merge={"max_kl": 1e-12})
    with pytest.raises(MergeError, match=r"KL \d\.\de-\d\d nats a token \(merge.max_kl 1e-12\)"):
        merge.merge_and_check(
            tiny.prepared(base, recipe).as_json(),
            str(adapter),
            str(rows),
            recipe.model_dump(mode="json"),
            str(tmp_path / "out"),
        )
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


@pytest.mark.parametrize(
    ("kl", "agreement", "refused"),
    [
        (0.01, 0.98, False),
        (0.0101, 1.0, True),
        (0.0, 0.979, True),
        (float("nan"), 1.0, True),
    ],
)
def test_drift_is_refused_past_the_tolerance(kl: float, agreement: float, refused: bool) -> None:
    """At the tolerance it passes; what is no number never does."""
    measured = Drift(kl=kl, top1_agreement=agreement, tokens=100)
    if refused:
        with pytest.raises(MergeError, match="drifted from its adapter, over 100 tokens"):
            drift.refuse(measured, Merge())
    else:
        drift.refuse(measured, Merge())


@pytest.mark.parametrize("kl", [0.0101, 0.0999999, 3.14159, 12345.0])
@pytest.mark.parametrize("agreement", [0.97999, 0.0, 0.5, 1.0])
def test_the_settings_that_a_refusal_names_accept_that_drift(kl: float, agreement: float) -> None:
    """They are no looser than they must be, and only those that were passed are named."""
    measured = Drift(kl=kl, top1_agreement=agreement, tokens=100)
    with pytest.raises(MergeError) as caught:
        drift.refuse(measured, Merge())
    sets = dict(re.findall(r"--set merge\.(\w+)=(\S+)", str(caught.value)))
    assert set(sets) == {"max_kl"} | ({"min_top1_agreement"} if agreement < 0.98 else set())
    accepting = Merge.model_validate(sets)
    drift.refuse(measured, accepting)
    assert accepting.max_kl < 1.2 * kl
    assert accepting.min_top1_agreement >= min(0.98, agreement - 0.0011)


def test_a_drift_that_is_no_number_cannot_be_accepted() -> None:
    """No setting is named that would let it pass."""
    with pytest.raises(MergeError) as caught:
        drift.refuse(Drift(float("nan"), 0.5, 100), Merge())
    assert "--set" not in str(caught.value)


@pytest.mark.parametrize(
    ("ours", "theirs", "counted"),
    [
        ([2.00, 1.95, 0.0], [1.95, 2.00, 0.0], (0, 1)),  # near ties, which rounding turns round
        ([2.00, 1.85, 0.0], [1.90, 1.92, 0.0], (0, 1)),
        ([2.00, 1.85, 0.0], [1.85, 2.00, 0.0], (1, 0)),  # by 0.3 nats
        ([2.00, 1.99, 0.0], [1.00, 1.99, 0.0], (1, 0)),  # a near tie of which one fell
        ([2.00, 1.00, 0.0], [1.10, 1.00, 0.0], (0, 0)),  # far, but in the same order
        ([9.00, 1.00, 0.0], [1.00, 9.00, 0.0], (1, 0)),
    ],
)
def test_near_ties_that_rounding_turns_round_are_not_counted(
    ours: list[float], theirs: list[float], counted: tuple[int, int]
) -> None:
    """Tokens ranked otherwise: beyond what rounding moves log-odds by, and within it."""
    p, q = torch.tensor([ours]), torch.tensor([theirs])
    allowed = torch.tensor([drift.ROUNDED_WEIGHTS_NATS])
    kl, *found = drift._differences(p, allowed, q)
    assert tuple(found) == counted
    assert kl == pytest.approx(
        float((p.softmax(-1) * (p.log_softmax(-1) - q.log_softmax(-1))).sum())
    )


@pytest.mark.parametrize("wanted", [1, 100, 4000])
def test_rows_are_taken_until_they_hold_enough_tokens(base: Path, wanted: int) -> None:
    """Spread over the file; all of them where they hold fewer, and never fewer than drift_rows."""
    recipe = tiny.make_recipe(base, merge={"drift_rows": 3, "drift_tokens": wanted})
    rows = tiny.make_rows(60)
    prepared = tiny.prepared(base, recipe)
    tokenizer = AutoTokenizer.from_pretrained(base)
    examples = drift._sample(rows, tokenizer, prepared, recipe.merge)
    tokens = sum(label != IGNORED for labels in examples.labels for label in labels)
    count = len(examples.input_ids)
    assert (count == 3) if wanted == 1 else (tokens >= wanted or count == len(rows))
    assert tokens < 3 * max(wanted, 60) or count == 3
    packs = drift._packs(examples, recipe)
    assert sum(len(pack.predicted_at) for pack in packs) == tokens


def test_rows_in_one_sequence_are_predicted_as_by_themselves(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU reads several rows in one pass; positions that begin anew keep them apart."""
    recipe = tiny.make_recipe(base, merge={"drift_rows": 5, "drift_tokens": 1})
    tokenizer = AutoTokenizer.from_pretrained(base)
    prepared = tiny.prepared(base, recipe)
    examples = drift._sample(tiny.make_rows(20), tokenizer, prepared, recipe.merge)
    model = drift._merged_model(base)
    alone = torch.cat(list(drift._logits(model, drift._packs(examples, recipe))))
    monkeypatch.setattr(drift.loading, "device", lambda: "cuda:0")
    packs = drift._packs(examples, recipe)
    assert len(packs) < 5
    together = torch.cat(list(drift._logits(model, packs)))
    numeric.assert_close(together, alone, numeric.MODEL)
