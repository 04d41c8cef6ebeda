"""A base's weights are those of its architecture, and finite: else it is refused, never trained on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny
import torch
from safetensors.torch import load_file, save_file

from tasks.contracts.errors import BaseModelError, TrainingError
from tasks.models import architecture, compatibility, find_base, finite_weights
from tasks.models.prepared_base import BaseFolder
from tasks.train import qlora

Tensors = dict[str, Any]
NORM, DOWN = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


def changed(
    base: Path, folder: Path, change: Callable[[Tensors], object], **config: Any
) -> BaseFolder:
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(values))
    return BaseFolder.read(folder)


def problems(folder: BaseFolder, **parts: Any) -> list[str]:
    return architecture.problems(tiny.make_recipe(folder.path, **parts), folder)


@pytest.mark.parametrize("model_type", shapes.SHAPES)
def test_a_whole_base_has_no_problem(model_type: str, tmp_path: Path) -> None:
    """Tied or not, with biases, windows and caps."""
    folder = BaseFolder.read(shapes.make_base(tmp_path / "base", model_type))
    assert problems(folder) == []
    assert find_base.look_up(tiny.make_recipe(folder.path).base, tmp_path).problems == []


REFUSED: dict[str, tuple[Callable[[Tensors], object], dict[str, Any], str]] = {
    "one norm is missing": (lambda t: t.pop(NORM), {}, f"lacks weights .*: {NORM}; transf"),
    "a layer is missing": (
        lambda t: [t.pop(name) for name in list(t) if "layers.1." in name],
        {},
        r"lacks weights .* and 6 more; transformers would make them up",
    ),
    "the head is missing": (
        lambda t: None,
        {"tie_word_embeddings": False},
        r"lacks weights that its config.json asks for: lm_head.weight",
    ),
    "a tensor of another model": (
        lambda t: t.update({"score.weight": torch.ones(2, 64)}),
        {},
        r"has no place for: score.weight; transformers would leave them out",
    ),
    "a layer more than the config says": (
        lambda t: None,
        {"num_hidden_layers": 1},
        r"has no place for: model.layers.1.input_layernorm.weight, .* and 6 more",
    ),
    "a norm of another width": (
        lambda t: t.update({NORM: torch.ones(32)}),
        {},
        rf"of other shapes .*: {NORM} 32 for 64; fetch",
    ),
    "a matrix of another shape": (
        lambda t: t.update({DOWN: torch.ones(128, 64)}),
        {},
        rf"{DOWN} 128 x 64 for 64 x 128",
    ),
    "another number of heads": (
        lambda t: None,
        {"num_key_value_heads": 4},
        r"k_proj.weight 32 x 64 for 64 x 64",
    ),
    "an activation that nobody knows": (
        lambda t: None,
        {"hidden_act": "nope"},
        r"transformers cannot load .*: KeyError: 'nope'; correct its config.json",
    ),
    "a wrong type": (
        lambda t: None,
        {"rms_norm_eps": "small"},
        r"cannot load .*'rms_norm_eps' expected float, got str",
    ),
    "names without their beginning": (
        lambda t: [t.update({n.removeprefix("model."): t.pop(n)}) for n in list(t)],
        {},
        r"under other names than transformers gives .* and the merge goes by names",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_weights_that_do_not_fit_are_refused(name: str, base: Path, tmp_path: Path) -> None:
    """With the tensors' names: transformers would make up or leave out what does not fit."""
    change, config, message = REFUSED[name]
    [problem] = problems(changed(base, tmp_path / "base", change, **config))
    assert str(tmp_path / "base") in problem
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)


def test_what_transformers_leaves_out_by_itself_is_no_problem(base: Path, tmp_path: Path) -> None:
    """Rotary frequencies in old files, and a head that is stored though it is tied."""

    def add(tensors: Tensors) -> None:
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    assert problems(changed(base, tmp_path / "base", add)) == []


def test_training_refuses_what_check_refuses(base: Path, tmp_path: Path) -> None:
    """A base without one norm's weight was trained silently, on a norm that was made up."""
    folder = changed(base, tmp_path / "base", lambda tensors: tensors.pop(NORM))
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(2))
    recipe = tiny.make_recipe(folder.path)
    prepared = find_base.find_base(recipe)
    with pytest.raises(TrainingError, match=f"does not fit this base model:\n.*{NORM}"):
        qlora.train_in_this_process(rows, prepared, recipe, tmp_path / "job")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_is_found(dtype: Any, value: float, tmp_path: Path) -> None:
    """In every type, first or last, past the part that is read at once; the largest numbers are none."""
    limits = torch.finfo(dtype)
    fine = torch.tensor([limits.max, limits.min, limits.tiny, 0.0, -0.0], dtype=dtype)
    at_once = finite_weights.READ_BYTES // dtype.itemsize
    file = tmp_path / "model.safetensors"
    save_file({"a": fine, "b": torch.ones(at_once + 3, dtype=dtype)}, file)
    assert finite_weights.problems([file]) == []
    for place in (0, at_once - 1, at_once, -1):
        long = torch.ones(at_once + 3, dtype=dtype)
        long[place] = value
        save_file({"a": fine, "b": long}, file)
        [problem] = finite_weights.problems([file])
        assert f"{file}: weights that are NaN or infinite in b; fetch" in problem


def test_weights_that_were_never_filled(tmp_path: Path) -> None:
    """All matrices 0 are refused; one of them, or vectors alone, are not (zero initialization)."""
    file, zero = tmp_path / "model.safetensors", torch.zeros(3, 4)
    save_file({"a": zero, "norm": torch.ones(3)}, file)
    [problem] = finite_weights.problems([file])
    assert f"{file}: all weights are 0" in problem
    for fine in ({"a": zero, "b": torch.ones(2, 2)}, {"bias": torch.zeros(3)}):
        save_file(fine, file)
        assert finite_weights.problems([file]) == []


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "base_model.model."])
def test_a_wrapped_model_s_names(prefix: str, base: Path, tmp_path: Path) -> None:
    """torch.compile, DistributedDataParallel and PEFT save names that transformers does not look for."""

    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    folder = changed(base, tmp_path / "base", wrap)
    [problem] = architecture.problems(tiny.make_recipe(folder.path), folder)
    assert f"have {prefix} before their names" in problem


def test_a_run_and_a_check_refuse_weights_that_are_not_finite(base: Path, tmp_path: Path) -> None:
    """Both name file and tensors; whole numbers of that bit pattern are none of it."""

    def spoil(tensors: Tensors) -> None:
        tensors[NORM][3] = float("nan")
        tensors[DOWN][0, 0] = float("inf")

    folder = changed(base, tmp_path / "base", spoil)
    with pytest.raises(BaseModelError, match=rf"NaN or infinite in {DOWN}, {NORM}; fetch"):
        find_base.find_base(tiny.make_recipe(folder.path))
    fact, [problem] = find_base.scan(folder)
    assert "GiB read in" in fact
    assert "NaN or infinite" in problem
    file = tmp_path / "numbers.safetensors"
    save_file({"a": torch.full((9,), -1, dtype=torch.int32)}, file)
    assert finite_weights.problems([file]) == []


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        (DOWN, torch.float8_e4m3fn, f"1 weights as F8_E4M3 .{DOWN} is one.: it is quantized"),
        (DOWN, torch.int8, "as I8"),
        (DOWN, torch.float64, "weights that are adapted as BF16, F64"),
        (DOWN, torch.float16, "weights that are adapted as BF16, F16"),
    ],
)
def test_types_that_no_merge_keeps_are_refused_before_training(
    name: str, dtype: Any, message: str, base: Path, tmp_path: Path
) -> None:
    """They were found when the training was done; a norm in float32 is none of them."""

    def store(tensors: Tensors) -> None:
        tensors[name] = tensors[name].to(dtype)

    folder = changed(base, tmp_path / "base", store)
    [problem] = compatibility.problems(tiny.make_recipe(folder.path), folder)
    with pytest.raises(ValueError, match=message):
        raise ValueError(problem)
    wide = changed(base, tmp_path / "wide", lambda t: t.update({NORM: t[NORM].float()}))
    assert compatibility.problems(tiny.make_recipe(wide.path), wide) == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "bert"}, "is a bert, an encoder: it sees words before they are written"),
        ({"model_type": "bart", "is_encoder_decoder": True}, "of which a language model would be"),
        ({"is_encoder_decoder": True}, "says that it is a llama, an encoder and decoder"),
        ({"vision_config": {"depth": 2}}, "says that it is a llama, which reads images"),
        ({"model_type": "gemma3", "vision_config": {}}, "reads images or sound beside text"),
        (
            {"model_type": "acme", "auto_map": {"AutoModel": "a.B"}},
            "acme (it names code of its own",
        ),
    ],
)
def test_models_that_do_not_write_text_after_text(
    config: dict[str, Any], message: str, base: Path, tmp_path: Path
) -> None:
    """transformers would load them as language models all the same, but for the last."""
    folder = changed(base, tmp_path / "base", lambda tensors: None, **config)
    recipe = tiny.make_recipe(folder.path, training={"packing": False})
    [problem] = compatibility.problems(recipe, folder)
    assert message in problem
