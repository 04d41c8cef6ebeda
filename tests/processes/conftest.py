"""A fork server that starts at once."""

from __future__ import annotations

from pathlib import Path

import pytest

LIGHT = {
    "torch": """
class cuda:
    is_initialized = staticmethod(lambda: False)
    _is_in_bad_fork = staticmethod(lambda: False)
""",
    "transformers": "def __getattr__(name): return None\n",
}


@pytest.fixture(scope="session")
def light_libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH: torch and transformers whose import costs nothing, in place of 10 s of CPU."""
    folder = tmp_path_factory.mktemp("light")
    for name, text in LIGHT.items():
        (folder / f"{name}.py").write_text(text)
    return folder
