"""vLLM's plugin takes checked adapters of the served base from the registry, and nothing else.

The plugin in vLLM itself: tests/e2e/test_vllm_adapters.py (long).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import adapter_versions
import pytest
from registry import flip

from tasks.register import pull_adapter, vllm_resolver

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Any:
    return adapter_versions.store(tmp_path_factory, home)


def test_the_resolver_of_vllm_takes_checked_adapters_of_the_served_base(
    store: Any, home: Path
) -> None:
    """By alias and number, without fetching a base; not of another base, nor a name that is not there."""
    base = pull_adapter.pull_adapter(store, "lamps", home / "served").base.folder
    folder = home / "adapters"
    assert vllm_resolver.adapter_of("lamps@champion", base, folder) == folder / "lamps-v2"
    assert vllm_resolver.adapter_of("lights/1", base, folder) == folder / "lights-v1"
    assert sorted(os.listdir(folder)) == ["lamps-v2", "lights-v1"]
    other = shutil.copytree(base, home / "other")
    flip(next(other.glob("*.safetensors")))
    for name, served, says in (
        ("lamps/2", other, f"lamps v2 belongs on {base.name}, and the served base has the digest"),
        ("lamps/2", Path("meta/llama"), "is no folder of `precis pull --adapter`"),
        ("lamp/2", base, "nearest: 'lamps'"),
        ("lamps/1", base, "holds the merged model"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)):
            vllm_resolver.adapter_of(name, served, folder)
    flip(folder / "lamps-v2/adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"is not lamps v2: adapter_model.safetensors differ"):
        vllm_resolver.adapter_of("lamps/2", base, folder)


def test_vllm_s_plugin_is_there_and_does_nothing_unless_it_is_asked_to() -> None:
    """Named in pyproject.toml; where vLLM loads it, it imports neither Prefect nor MLflow, nor vLLM."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = project["entry-points"]["vllm.general_plugins"]["precis"]
    script = (
        "import importlib, sys\n"
        "for name in ('prefect', 'mlflow', 'vllm', 'torch'): sys.modules[name] = None\n"
        f"module, _, function = '{named}'.partition(':')\n"
        "getattr(importlib.import_module(module), function)()\n"
    )
    own = {name: value for name, value in os.environ.items() if name != vllm_resolver.FOLDER}
    subprocess.run([sys.executable, "-c", script], check=True, env=own)
