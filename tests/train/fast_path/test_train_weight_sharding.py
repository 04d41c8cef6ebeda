"""A base whose frozen weights are sharded over two ranks computes what the whole one does, in less memory."""

from __future__ import annotations

from typing import Any

import pytest
import two

pytestmark = pytest.mark.full
CASES = [
    "llama nf4 no",
    "llama nf4 yes",
    "llama nf4 reentrant",
    "llama none no",
    "tied none yes",
    "phi nf4 no",
    "llama fp4 no",
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found (ranks_sharded.py)."""
    return two.processes("ranks_sharded.py", tmp_path_factory.mktemp("ranks"), 400)


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_the_whole_base(
    found: list[dict[str, Any]], case: str
) -> None:
    """To the last bit, however layers are computed again; and two layers at most are ever whole."""
    for rank in found:
        assert rank[case]["equal"]
        assert rank[case]["gradients"] > 0
        assert rank[case]["most"] == rank[case]["left"] == 2


@pytest.mark.parametrize("case", ["fast kept", "fast again"])
def test_the_gpu_s_path_trains_on_shares(found: list[dict[str, Any]], case: str) -> None:
    """Compiled layers whose weights come and go: the steps of whole ones, the same on both."""
    for rank in found:
        assert rank[case]["shards"] == rank[case]["left"] == 2
        assert rank[case]["compiled"]
        assert rank[case]["equal"]
    first, second = (rank[case]["steps"] for rank in found)
    assert first == second
    assert len(first) == 4
