"""Chat and question answering through the whole pipeline, on real rows and a small real base."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from stack import PRECIS, Stack

from tasks.models.chat_templates import LLAMA_2
from tasks.serving.summarizer import Generator

# test_known_recipes.py runs the recipes on the same data.
pytestmark = [pytest.mark.full, pytest.mark.long, pytest.mark.timeout(900)]
SETS = {"guanaco": "guanaco/train.jsonl", "medquad": "medquad/medquad_3k.jsonl"}


def recipe(shared: Path, name: str, **prompt: Any) -> dict[str, Any]:
    return {
        "name": name,
        "data": {
            "train": str(shared / "data" / SETS[name]),
            "train_rows": 120,
            "evaluation_rows": 24,
        },
        "base": {"model": str(shared / "models/dialog-7m")},
        "prompt": {"format": "chat", **prompt},
        "training": {"max_steps": 2, "max_length": 512, "per_device_train_batch_size": 1},
        "evaluation": {"max_new_tokens": 24},
        "merge": {"drift_rows": 4, "drift_tokens": 100},
        "gate": {"feedback": "open"},  # numbers are looked at
    }


def precis(stack: Stack, verb: str, values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    (stack.folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    words = [PRECIS, verb, "recipe.yaml", *(["--json"] if verb == "run" else [])]
    return subprocess.run(
        words,
        cwd=stack.folder,
        env=stack.environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_says_that_a_base_has_no_template(shared: Path, tmp_path: Path) -> None:
    """Before anything is spent, with what to do; with a template named, nothing stands in the way."""
    stack = Stack(tmp_path)
    done = precis(stack, "check", recipe(shared, "guanaco"))
    assert done.returncode == 1
    assert "dialog-7m has no chat template; set prompt.chat_template (llama-2" in done.stdout
    done = precis(stack, "check", recipe(shared, "guanaco", chat_template="llama-2"))
    assert (done.returncode, "nothing stands in the way" in done.stdout) == (0, True), done.stdout


@pytest.mark.parametrize("name", SETS)
def test_a_chat_recipe_runs_to_its_verdict(name: str, shared: Path, tmp_path: Path) -> None:
    """Rows to verdict; the merged package writes, and is asked, in the template it was trained with."""
    stack = Stack(tmp_path)
    done = precis(stack, "run", recipe(shared, name, chat_template="llama-2", system="Be brief."))
    assert done.returncode == 0, done.stderr[-4000:]
    decision = json.loads(done.stdout)
    assert decision["metrics"]["rougeL"]["challenger"] is not None
    (package,) = (tmp_path / "mlruns/work/merge").glob("*/package")
    assert (package / "chat_template.jinja").read_text().endswith(LLAMA_2)
    expected = Generator(package, "cpu").summarize(["What is a cold?"])[0].text
    asked = subprocess.run(
        [PRECIS, "ask", str(package), "--device", "cpu", "What is a cold?"],
        cwd=tmp_path, env=stack.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == f"{expected}\n"
