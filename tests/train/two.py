"""Run a script of these tests as two processes that meet through torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def processes(script: str, folder: Path, seconds: float) -> list[Any]:
    """What each of two wrote as FOLDER/RANK.json."""
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here.parents[1], here.parent, here, here / "fast_path")))
    words = ["--standalone", "--nproc-per-node", "2", str(here / script), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=seconds,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
