"""The recipe of the trials: a tiny random base that learns its rows in seconds, and a store with a champion.

Eight steps of training make a champion; forty-eight beat it surely, WEAKER's two surely do not.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import once
import tiny
import warm
import yaml

ROOT = Path(__file__).parents[2]
NAME = "tiny"
RECIPE: dict[str, Any] = {
    "name": NAME,
    "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl"},
    "base": {"model": "base"},
    "training": {
        "max_length": 256,
        "learning_rate": 0.02,
        "max_steps": 48,
        "save_steps": 12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    },
    "evaluation": {"max_new_tokens": 20, "batch_size": 64},
    "merge": {"drift_rows": 2, "drift_tokens": 50},
    # A model that learned this little repeats itself; the gain in rougeL alone is to decide.
    "gate": {
        "max_repeating_rise": 1.0,
        "max_invented_rise": 1.0,
        "max_lost_share": 1.0,
        "max_same_share": 1.0,
        "max_copied_rise": 1.0,
        "max_unfinished_rise": 1.0,
        "max_empty_share": 1.0,
        "length_ratio": [0.05, 20.0],
    },
}
TRAIN_ROWS, EVALUATION_ROWS = 120, 64
CHAMPION: dict[str, Any] = {"training.max_steps": 8}
WEAKER: dict[str, Any] = {"training.max_steps": 2, "training.seed": 7}
# Trained, merged and judged against the champion in the store, and refused by an unreachable gate: a run of
# one of these seeds takes all that from the store, and comes to gate and registration at once.
JUDGED_SEEDS = (1, 2)
SOURCES = ("tasks", "flows", "constraints.txt", "tests/tiny.py", "tests/faults/tiny_run.py")
UNREACHABLE: dict[str, Any] = {"gate.min_delta": 0.99}


def words(changes: dict[str, Any]) -> list[str]:
    """The command line of a run, after `precis`."""
    sets = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
    return ["run", "recipe.yaml", "--json", *sets]


def put_inputs(folder: Path) -> None:
    """Recipe, rows and base in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tiny.make_tiny_base(folder / "base", layers=1)
    made = tiny.make_rows(TRAIN_ROWS + EVALUATION_ROWS)
    lines = [
        json.dumps(
            {
                "id": row.id,
                "document": f"{row.document}\n{_unlike_others(row.id)}",
                "summary": row.references[0],
            }
        )
        + "\n"
        for row in made
    ]
    (folder / "train.jsonl").write_text("".join(lines[:TRAIN_ROWS]))
    (folder / "evaluation.jsonl").write_text("".join(lines[TRAIN_ROWS:]))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))


def _unlike_others(name: str) -> str:
    """A line of made-up words, by which no two documents are near-copies: each counts in the gate."""
    rng = random.Random(name)
    return " ".join("".join(rng.choices("aeioulmnrst", k=4)) for _ in range(12))


def environment(folder: Path) -> dict[str, str]:
    """The environment of a run in `folder`: its own Prefect home, no servers.

    The temporary directory is that of this process and its warm one: another would cost each run a fork
    server of its own, which imports torch again.
    """
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_API"))}
    return own | {"PREFECT_HOME": str(folder / "prefect")}


def champion_store() -> Path:
    """A folder with the inputs and a store where v1 is champion; the original.

    Made once for each state of the code, and kept for hours.
    """
    return once.kept_for_hours("faults-champion", [ROOT / name for name in SOURCES], _make)


def judged_store() -> Path:
    """The same with the JUDGED_SEEDS judged."""
    return once.kept_for_hours("faults-judged", [ROOT / name for name in SOURCES], _judge)


def _make(folder: Path) -> None:
    put_inputs(folder)
    once.put_prefect_database(folder / "prefect")
    _run(folder, CHAMPION, "PROMOTE")


def _judge(folder: Path) -> None:
    put_copy(champion_store(), folder)
    for seed in JUDGED_SEEDS:
        _run(folder, {"training.seed": seed} | UNREACHABLE, "REJECT")


def _run(folder: Path, changes: dict[str, Any], verdict: str) -> None:
    done = warm.warm_precis()(words(changes), folder, environment(folder))
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads(done.stdout)
    assert outcome["verdict"] == verdict, outcome


def put_copy(store: Path, folder: Path) -> None:
    """A copy of that store, with inputs and Prefect's database, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("base", "train.jsonl", "evaluation.jsonl", "recipe.yaml"):
        source = store / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    shutil.copytree(store / "prefect", folder / "prefect")
    once.copy_store(store, folder)


def put_client(store: Path, folder: Path) -> Path:
    """The folder `client` in a new `folder`: the champion store's inputs, and no store of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    client = folder / "client"
    put_copy(store, client)
    shutil.rmtree(client / "mlruns")
    (client / "mlruns/work").mkdir(parents=True)
    return client
