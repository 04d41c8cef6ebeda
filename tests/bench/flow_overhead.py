"""What a retrain costs besides its work: `python tests/bench/flow_overhead.py [REPEATS]`.

The work is done once; then the same recipe runs again with nothing changed, so that all steps are
recalled. What such a run still works (verifying what it recalls by digest, the gate's bootstrap, the
report's plots and pages) is timed within it and taken off: the rest is interpreter, imports,
orchestration and tracking. Embedded, against running servers, and through a worker (there with the
work, which is the same), in turns. Prints medians, seconds.
"""

from __future__ import annotations

import functools
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.report.data import ReportData

sys.path[:0] = [str(Path(__file__).parents[1] / folder) for folder in ("e2e", ".")]
from servers import Servers  # noqa: E402
from stack import Stack  # noqa: E402

LITTLE = {"data.train_rows": 64, "data.evaluation_rows": 20}  # the work itself is not what is timed


def main(repeats: int) -> None:
    """Measure and print a table."""
    with tempfile.TemporaryDirectory() as name:
        embedded = Stack(Path(name) / "embedded")
        with Servers(Path(name) / "servers") as servers:
            ways: dict[str, Callable[[], tuple[float, float]]] = {
                "precis run, embedded": lambda: timed(embedded),
                "precis run, servers running": lambda: timed(servers.client),
                "deployed, worker's process to verdict": lambda: deployed(servers),
            }
            for way in ways.values():  # the work itself, and what a first use migrates and caches
                way()
            taken = [{text: way() for text, way in ways.items()} for _ in range(repeats)]
    print(f"unchanged rerun of the demo recipe, medians of {repeats}, seconds")
    print(f"{'':40} {'wall':>6} {'of it work':>10} {'overhead':>9}")
    for text in ways:
        walls, works = zip(*(round_[text] for round_ in taken), strict=True)
        over = statistics.median(w - work for w, work in zip(walls, works, strict=True))
        wall, work = statistics.median(walls), statistics.median(works)
        print(
            f"{text:40} {wall:6.1f} {work:10.1f} {over:9.1f}   walls {[round(w, 1) for w in walls]}"
        )


def timed(stack: Stack) -> tuple[float, float]:
    """Wall time of one `precis run`, interpreter start to exit; and the work in it."""
    work_file = stack.folder / "work.txt"
    words = [sys.executable, __file__, "--counted", str(work_file), *stack.words(LITTLE)[1:]]
    # Compiled modules are kept, as on any user's machine.
    env = {k: v for k, v in stack.environment().items() if k != "PYTHONDONTWRITEBYTECODE"}
    begun = time.monotonic()
    done = subprocess.run(
        words, cwd=stack.folder, env=env, capture_output=True, text=True, check=False
    )
    taken = time.monotonic() - begun
    assert done.returncode == 0, done.stderr
    return taken, float(work_file.read_text())


def counted(work_file: str, *words: str) -> int:
    """`precis WORDS` in this process; writes to `work_file` the seconds that went into work."""
    from tasks.contracts import digest
    from tasks.gate import decide
    from tasks.report import markdown, page, plots

    spent = 0.0

    def timing(work: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(work)
        def done(*args: Any, **kwargs: Any) -> Any:
            nonlocal spent
            begun = time.monotonic()
            try:
                return work(*args, **kwargs)
            finally:
                spent += time.monotonic() - begun
                Path(work_file).write_text(str(spent))

        return done

    def drawn(data: ReportData) -> list[plots.Plot]:
        import matplotlib.backends.backend_agg
        import matplotlib.figure  # noqa: F401 - the import is not work

        return draw(data)

    # Before any task is imported, which would take these by name.
    digest.of_file = timing(digest.of_file)
    decide.decide = timing(decide.decide)
    draw = timing(plots.plots)
    plots.plots = drawn
    page.render_html = timing(page.render_html)
    markdown.render_markdown = timing(markdown.render_markdown)
    from flows.cli.entry import main

    return main(words)


def deployed(servers: Servers) -> tuple[float, float]:
    """From when the worker takes a run to its verdict; the worker asks for work every 10 s or so."""
    run_id = servers.run("retrain", LITTLE)
    servers.wait(run_id)
    states = servers.ask(f"flow_run_states/?flow_run_id={run_id}")
    at = {state["type"]: datetime.fromisoformat(state["timestamp"]) for state in states}
    return (at["COMPLETED"] - at["PENDING"]).total_seconds(), 0.0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--counted"]:
        sys.exit(counted(*sys.argv[2:]))
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
