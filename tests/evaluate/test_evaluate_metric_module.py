"""`evaluate.load(FOLDER)`: no network, no import of this project, the same numbers."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from test_evaluate_rouge import text

from tasks.evaluate.rouge.scoring import NAMES, score_pairs
from tasks.evaluate.seal import METRIC_FOLDER

SCRIPT = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

metric = evaluate.load(sys.argv[1])
calls = json.load(sys.stdin)
print(json.dumps([metric.compute(**call) for call in calls]))
assert "tasks" not in sys.modules
"""


@pytest.fixture(scope="module")
def pairs() -> tuple[list[str], list[str]]:
    """40 random predictions with a reference each."""
    rng = random.Random(7)
    return [text(rng) for _ in range(40)], [text(rng) for _ in range(40)]


@pytest.fixture(scope="module")
def answers(pairs: tuple[list[str], list[str]], tmp_path_factory: Any) -> list[dict[str, Any]]:
    """What the loaded module computes, in a process elsewhere that cannot import this project."""
    predictions, references = pairs
    several = [[one, other] for one, other in zip(references, references[::-1], strict=True)]
    calls = [
        {"predictions": predictions, "references": references, "use_aggregator": False},
        {"predictions": predictions, "references": several, "use_stemmer": True}
        | {"use_aggregator": False},
        {"predictions": predictions, "references": references, "use_stemmer": True},
    ]
    home = tmp_path_factory.mktemp("hf")
    env = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    env.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(METRIC_FOLDER)],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        cwd=home,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_scores_equal_the_flows(
    answers: list[dict[str, Any]], pairs: tuple[list[str], list[str]]
) -> None:
    """The module scores each pair as score_pairs does."""
    scores = score_pairs(*pairs, stemmer=False)
    assert answers[0] == {name: [one[name] for one in scores] for name in NAMES}


def test_several_references_and_stemmer(
    answers: list[dict[str, Any]], pairs: tuple[list[str], list[str]]
) -> None:
    """A list of references a prediction, stemmed."""
    predictions, references = pairs
    several = [[a, b] for a, b in zip(references, references[::-1], strict=True)]
    scores = score_pairs(predictions, several)
    assert answers[1] == {name: [one[name] for one in scores] for name in NAMES}


def test_the_aggregate_is_the_mean(
    answers: list[dict[str, Any]], pairs: tuple[list[str], list[str]]
) -> None:
    """The mean, not the median of a bootstrap that the hub's module draws."""
    scores = score_pairs(*pairs)
    assert answers[2] == {name: fmean(one[name] for one in scores) for name in NAMES}


def test_scoring_imports_neither_evaluate_nor_nltk() -> None:
    """The flow scores without the six seconds that importing `evaluate` takes."""
    script = (
        "import sys; from tasks.evaluate.scores import score_pairs\n"
        "assert score_pairs(['running'], ['runs'])[0]['rouge1'] == 1.0\n"
        "assert not {'evaluate', 'datasets', 'nltk', 'torch', 'mlflow'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
