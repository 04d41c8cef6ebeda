"""What a retrain costs besides its work: `python tests/bench/flow_overhead.py [REPEATS]`.

The work is done once; then the same recipe runs again with nothing changed, so that all steps are
recalled and what is left is import, orchestration, tracking and the gate. Embedded, against running
servers, and through a worker, in turns. Prints medians, seconds.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from servers import Servers
from stack import Stack

LITTLE = {"data.train_rows": 64, "data.evaluation_rows": 20}  # the work itself is not what is timed


def main(repeats: int) -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as name:
        embedded = Stack(Path(name) / "embedded")
        with Servers(Path(name) / "servers") as servers:
            ways: dict[str, Callable[[], float]] = {
                "precis run, embedded": lambda: timed(embedded),
                "precis run, servers running": lambda: timed(servers.client),
                "deployed, from start to verdict (worker's process included)": lambda: deployed(
                    servers
                ),
            }
            for way in ways.values():  # the work itself, and what a first use migrates and caches
                way()
            taken = [{text: way() for text, way in ways.items()} for _ in range(repeats)]
    print(f"unchanged rerun of the demo recipe, median of {repeats}, seconds")
    for text in ways:
        values = [round_[text] for round_ in taken]
        print(f"{text:62} {statistics.median(values):6.1f}   {[round(v, 1) for v in values]}")


def timed(stack: Stack) -> float:
    """Wall time of one `precis run`, interpreter start to exit."""
    begun = time.monotonic()
    stack.run(**{key.replace(".", "__"): value for key, value in LITTLE.items()})
    return time.monotonic() - begun


def deployed(servers: Servers) -> float:
    """From when the worker takes a run to its verdict; the worker asks for work every 10 s or so."""
    run_id = servers.run("retrain", LITTLE)
    servers.wait(run_id)
    states = servers.ask(f"flow_run_states/?flow_run_id={run_id}")
    at = {state["type"]: datetime.fromisoformat(state["timestamp"]) for state in states}
    return (at["COMPLETED"] - at["PENDING"]).total_seconds()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
