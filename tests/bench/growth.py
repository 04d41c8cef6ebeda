"""Growth: time and memory of ingest, overlap search, scoring and bootstrap at 1, 4 and 16 times the data.

    .venv/bin/python tests/bench/growth.py                        # the table, a minute
    .venv/bin/python tests/bench/growth.py --rows 8000            # the same, larger
    .venv/bin/python tests/bench/growth.py --ingest 1000000       # one ingest, from JSONL, CSV or Parquet
    .venv/bin/python tests/bench/growth.py --ingest 1000000 --form parquet

Rows are DialogSum's. Where more are wanted than there are, the same dialogues come again with every
third word replaced by one of another dialogue: as long, as common words, and no near duplicates.
Each measurement is a process of its own: wall and processor time of the work, what it imports included,
and the most that was resident, beside what was resident before the work. Needs ../shared/data and
../shared/models.

Over 250 lines: one script for four kinds of work, which share their rows.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import platform
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

SHARED = ROOT.parent / "shared"
TIMES = (1, 4, 16)
FORMS = ("jsonl", "csv", "parquet")
EVALUATION_SHARE = 10  # overlap search: one row in so many is an evaluation document
Texts = dict[str, str]


def real_rows() -> list[Texts]:
    """DialogSum's training rows: dialogue and summary."""
    with (SHARED / "data/dialogsum/train.jsonl").open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [{name: row[name] for name in ("dialogue", "summary")} for row in rows]


def rows_of(count: int) -> Iterator[Texts]:
    """`count` rows, none a near duplicate of another: the real ones, then their variations."""
    real, chance = real_rows(), random.Random(0)
    vocabulary = [word for row in real for word in row["dialogue"].split(" ") if "#" not in word]

    def varied(text: str) -> str:
        tokens = text.split(" ")
        others = iter(chance.choices(vocabulary, k=len(tokens) // 3 + 1))
        first = chance.randrange(3)
        for place in range(first, len(tokens), 3):
            if "#" not in tokens[place] and "\n" not in tokens[place]:
                tokens[place] = next(others)
        return " ".join(tokens)

    yield from itertools.islice(real, count)
    for number in range(len(real), count):
        row = real[number % len(real)]
        yield {name: varied(text) for name, text in row.items()}


def write(path: Path, count: int) -> None:
    """Rows into a file of the form that its name says, a few at a time."""
    names = ("id", "dialogue", "summary")
    rows = ({"id": f"row-{n}", **row} for n, row in enumerate(rows_of(count)))
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        schema = pyarrow.schema([(name, pyarrow.string()) for name in names])
        with ParquetWriter(path, schema) as file:
            while part := list(itertools.islice(rows, 100_000)):
                file.write_table(pyarrow.Table.from_pylist(part, schema=schema))
        return
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def ingest(path: Path) -> Callable[[], str]:
    """Everything that the ingest step does, a tenth of the documents held out."""
    from tasks.contracts.recipe import Recipe
    from tasks.ingest.prepare import prepare
    from tasks.models import find_base
    from tasks.models.prepared_base import BaseFolder

    base = SHARED / "models/dialog-7m"
    recipe = Recipe.model_validate(
        {"name": "growth", "data": {"train": str(path)}, "base": {"model": str(base)}}
    )
    settings = find_base.prepare(recipe, BaseFolder.read(base)).settings

    def work() -> str:
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            made = prepare(recipe.data, recipe.prompt, settings, base, Path(folder))
        return f"{made.train_rows} + {made.evaluation_rows} rows, {made.digest[:8]}"

    return work


def overlap(path: Path) -> Callable[[], str]:
    """Index a tenth of the documents, and ask it about the others."""
    from tasks.contracts.similar_documents import DocumentIndex
    from tasks.ingest.row_types import source_of

    with path.open(encoding="utf-8") as lines:
        documents = [json.loads(line)["dialogue"] for line in lines]
    held, asked = documents[::EVALUATION_SHARE], documents[1::EVALUATION_SHARE]

    def work() -> str:
        index = DocumentIndex(0.8, 0.5)
        for number, document in enumerate(held):
            index.add(source_of(document), str(number), document)
        return f"{sum(index.near(document) is not None for document in asked)} found"

    return work


def scoring(path: Path) -> Callable[[], str]:
    """ROUGE of another row's summary."""
    from tasks.contracts.records import Output, Row
    from tasks.evaluate.scores import score_texts

    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)["summary"] for line in lines]
    rows = [Row(str(n), str(n), "", (text,)) for n, text in enumerate(texts)]
    outputs = [Output(text, True, 0, 0, 0) for text in texts[1:] + texts[:1]]

    def work() -> str:
        found = score_texts(rows, outputs)
        return f"mean {sum(one.scores['rougeL'] for one in found) / len(found):.4f}"

    return work


def bootstrap(path: Path) -> Callable[[], str]:
    """10,000 resamples of as many documents, five metrics."""
    import numpy as np

    from tasks.gate.bootstrap import resample
    from tasks.gate.pairs import Pairs

    with path.open("rb") as lines:
        count = sum(1 for _ in lines)
    gains = np.random.default_rng(0).normal(0.01, 0.1, (count, 5))
    pairs = Pairs(gains, np.arange(count))
    return lambda: f"low {resample(pairs, 10_000, 0.05, 0).bounds(0, 0.05)[0]:.4f}"


STEPS: dict[str, Callable[[Path], Callable[[], str]]] = {
    step.__name__: step for step in (ingest, overlap, scoring, bootstrap)
}


def resident(name: str) -> float:
    """MiB of this process, from the kernel: VmRSS now, VmHWM at most so far."""
    # Not getrusage: what it calls a process's maximum begins with its parent's.
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def measure(step: str, path: Path) -> dict[str, float | str]:
    """One step over one file, here and now."""
    work = STEPS[step](path)
    before, begun, used = resident("VmRSS"), time.perf_counter(), time.process_time()
    work_result = work()
    seconds, used = time.perf_counter() - begun, time.process_time() - used
    peak = resident("VmHWM")
    return {
        "seconds": seconds,
        "cpu": used,
        "before": before,
        "peak": peak,
        "work_result": work_result,
    }


def in_a_process(step: str, path: Path) -> dict[str, float | str]:
    """`measure` in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--measure", step, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float | str] = json.loads(done.stdout)
    return found


def table(scratch: Path, rows: int, steps: list[str]) -> None:
    """All steps at all sizes. What grows is judged by processor time: others may be at work here."""
    head = f"{'step':10} {'rows':>9} {'wall s':>8} {'cpu s':>8} {'x':>5}"
    print(f"{head} {'peak MiB':>9} {'work MiB':>9} {'x':>5}")
    for times in TIMES:
        write(scratch / f"{times}.jsonl", rows * times)
    for step in steps:
        first = None
        for times in TIMES:
            found = in_a_process(step, scratch / f"{times}.jsonl")
            used, peak = float(found["cpu"]), float(found["peak"])
            grown = peak - float(found["before"])
            first = first or (used, grown)
            print(
                f"{step:10} {rows * times:9,} {found['seconds']:8.2f} {used:8.2f} {used / first[0]:5.1f} "
                f"{peak:9.0f} {grown:9.0f} {grown / max(first[1], 0.1):5.1f}  {found['work_result']}",
                flush=True,
            )


def one(scratch: Path, rows: int, form: str) -> None:
    """One ingest of so many rows."""
    path = scratch / f"rows.{form}"
    begun = time.perf_counter()
    write(path, rows)
    print(f"{rows:,} rows in {path.stat().st_size / 2**20:,.0f} MiB of {form}, ", end="")
    print(f"written in {time.perf_counter() - begun:.0f} s", flush=True)
    found = in_a_process("ingest", path)
    seconds = float(found["seconds"])
    rate = rows / float(found["cpu"])
    print(
        f"ingest: {seconds:.0f} s, {found['cpu']:.0f} s of processor ({rate:,.0f} rows/s), peak "
        f"{found['peak']:.0f} MiB, of it {found['before']:.0f} before the work; {found['work_result']}"
    )


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000, help="at 1x")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument(
        "--ingest", type=int, metavar="ROWS", help="one ingest instead of the table"
    )
    parser.add_argument("--form", choices=FORMS, default="jsonl")
    parser.add_argument("--scratch", type=Path, help="where rows are written; a temporary folder")
    parser.add_argument("--measure", nargs=2, metavar=("STEP", "FILE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    cores, day = len(os_cores()), datetime.now(UTC).date()
    print(f"{day}, Python {platform.python_version()}, {platform.machine()}, {cores} cores")
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        if options.ingest:
            one(scratch, options.ingest, options.form)
        else:
            table(scratch, options.rows, options.steps)
    finally:
        shutil.rmtree(scratch)


def os_cores() -> set[int]:
    """The cores that this process may use."""
    import os

    return os.sched_getaffinity(0)


if __name__ == "__main__":
    main()
