"""`precis serve` under load while the champion changes three times, once to a corrupted version.

    python tests/bench/serve_changes.py [--engine vllm] [--requests N] [--clients N]

A tiny model with random weights: it is the server that is asked, not the model. Each answer must be the
stored text of the version that it names. Prints figures, one a line; exit status 1 where a request failed
or was mixed, or a process was left after TERM. vLLM: that of tests/vllm_environment.py.
"""

from __future__ import annotations

import argparse
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
import vllm_environment  # noqa: E402
from serve_load import CORRUPTED, Load, serving  # noqa: E402

from tasks.tracking import connection  # noqa: E402

CHANGES = (2, CORRUPTED, 1)


def main(engine: str, requests: int, clients: int) -> int:
    """Measure and print; 0 where no request failed or was mixed."""
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        served_models.make(home)
        os.chdir(home)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        store = connection.connect()
        served_models.promote(store, 1)
        stored = {n: served_models.texts_in(home, n) for n in (1, 2)}
        options, env = with_vllm(home) if engine == "vllm" else (["--engine", engine], {})
        began = time.monotonic()
        with serving(home, *options, **env) as command:
            print(f"{engine}: first version served after {time.monotonic() - began:.0f} s")
            load = Load(command.url, stored, clients, requests)
            began = time.monotonic()
            serve_load.run(store, command, load, CHANGES)
            seconds = time.monotonic() - began
            refused = command.wait(lambda health: True)["refused"]
            command.process.send_signal(signal.SIGTERM)
            status = command.process.wait(120)
            left = command.left()
    total, wrong = sum(load.done.values()), {k: n for k, n in load.done.items() if k[0] != "right"}
    cuts = statistics.quantiles(load.seconds, n=100)
    print(
        f"requests: {total} from {clients} clients in {seconds:.0f} s ({total / seconds:.0f} a second)"
    )
    print(f"answered by: { {f'v{v}': n for (_, v), n in sorted(load.done.items())} }")
    print(f"failed or mixed: {sum(wrong.values())} {wrong or ''}")
    print(f"seconds: median {cuts[49]:.2f}, 99% {cuts[98]:.2f}, longest {max(load.seconds):.2f}")
    print(f"refused: {[refusal['reason'][:90] for refusal in refused]}")
    print(f"after TERM: exit status {status}, {len(left)} processes left")
    return int(bool(wrong) or status != 0 or bool(left) or len(refused) != 1)


def with_vllm(home: Path) -> tuple[list[str], dict[str, str]]:
    """Options and variables for vLLM on a small machine without a GPU."""
    python = vllm_environment.environment() / "bin/python"
    program = home / "vllm"
    program.write_text(f'#!/bin/sh\nexec {python} -m vllm.entrypoints.cli.main "$@"\n')
    program.chmod(0o755)
    return ["--vllm", str(program)], {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "PRECIS_VLLM_ARGUMENTS": "--enforce-eager --max-num-seqs 16",
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    sys.exit(main(given.engine, given.requests, given.clients))
