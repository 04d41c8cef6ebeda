"""Broken recipes, data and bases: each refused with what and where, soon, and nothing else touched."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import broken_inputs
import mlflow
import pytest
import tiny
from broken_inputs import Case

from flows.cli import entry
from tasks.register import claims
from tasks.tracking import connection

CASES = broken_inputs.cases()
MOST_SECONDS = 60.0  # of CPU, for one; most take a tenth of a second
FIRST = 12  # every so manieth is tried by `make test`, all by `make test-all`


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def registry(home_with_store: Path) -> Iterator[Path]:
    """A store with a champion, which stays as it is."""
    client = connection.connect()
    run = client.create_run(client.create_experiment("elsewhere"))
    model = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
    tags = {claims.DIGEST: "d", claims.RUN_ID: run.info.run_id}
    source = f"models:/{model.model_id}"
    claims.succeed(client, "broken", None, source=source, tags=tags, description="first")
    before = _content(home_with_store)
    yield home_with_store
    assert [v.number for v in claims.versions(client, "broken")] == [1]
    assert client.get_registered_model("broken").aliases == {"champion": 1}
    assert _content(home_with_store) == before
    mlflow.set_tracking_uri(None)


def _content(home: Path) -> list[str]:
    """Everything below mlruns but for the database's own files."""
    files = (home / "mlruns").rglob("*")
    return sorted(str(path) for path in files if not path.name.startswith("mlflow.db"))


def refuse(case: Case, base: Path, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """`precis check` of the case, in this process: what it must not do, and what it must say."""
    folder.mkdir()
    recipe = case.make(folder, base)
    capfd.readouterr()
    started = time.process_time()
    status = entry.main(["check", str(recipe)])
    seconds = time.process_time() - started
    captured = capfd.readouterr()
    text = captured.out + captured.err
    assert status == 1, f"{case.name}: not refused\n{text}"
    assert "Traceback" not in text, case.name
    assert re.search(case.words, text, re.DOTALL), f"{case.name}: {case.words}\n{text}"
    assert len(text) < 20_000, f"{case.name}: nobody reads {len(text)} characters"
    assert seconds < MOST_SECONDS, f"{case.name}: {seconds:.0f} s"


def test_there_are_200_of_them_each_with_its_name() -> None:
    """Names are folders too."""
    names = [case.name for case in CASES]
    assert len(names) >= 200
    assert len(set(names)) == len(names)
    assert not [name for name in names if "/" in name or len(name) > 100]


def test_the_whole_input_has_no_fault(
    home_with_store: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What the cases differ from is accepted: each is refused for its own fault."""
    values = broken_inputs.recipe_of(home_with_store, base)
    recipe = broken_inputs.write_recipe(home_with_store, values)
    assert entry.main(["check", str(recipe)]) == 0
    assert "nothing stands in the way" in capfd.readouterr().out
    mlflow.set_tracking_uri(None)


@pytest.mark.parametrize(
    "cases",
    [
        pytest.param(CASES[::FIRST], id="some"),
        pytest.param(CASES, id="all", marks=pytest.mark.full),
    ],
)
def test_they_are_refused(
    cases: list[Case], registry: Path, base: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Exit status 1, no traceback, what and where; the registry and mlruns stay as they were."""
    failures = []
    for case in cases:
        try:
            refuse(case, base, registry / case.name, capfd)
        except Exception as error:  # noqa: BLE001 - a traceback is what must not be; all are listed
            failures.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not failures, "\n\n".join(failures)


LIMITS = ["recipe-pipe", "recipe-gigabyte", "recipe-alias-bomb", "base-config-gigabyte"]


@pytest.mark.full
@pytest.mark.parametrize("name", LIMITS)
def test_a_process_of_its_own_needs_neither_time_nor_memory(
    name: str, registry: Path, base: Path
) -> None:
    """As a user starts it, with an address space of 6 GB (imports take most of it): 20 s, status 1."""
    [case] = [case for case in CASES if case.name == name]
    (registry / "case").mkdir()
    recipe = case.make(registry / "case", base)
    precis = Path(broken_inputs.__file__).parents[2] / ".venv/bin/precis"
    ended = subprocess.run(
        ["bash", "-c", f"ulimit -v 6000000; exec '{precis}' check '{recipe}'"],
        cwd=registry,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    assert re.search(case.words, ended.stdout + ended.stderr)
