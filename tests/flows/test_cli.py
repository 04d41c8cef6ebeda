"""The `precis` command: its words, exit statuses and streams, and the page that is made from it."""

from __future__ import annotations

import dataclasses
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli import reference
from flows.cli.entry import main
from flows.evaluate import Evaluated
from flows.registry import Champion
from tasks.gate.task import Decay
from tasks.tracking import connection
from tasks.tracking.history import HistoryRecord

ROOT = Path(__file__).parents[2]
PRECIS = Path(sys.executable).parent / "precis"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    """The command sets TERM's handler."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "Missing command"),
        (["run"], "Missing argument 'RECIPE'"),
        (["rum", "x"], "Did you mean 'run'?"),
        (["run", "x.yaml", "--sets", "a=1"], "--set"),
        (["history", "a'b"], "no model's name"),
        (["ask", "NAME", "why", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["ask", "NAME", "why", "--device", "tpu"], "--device"),
        (["notify-data"], "name either a model or an --s3-event"),
        (["notify-data", "demo", "--s3-event", "-"], "name either a model or an --s3-event"),
    ],
)
def test_bad_usage_is_status_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every command line tool does; the message goes to standard error."""
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err


def test_a_failure_is_status_1_and_a_line(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a traceback; --debug, before the verb or after it, shows one."""
    assert main(["check", "none.yaml"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"precis: none\.yaml: no such recipe \(looked from .*\)\n", err)
    for words in (["--debug", "check", "none.yaml"], ["check", "none.yaml", "--debug"]):
        with pytest.raises(Exception, match="no such recipe"):
            main(words)


def test_json_is_all_that_is_printed(
    home_with_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One object; null where there is no champion. A name that nobody knows is an error: status 1."""
    client = connection.connect()
    client.create_run(client.create_experiment("known"))
    assert main(["champion", "known", "--json"]) == 0
    assert capsys.readouterr() == ("null\n", "")
    for words in (
        ["champion", "--json", "demo"],
        ["history", "--json", "demo"],
        ["history", "demo"],
    ):
        assert main(words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "knows no model 'demo'; it has: known" in err


def test_the_command_is_a_process_of_that_status() -> None:
    """Help on standard output, at once: half a second on a quiet machine, of which this is the work."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run([PRECIS, "--help"], capture_output=True, text=True, check=False)
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
    assert (done.returncode, done.stderr) == (0, "")
    assert "notify-data" in done.stdout
    assert seconds < 0.5
    assert subprocess.run([PRECIS, "rum"], capture_output=True, check=False).returncode == 2


def test_help_imports_nothing_heavy() -> None:
    """Neither Prefect nor MLflow or torch."""
    script = (
        "import sys; from flows.cli.entry import main; main(['run', '--help'])\n"
        "heavy = {'prefect', 'mlflow', 'torch', 'rich', 'yaml'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", ["60", "200"])
def test_its_page_is_up_to_date(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """docs/cli.md is what `make docs` makes, on any terminal."""
    monkeypatch.setenv("COLUMNS", columns)
    assert (ROOT / "docs/cli.md").read_text() == reference.page()
    assert os.environ["COLUMNS"] == columns


def json_keys(verb: str) -> set[str]:
    """What the page says of the verb's object."""
    section = reference.JSON.split(f"\n`precis {verb}`")[1].split("\n`precis ")[0]
    return set(re.findall(r"`(\w+)`", section))


@pytest.mark.parametrize(
    ("verb", "records"),
    [("evaluate", [Decay, Evaluated]), ("champion", [Champion]), ("history", [HistoryRecord])],
)
def test_its_page_names_every_key_of_the_json(verb: str, records: list[type]) -> None:
    """Of a run's object this is tested where one is made: tests/e2e/test_retrain.py."""
    keys = {field.name for record in records for field in dataclasses.fields(record)} - {"decay"}
    assert keys <= json_keys(verb)
