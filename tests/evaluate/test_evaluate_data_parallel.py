"""An evaluation split over several processes is the evaluation of one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.errors import EvaluationError
from tasks.evaluate import data_parallel, predict
from tasks.models import package
from tasks.processes import step_process
from tasks.serving.summarizer import SummarizerSettings

SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 8, 2)
ROWS = tiny.make_rows(7)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return tiny.packaged(base, tmp_path / "package", SETTINGS)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", ROWS)


def test_shares_of_one_plan_are_the_whole(model: Path, rows: Path) -> None:
    """Each process writes its batches of the same plan: together, what one process writes."""
    [whole] = [predict.write(str(model), str(rows), "cpu", loss=True)]
    parts = [predict.write(str(model), str(rows), "cpu", True, part, 3) for part in range(3)]
    assert [len(part["outputs"]) for part in parts] == [3, 2, 2]
    for name in ("outputs", "losses"):
        assert data_parallel.in_order(name, parts, 7) == data_parallel.in_order(name, [whole], 7)
    assert {output["batch"] for output in parts[1]["outputs"].values()} == {1}
    assert (whole["device"], whole["decoding"]) == ("cpu", "generate")


def test_a_row_that_no_process_wrote_is_an_error(model: Path, rows: Path) -> None:
    parts = [predict.write(str(model), str(rows), "cpu", False, part, 3) for part in (0, 2)]
    with pytest.raises(EvaluationError, match="without outputs"):
        data_parallel.in_order("outputs", parts, 7)


def evaluated(model: Path, rows: Path, folder: Path, devices: int) -> tuple[Any, bytes, list[Any]]:
    lines: list[dict[str, Any]] = []
    table = folder / "table.json"
    call = {"package": str(model), "rows": str(rows), "table": str(table), "loss": True}
    answer = step_process.run(
        "tasks.evaluate.predict:predict",
        call | {"devices": devices},
        folder,
        on_progress=lines.append,
    )
    return answer, table.read_bytes(), lines


@pytest.mark.full
def test_two_processes_write_the_table_of_one(model: Path, rows: Path, tmp_path: Path) -> None:
    """Byte for byte, rows in their order, and progress is of all rows; continuously too."""
    for decoding in ("generate", "continuous"):
        package.add_summarizer(model, replace(SETTINGS, decoding=decoding))
        one, table, _ = evaluated(model, rows, tmp_path / decoding / "one", 1)
        two, same, lines = evaluated(model, rows, tmp_path / decoding / "two", 2)
        assert same == table
        assert one | {"seconds": 0} == two | {"seconds": 0}
        assert one["decoding"] == decoding
        written = [line for line in lines if "what" not in line]
        assert {line["total"] for line in lines} == {7}
        assert sorted(line["done"] for line in written) == [line["done"] for line in written]
        assert written[-1]["done"] == lines[-1]["done"] == 7


@pytest.mark.full
def test_one_failure_ends_all(model: Path, rows: Path, tmp_path: Path) -> None:
    """The second batch fails in its process while the other one hangs: its error, soon, no table."""
    before = "        prompts = [encode("
    told = "        __import__('time').sleep(500) if batch == 0 else 1 / 0\n"
    tiny.edit_package(model, before, told + before)
    with pytest.raises(EvaluationError, match=r"batch 2 of 4 failed \(ZeroDivisionError"):
        evaluated(model, rows, tmp_path / "out", 2)
    assert not (tmp_path / "out" / "table.json").exists()
