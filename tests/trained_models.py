"""Models that a whole run trained and judged, and the texts that it stored, for other engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import once
import yaml

from tasks.contracts.records import Prediction
from tasks.serving.summarizer import SummarizerSettings
from tasks.tracking.predictions_table import read_table

ROOT = Path(__file__).parents[1]
PRECIS = Path(sys.executable).parent / "precis"
DEMO = ROOT / "deployments/recipes/demo.yaml"
SOURCES = [ROOT / name for name in ("tasks", "flows", "deployments", "constraints.txt", __file__)]


@dataclass(frozen=True)
class Trained:
    """A package as users get it, and the rows that it was judged by, with its texts."""

    folder: Path
    rows: list[Prediction]

    @property
    def settings(self) -> SummarizerSettings:
        """How it was judged."""
        return SummarizerSettings.load(self.folder)


def demo() -> Trained:
    """The demo, trained as its recipe says, promoted and pulled; its 200 rows. 3 minutes on two cores."""
    folder = once.kept_for_hours("trained-demo", SOURCES, _make_demo)
    return Trained(folder / "pulled", _stored(folder))


def _make_demo(folder: Path) -> None:
    (folder / "deployments").symlink_to(ROOT / "deployments")
    decision = _precis(folder, "run", str(DEMO.relative_to(ROOT)), "--json")
    assert json.loads(decision)["verdict"] == "PROMOTE", decision
    _precis(folder, "pull", "demo", str(folder / "pulled"))


def chat(data: Path, base: Path) -> Trained:
    """A chat recipe on rows of several turns, 130 of them judged, whatever the verdict; a minute or two."""

    def make(folder: Path) -> None:
        _make_chat(folder, data, base)

    folder = once.kept_for_hours("trained-chat", SOURCES, make)
    (package,) = (folder / "mlruns/work/merge").glob("*/package")
    return Trained(package, _stored(folder))


def _make_chat(folder: Path, data: Path, base: Path) -> None:
    values = {
        "name": "talk",
        "data": {
            "train": str(data),
            "train_rows": 400,
            "evaluation_share": 0.25,
            "evaluation_rows": 130,  # of which 100 and more are not cut
        },
        "base": {"model": str(base)},
        "prompt": {"format": "chat", "chat_template": "llama-2", "system": "Be brief."},
        "training": {
            "max_steps": 40,
            "max_length": 512,
            "per_device_train_batch_size": 1,
            "learning_rate": 1e-3,
        },
        "evaluation": {"max_new_tokens": 40},
        "merge": {"drift_rows": 4, "drift_tokens": 100},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    _precis(folder, "run", "recipe.yaml", "--json")


def _precis(folder: Path, *words: str) -> str:
    left_out = ("MLFLOW_", "PREFECT_API", "PRECIS_")
    own = {k: v for k, v in os.environ.items() if not k.startswith(left_out)}
    once.put_prefect_database(folder / "prefect")
    own["PREFECT_HOME"] = str(folder / "prefect")
    done = subprocess.run(
        [PRECIS, *words], cwd=folder, env=own, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _stored(folder: Path) -> list[Prediction]:
    (table,) = (folder / "mlruns/artifacts").glob("*/*/artifacts/sealed/gate/challenger.json")
    return read_table(table)
