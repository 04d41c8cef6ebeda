"""Bad input: a clear error without a traceback, the champion untouched, nothing half-registered.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
import yaml
from stack import PRECIS
from warm import WarmPrecis

from tasks.register import claims
from tasks.tracking import connection

NAME = "tiny"
ROWS = [
    {
        "id": f"r{i}",
        "document": f"Ann: shall we meet at {i}?\nBob: no, at {i + 1}.",
        "summary": f"They meet at {i + 1}.",
    }
    for i in range(60)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny.make_tiny_base(folder)
    return folder


class Bench:
    """A folder with a recipe, its data and a champion; `fails` runs the recipe and checks the rest."""

    def __init__(self, home: Path, base: Path, prefect: str, warm_precis: WarmPrecis) -> None:
        self.home, self.prefect, self.warm_precis = home, prefect, warm_precis
        self.recipe: dict[str, Any] = {
            "name": NAME,
            "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl"},
            "base": {"model": str(base)},
            "training": {"max_length": 256, "max_steps": 1},
            "evaluation": {"max_new_tokens": 32},
            "gate": {
                "feedback": "open"
            },  # all 20 evaluation rows decide, the least that can promote
        }
        self.write("train.jsonl", ROWS[:40])
        self.write("evaluation.jsonl", ROWS[40:])
        client = connection.connect()
        run = client.create_run(client.create_experiment("elsewhere"))
        model = client.create_logged_model(run.info.experiment_id, source_run_id=run.info.run_id)
        tags = {claims.DIGEST: "d", claims.RUN_ID: run.info.run_id}
        source = f"models:/{model.model_id}"
        claims.succeed(client, NAME, None, source=source, tags=tags, description="first")

    def write(self, name: str, rows: list[dict[str, Any]]) -> Path:
        path = self.home / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def precis(self, verb: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`precis VERB recipe.yaml`, in a fork of a process that has everything imported."""
        argv, environment = self.command(verb, env)
        return self.warm_precis(argv, self.home, environment)

    def cold_precis(self, verb: str, **env: str) -> subprocess.CompletedProcess[str]:
        """The same as a user starts it."""
        argv, environment = self.command(verb, env)
        return subprocess.run(
            [PRECIS, *argv],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def command(self, verb: str, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
        (self.home / "recipe.yaml").write_text(yaml.safe_dump(self.recipe))
        own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        return [verb, "recipe.yaml"], own | {"PREFECT_API_URL": self.prefect} | env

    def fails(self, *messages: str, **env: str) -> None:
        self.failed(self.precis("run", **env), *messages)

    def failed(self, run: subprocess.CompletedProcess[str], *messages: str) -> None:
        """Exit status 1, and on standard error these messages without a traceback."""
        assert (run.returncode, run.stdout) == (1, ""), run.stderr
        assert "Traceback" not in run.stderr
        for message in messages:
            assert message in run.stderr

    def untouched(self) -> None:
        client = connection.connect()
        assert [v.number for v in claims.versions(client, NAME)] == [1]
        assert client.get_registered_model(NAME).aliases == {"champion": 1}


@pytest.fixture
def bench(
    home_with_store: Path, base: Path, prefect_server: str, warm_precis: WarmPrecis
) -> Iterator[Bench]:
    made = Bench(home_with_store, base, prefect_server, warm_precis)
    yield made
    made.untouched()
    mlflow.set_tracking_uri(None)


def test_a_missing_file(bench: Bench) -> None:
    """The path and the folder it was looked for in; from the real command as well."""
    bench.recipe["data"]["train"] = "no-such.jsonl"
    bench.fails("data.train", "no-such.jsonl")
    bench.failed(bench.cold_precis("run"), "data.train", "no-such.jsonl")


def test_an_empty_file(bench: Bench) -> None:
    """Named, and both files' problems at once."""
    bench.write("train.jsonl", [])
    bench.recipe["data"]["evaluation"] = "gone.jsonl"
    bench.fails("train.jsonl", "empty", "gone.jsonl")


def test_a_half_written_last_line(bench: Bench) -> None:
    """File and line, and where the rejects are."""
    path = bench.home / "train.jsonl"
    path.write_text(path.read_text()[:-20])
    bench.fails("train.jsonl:40", "rejects.jsonl", "max_rejected_share")


def test_a_wrong_column_name(bench: Bench) -> None:
    """The columns there are, and the nearest."""
    bench.recipe["data"]["fields"] = {"document": "documnt", "summary": "summary"}
    bench.fails("documnt", "document", "id")


def test_a_blank_summary(bench: Bench) -> None:
    """One error with the first of its line and how many more; the rejects file has each."""
    rows = [dict(row) for row in ROWS[:40]]
    rows[3]["summary"], rows[7]["summary"] = "  ", ""
    bench.write("train.jsonl", rows)
    bench.fails('train.jsonl:4 "summary" is blank', "(and 1 more like it)", "2 of 40 rows")
    (rejects,) = (bench.home / "mlruns/work/data").glob("*/rejects.jsonl")
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [4, 8]


def test_a_document_longer_than_the_context(bench: Bench) -> None:
    """With truncate: error such a row is rejected, with its length."""
    bench.recipe["prompt"] = {"truncate": "error"}
    bench.write("train.jsonl", [*ROWS[:39], {**ROWS[39], "document": "Ann: so. " * 900}])
    bench.fails("train.jsonl:40", "tokens")


def test_no_room_for_a_document(bench: Bench) -> None:
    """A summary as long as the context leaves nothing to summarize."""
    bench.recipe["evaluation"]["max_new_tokens"] = 5000
    bench.fails("evaluation.max_new_tokens (5000) leaves no room")


def test_a_bad_recipe(bench: Bench) -> None:
    """An unknown key and a negative epoch count, both at once."""
    bench.recipe["training"] |= {"epochs": 3, "num_train_epochs": -1}
    bench.fails("training.epochs: unknown key; did you mean", "training.num_train_epochs")


def test_a_base_that_does_not_exist(bench: Bench) -> None:
    """A mistyped folder and an unpinned hub name each get their way out."""
    bench.recipe["base"]["model"] = "./no/such/base"
    bench.fails("./no/such/base", "no such folder")
    bench.recipe["base"]["model"] = "someone/something"
    bench.fails("someone/something", "base.revision")
    bench.recipe["base"]["revision"] = "0" * 40
    bench.fails("someone/something", "in this machine's cache", "HF_HUB_OFFLINE")


def test_a_context_that_the_base_cannot_have(bench: Bench) -> None:
    """Past its maximum without a method; scaled though it reads as much; check says the same."""
    bench.recipe["base"]["context_tokens"] = 4096
    bench.fails("base.context_tokens (4096) is past the 512 tokens", "set base.rope")
    assert "set base.rope" in bench.precis("check").stdout
    bench.recipe["base"] |= {"context_tokens": 512, "rope": "ntk"}
    bench.fails("reads 512 tokens by itself", "leave base.rope out")
    bench.recipe["base"]["context_tokens"] = 1024
    bench.fails("training.max_length (256) cuts every row within the 512 tokens")
    bench.recipe["training"]["max_length"] = 1024
    done = bench.precis("check")
    assert done.returncode == 0, done.stdout
    assert "documents of 1024 tokens at once" in done.stdout


def test_a_base_without_weights(bench: Bench, base: Path) -> None:
    """Everything the folder lacks, at once."""
    folder = bench.home / "half"
    folder.mkdir()
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    bench.recipe["base"]["model"] = str(folder)
    bench.fails("no .safetensors weights", "no tokenizer.json")


def test_an_unreadable_registry(bench: Bench) -> None:
    """A store that is no database."""
    (bench.home / "broken.db").write_bytes(b"not a database, " * 100)
    uri = "sqlite:///broken.db"
    bench.fails("MLflow at sqlite:///", "broken.db", "unset it", MLFLOW_TRACKING_URI=uri)


class Failing(http.server.BaseHTTPRequestHandler):
    """An MLflow server that is ill."""

    def answer(self) -> None:
        self.send_response(500)
        self.end_headers()

    do_GET = do_POST = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def failing() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("alive", [True, False], ids=["errors", "refuses"])
def test_a_tracking_uri_that_does_not_work(bench: Bench, failing: str, alive: bool) -> None:
    """A server that answers 500, and none at all: the URI is named, quickly."""
    uri = failing if alive else "http://127.0.0.1:9"
    bench.fails(f"MLflow at {uri} does not answer", MLFLOW_TRACKING_URI=uri)


def test_check_tells_all_problems_of_a_recipe_at_once(bench: Bench, base: Path) -> None:
    """Data, base and registry in one go; exit status 1."""
    bench.recipe["data"]["train"] = "gone.jsonl"
    bench.recipe["base"]["model"] = "./gone"
    done = bench.precis("check")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "gone.jsonl" in done.stdout
    assert "./gone" in done.stdout
    bench.recipe["data"]["train"], bench.recipe["base"]["model"] = "train.jsonl", str(base)
    done = bench.precis("check")
    assert done.returncode == 0, done.stdout
    assert "nothing stands in the way" in done.stdout
    bench.recipe["adapter"] = {"target_modules": ["q_proj", "q_projj"]}
    done = bench.cold_precis("check")
    assert done.returncode == 1
    assert "has no layer q_projj; it has down_proj" in done.stdout
