"""A recipe with `register.as: adapter`, to a promotion, and what its readers make of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import warm
from register.registry import flip
from stack import Stack, stack_with_judged

from tasks.contracts import digest

# Two minutes of CPU, beyond those of the store.
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]


def precis(stack: Stack, *words: str) -> tuple[int, str]:
    """Exit status and all that `precis WORDS` prints."""
    done = warm.warm_precis()([*words], stack.folder, stack.environment())
    return done.returncode, done.stdout + done.stderr


def test_an_adapter_is_promoted_served_pulled_and_verified(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its readers give the judged model; once a byte of its base is flipped, none of them gives any."""
    stack = stack_with_judged(tmp_path, tmp_path_factory)
    decision = stack.run(register__as="adapter")
    assert decision["version"] == 1, decision["headline"]
    status, told = precis(stack, "verify", "demo", "--rows", "2")
    assert status == 0, told
    assert "2 stored summaries, written again and equal" in told
    assert "of precis-base-" in told
    status, told = precis(stack, "pull", "demo", "copy")
    assert status == 0, told
    assert digest.of_folder(tmp_path / "copy") == decision["model_digest"]
    assert not list(tmp_path.glob("mlruns/work/dequantized/*"))  # it is in the store
    rows = (Path(__file__).parents[2] / "deployments/demo/data/evaluation.jsonl").read_text()
    document = json.loads(rows.splitlines()[0])["dialogue"]
    (tmp_path / "document.txt").write_text(document)
    status, told = precis(stack, "ask", "demo", "--document", "document.txt")
    assert status == 0, told
    [base] = (tmp_path / "mlruns/artifacts/precis-bases").glob("models/*/artifacts/*.safetensors")
    flip(base)
    shutil.rmtree(tmp_path / "mlruns/work/whole")  # what was kept is still the judged model
    ask = ("ask", "demo", "--document", "document.txt")
    for words in (("verify", "demo"), ("pull", "demo", "again"), ask):
        status, told = precis(stack, *words)
        assert status == 1, (words, told)
        assert "model.safetensors was changed" in told, (words, told)
        assert "Traceback" not in told
    assert not (tmp_path / "again").exists()
