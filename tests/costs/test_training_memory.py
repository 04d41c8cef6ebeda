"""Whether one GPU holds a base and trains it, or several share it out: from headers alone."""

from __future__ import annotations

from typing import Any

import pytest
import shapes
import tiny

from tasks.contracts.units import GIB
from tasks.costs import training_memory


def shards(available_gib: float, where: str = "cuda", /, **parts: Any) -> int:
    """Of Llama-2-7B's shape, in how many parts it is trained."""
    config, state = shapes.llama_7b()
    recipe = tiny.make_recipe(tiny.Path("b"), **parts)
    free = available_gib * GIB + training_memory.CUDA_BYTES
    return training_memory.weight_shards(recipe, config, state, where, 2048, free)


def test_weights_are_shared_out_where_one_gpu_does_not_hold_them_and_train() -> None:
    """NF4 takes 3.1 GiB and the leanest step 4.5; what a recipe names is done; one device has them all."""
    lean = {"max_length": 2048, "per_device_train_batch_size": 1}
    assert shards(139, training=lean | {"devices": 4}) == 1
    assert shards(6, training=lean | {"devices": 4}) == 1
    assert shards(4, training=lean | {"devices": 4}) == 4
    assert shards(4, training=lean | {"devices": 2, "nodes": 2}) == 4
    assert shards(4, training=lean) == 1
    assert shards(4, training=lean | {"devices": 4, "base_weights": "replicated"}) == 1
    assert shards(139, training=lean | {"devices": 4, "base_weights": "sharded"}) == 4
    assert shards(12, training=lean | {"devices": 4}, base={"quantization": "none"}) == 4


def test_a_cpu_shares_out_by_name_alone() -> None:
    """Its memory is one for all processes."""
    assert shards(1, "cpu", training={"devices": 4}) == 1
    assert shards(1, "cpu", training={"devices": 4, "base_weights": "sharded"}) == 4


@pytest.mark.parametrize("memory_named", ["none", "selective", "full", "least"])
def test_a_named_plan_shares_out_only_what_no_leaner_one_would_train(memory_named: str) -> None:
    """Held whole, a rehearsal goes on to leaner plans; weights in 16 bits stay so."""
    step = {"max_length": 2048, "per_device_train_batch_size": 4, "devices": 2}
    assert shards(8, training=step | {"memory": memory_named}) == 1
    assert shards(4, training=step | {"memory": memory_named}) == 2
    assert shards(12, training=step | {"memory": "resident"}) == 2
    assert shards(24, training=step | {"memory": "resident"}) == 1


@pytest.mark.parametrize("quantization", ["nf4", "fp4"])
def test_four_bits_are_four_bits_on_the_plain_path(quantization: str) -> None:
    """Where TRL's own path is taken, its figure decides, the same that precis check shows."""
    trl_path = {
        "max_length": 2048,
        "per_device_train_batch_size": 1,
        "devices": 4,
        "memory": "plain",
    }
    base, recipe = {"quantization": quantization}, {"training": trl_path}
    checkpointed = {"training": trl_path | {"gradient_checkpointing": True}}
    assert shards(22, base=base, **recipe) == 1
    assert shards(10, base=base, **recipe) == 4
    assert shards(10, base=base, **checkpointed) == 1


def test_what_cannot_be_shared_out_is_not() -> None:
    """DoRA reads all weights at its start; int8 is another layer's."""
    sharded = {"training": {"devices": 4, "base_weights": "sharded"}}
    assert shards(1, adapter={"kind": "dora"}, **sharded) == 1
    assert shards(1, base={"quantization": "int8"}, **sharded) == 1
    assert shards(1, adapter={"kind": "rslora"}, **sharded) == 4
