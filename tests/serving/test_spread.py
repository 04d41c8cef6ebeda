"""Models that one GPU does not hold: when they are spread over several, and the message if that fails."""

from __future__ import annotations

import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny
import torch
from accelerate.big_modeling import attach_align_device_hook_on_blocks
from prefect.states import Failed

from tasks.contracts.errors import MergeError
from tasks.costs import preflight
from tasks.merge import drift
from tasks.models import loading
from tasks.models.prepared_base import BaseFolder
from tasks.orchestration import task_options
from tasks.processes import device
from tasks.serving import summarizer
from tasks.serving.summarizer import SummarizerSettings

GIB = 2**30


def given(monkeypatch: pytest.MonkeyPatch, count: int, gib: float) -> None:
    """A machine with so many GPUs, as torch and as the driver show it; nothing of them is free."""
    total = int(gib * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (0, total))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda at: 1.0)
    monkeypatch.setattr(device, "count", lambda: count)
    monkeypatch.setattr(device, "memory_bytes", lambda: total)


@pytest.mark.parametrize(
    ("count", "gib", "need", "several"),
    [(0, 0, 13, False), (1, 8, 13, False), (2, 8, 13, True), (4, 14, 13, True), (4, 40, 13, False)],
)
def test_what_the_first_gpu_does_not_hold_is_spread(
    monkeypatch: pytest.MonkeyPatch, count: int, gib: float, need: float, several: bool
) -> None:
    """With a tenth of room for keys and values; loading and the GPU slots held for it agree."""
    given(monkeypatch, count, gib)
    assert summarizer.needs_several_gpus(int(need * GIB)) is several
    assert preflight.gpus_for(int(need * GIB)) == (count if several else 1)


@pytest.mark.parametrize(
    ("free", "share", "used", "reserved", "room"),
    [
        (80, 1.0, 0, 0, 72.0),  # a tenth is for keys and values
        (80, 0.1, 0, 0, 7.2),  # a process that may use a tenth of the GPU
        (20, 1.0, 0, 0, 18.0),  # other processes have the rest
        (20, 0.5, 10, 12, 19.8),  # what was freed of this process's own is free too
        (60, 0.1, 10, 10, 0.0),
    ],
)
def test_a_spread_model_leaves_room_on_each_gpu(
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    share: float,
    used: float,
    reserved: float,
    room: float,
) -> None:
    """Of 80 GiB a GPU; the model of the drift check that is gone does not count."""
    given(monkeypatch, 2, 80)
    numbers = {"memory_allocated": used, "memory_reserved": reserved}
    for name, gib in numbers.items():
        monkeypatch.setattr(torch.cuda, name, lambda at, gib=gib: int(gib * GIB))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (int(free * GIB), 80 * GIB))
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda at: share)
    monkeypatch.setattr("accelerate.utils.get_max_memory", lambda: {0: 1, 1: 1, "cpu": 5})
    found = summarizer.room_for_weights()
    assert found["cpu"] == 5
    assert [found[at] / GIB for at in (0, 1)] == pytest.approx([room, room])


def test_no_room_on_all_gpus_together_is_an_error() -> None:
    """Weights on the host or on disk would be carried over for every token."""
    spread = types.SimpleNamespace(hf_device_map={"model.layers.0": 0, "model.layers.1": "cpu"})
    with pytest.raises(ValueError, match="the memory of all GPUs together does not hold the model"):
        summarizer.refuse_offloaded(spread)
    spread.hf_device_map["model.layers.1"] = 1
    summarizer.refuse_offloaded(spread)


def test_a_drift_check_without_room_says_so_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A MergeError, which no retry follows: here the model is to be spread, and lands on the host."""
    base, look = tiny.make_tiny_base(tmp_path), summarizer.refuse_offloaded

    def landed(model: Any) -> None:
        model.hf_device_map = {"": "cpu"}
        look(model)

    monkeypatch.setattr(summarizer, "needs_several_gpus", lambda need: True)
    monkeypatch.setattr(summarizer, "refuse_offloaded", landed)
    with pytest.raises(MergeError, match=r"cannot load .*all GPUs together does not hold"):
        drift._merged_model(base)
    assert not task_options._retry_may_help(None, None, Failed(data=MergeError("x")))  # type: ignore[arg-type]


def test_under_accelerate_s_hooks_a_model_gives_what_it_gives_without(tmp_path: Path) -> None:
    """Summaries and losses, the hooks where a spread model has them; continuous decoding refuses it.

    The hooks put every tensor of a call on the first layer's GPU, which is not the head's: here there is
    one device, and what is seen is that no argument is lost on them.
    """
    base = tiny.make_tiny_base(tmp_path / "base")
    settings = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 8, 2)
    generator = summarizer.Generator(tiny.packaged(base, tmp_path / "package", settings))
    rows = tiny.make_rows(5)
    documents = [row.document for row in rows]
    references = [row.references for row in rows]
    assert not generator.is_spread
    expected = generator.summarize(documents), generator.losses(documents, references)
    model = generator.model
    attach_align_device_hook_on_blocks(model, {name: "cpu" for name, _ in model.named_modules()})
    seen: list[Any] = []
    head = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    assert (generator.summarize(documents), generator.losses(documents, references)) == expected
    assert max(seen) < max(len(generator.tokenizer(text)["input_ids"]) for text in documents)
    head.remove()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    generator.settings = replace(settings, decoding="continuous")
    assert generator.decoder() is None
    assert generator.refusal == "the model is spread over several GPUs"


def test_a_check_names_the_one_process_that_can_hold_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """26 GiB on four GPUs of 16: fine for one process, for each of four it is not."""
    here = preflight.estimate(
        tiny.make_recipe(base := tiny.make_tiny_base(tmp_path)), BaseFolder.read(base), tmp_path
    )
    given(monkeypatch, 4, 16)
    large = replace(
        here, parameters=13 * GIB, weights_bytes=26 * GIB, memory_bytes=15 * GIB, device="cuda"
    )
    assert large.problems() == []
    [problem] = replace(large, one_gpu_each=True).problems()
    assert "evaluation loads the merged model's 26.0 GiB and cuda has 15.0" in problem
    assert problem.endswith("evaluation.devices 1, no cluster")
    [problem] = replace(large, parameters=50 * GIB, weights_bytes=100 * GIB).problems()
    assert problem.endswith("name a smaller base, or run where there is more memory")


@pytest.mark.parametrize(("quantization", "gib"), [("none", 12.55), ("nf4", 3.60), ("int8", 6.52)])
def test_stored_weights_are_counted_from_headers(
    monkeypatch: pytest.MonkeyPatch, quantization: str, gib: float
) -> None:
    """Llama-2-7B: 16 bits a weight, or those of linear layers as quantized."""
    monkeypatch.setattr(loading, "tensor_shapes", lambda base: shapes.llama_7b()[1])
    assert loading.loaded_bytes(Path("base"), quantization) / GIB == pytest.approx(gib, abs=0.02)


def test_weights_are_counted_without_torch(tmp_path: Path) -> None:
    """By the flow's process, before it waits for GPU slots; the package's own code counts the same."""
    base = tiny.make_tiny_base(tmp_path)
    script = (
        "import sys, pathlib\n"
        "from tasks.costs import preflight\n"
        "from tasks.models.safetensors_headers import parameter_count\n"
        "from tasks.serving import summarizer\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "assert preflight.gpus_for(2 * parameter_count(folder)) == 1\n"
        "assert summarizer.parameter_count(folder) == parameter_count(folder) > 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, base], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
