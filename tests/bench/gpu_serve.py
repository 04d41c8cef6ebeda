"""`precis serve` with transformers on a GPU, in 16 bits, under load while the champion changes three times.

    python tests/bench/gpu_serve.py OUT [--hidden 2048] [--layers 16] [--requests 2000] [--clients 16]

Random weights; one change is to a version with a flipped bit, which must be refused. In 16 bits a tie of two
tokens is broken otherwise in another batch, so an answer need not be the stored text of the version that it
names: how many are is printed; none may be another version's. OUT/serve.json has the figures. Exit status 1
where a request failed or was mixed, or a process was left after TERM. On a machine without a GPU it runs on
the CPU, in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
sys.path.insert(2, str(Path(__file__).parents[1] / "train"))

import serve_load  # noqa: E402
import served_models  # noqa: E402
import torch  # noqa: E402
from serve_load import CORRUPTED, Load, serving  # noqa: E402

from tasks.tracking import connection  # noqa: E402

CHANGES = (2, CORRUPTED, 1)
OTHERWISE = "otherwise"  # neither the stored text nor another version's


class LoadOf16Bits(Load):
    """Tells a tie that was broken otherwise from another version's text."""

    def outcome(self, text: str, number: int, index: int, kind: str) -> str:
        """As Load.outcome."""
        others = [texts for version, texts in self.stored.items() if version != number]
        found = super().outcome(text, number, index, kind)
        is_tie = found != "right" and not any(text in texts for texts in others)
        return OTHERWISE if is_tie else found


def main(out: Path, hidden: int, layers: int, requests: int, clients: int) -> int:
    """Measure, print and store; 0 where no request failed or was mixed."""
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        os.chdir(home)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        store = connection.connect()
        stored = {
            number: served_models.register_tiny(
                store, home / "made", number, hidden, layers, device
            )
            for number in (1, 2, CORRUPTED)
        }
        served_models.promote(store, 1)
        began = time.monotonic()
        with serving(home, "--engine", "transformers") as command:
            first_seconds = time.monotonic() - began
            load = LoadOf16Bits(command.url, stored, clients, requests)
            began = time.monotonic()
            serve_load.run(store, command, load, CHANGES)
            seconds = time.monotonic() - began
            health = command.wait(lambda health: True)
            command.process.send_signal(signal.SIGTERM)
            status = command.process.wait(120)
            left = command.left()
        log = (home / "serve.log").read_text()
    total = sum(load.done.values())
    wrong = {f"{what} (v{n})": c for (what, n), c in load.done.items() if _is_wrong(what)}
    cuts = statistics.quantiles(load.seconds, n=100)
    found = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
        "hidden": hidden,
        "layers": layers,
        "first version served after seconds": round(first_seconds, 1),
        "requests": total,
        "clients": clients,
        "requests a second": round(total / seconds, 1),
        "seconds": {"median": cuts[49], "99%": cuts[98], "longest": max(load.seconds)},
        "stored texts": sum(n for (what, _), n in load.done.items() if what == "right"),
        "written otherwise": sum(n for (what, _), n in load.done.items() if what == OTHERWISE),
        "failed or mixed": wrong,
        "answered by": {v: sum(n for (_, w), n in load.done.items() if w == v) for v in stored},
        "refused": [refusal["reason"][:120] for refusal in health["refused"]],
        "engine": health.get("engine"),
        "after TERM": {"status": status, "processes left": len(left)},
        "log": log.splitlines(),
    }
    (out / "serve.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return int(bool(wrong) or status != 0 or bool(left) or len(health["refused"]) != 1)


def _is_wrong(outcome: str) -> bool:
    return outcome not in ("right", OTHERWISE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    sizes = (given.hidden, given.layers, given.requests, given.clients)
    sys.exit(main(given.out.absolute(), *sizes))
