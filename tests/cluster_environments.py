"""KServe's and Ray Serve's own schemas, each in an environment of its own, for the manifests of clusters.

They fit no environment with Prefect and MLflow; what Ray imports besides (pyarrow, transformers) is taken
from ours. Each takes a minute or two to make; both are kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pydantic
from filelock import FileLock

PACKAGES = {"kserve": ("kserve==0.21.0",), "ray": ("ray[serve]==2.60.0",)}
WITH_OURS = ("ray",)


def python(name: str) -> Path:
    """The environment's Python, made when it is not there. Raises CalledProcessError with pip's output."""
    wanted = PACKAGES[name]
    shared = str(Path(pydantic.__file__).parents[1]) if name in WITH_OURS else ""
    state = hashlib.sha256(repr((wanted, shared, sys.version)).encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "precis-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{name}-{state}"
    with FileLock(cache / f"{folder.name}.lock"):
        if not (folder / "made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin/python", "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "pyyaml", *wanted], check=True)
            packages = next(folder.glob("lib/python*/site-packages"))
            (packages / "shared.pth").write_text(shared + "\n")  # after its own on the path
            (folder / "made").touch()
    return folder / "bin/python"
