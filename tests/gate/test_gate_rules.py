"""Rules that read texts change with a new SCHEMA alone; decisions by those of before are held to all else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import code_digest
from tasks.contracts.findings import Findings
from tasks.contracts.records import Decision, from_json
from tasks.gate import recompute, stored
from tasks.gate.decide import SCHEMA
from tasks.tracking import connection

PREVIOUS = Path(__file__).parent / "previous_decision"
# Written by code of before 2026-11-29 (1b3cb95); outputs as "two-thirds of TX" for 66 2/3 percent in Texas.
BEFORE = ("names_held", "names_broken", "names_doubted")

# The rules by which texts decide, and the schema that they are: digests of syntax trees (code_digest.py).
RULES = {
    "schema": 4,
    "contracts.capitalized_words": "33b63e0981e8",
    "contracts.comparable_text": "ef7a1593c750",
    "contracts.documents": "99d601b45c70",
    "contracts.fractions_in_text": "26dfbad007bf",
    "contracts.name_forms": "67b76fb3a180",
    "contracts.number_words": "f30ec9169ebc",
    "contracts.numbers_in_text": "a5d27ac258d1",
    "contracts.similar_documents": "97ca2176e23c",
    "contracts.slice_labels": "d4b8895fc2ad",
    "contracts.unsupported": "c99f2e49d45e",
    "contracts.words": "4a0c09305c31",
    "gate.clusters": "a482a6ac585d",
    "gate.invented": "f1e64c55919a",
    "gate.output_faults": "b73154101805",
    "gate.slice_members": "ae3f299145bf",
}


def _rules() -> dict[str, Any]:
    roots = ("gate.clusters", "gate.invented", "gate.output_faults", "gate.slice_members")
    names = code_digest._with_imports([f"tasks.{root}" for root in roots], code_digest.ROOT)
    files = {name: code_digest.ROOT.joinpath(*name.split(".")).with_suffix(".py") for name in names}
    found = {
        name.removeprefix("tasks."): code_digest.of_file(path)[:12]
        for name, path in sorted(files.items())
        if path.is_file() and name != "tasks.contracts.records"  # what is stored, and no rule
    }
    return {"schema": SCHEMA} | found


def test_a_changed_rule_needs_a_new_schema() -> None:
    """Else a stored decision that today's rules do not give looks like one that was edited."""
    found = _rules()
    changed = sorted(n for n in {*found, *RULES} if found.get(n) != RULES.get(n))
    assert not changed, (
        f"{', '.join(changed)}: rules by which texts decide have changed. A changed rule needs a new SCHEMA "
        "(tasks/gate/decide.py): raise it, keep the old rule for the schema before, as "
        "guardrails_schema_1.py, or say what of it cannot be computed again, as sharper_rules.py. If no "
        f"text is judged otherwise, leave SCHEMA. Then write down here RULES = {found}"
    )


@pytest.mark.parametrize("name", BEFORE)
def test_all_but_invented_rise_is_held(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Held or broken, beyond noise or not: the stored decision follows from the share on record."""
    decision = from_json(Decision, (PREVIOUS / name / "decision.json").read_bytes())
    made = recompute.recompute_all(PREVIOUS / name)
    assert replace(made.decision, notes=()) == replace(decision, notes=())
    assert recompute.main([str(PREVIOUS / name)]) == 0
    printed = capsys.readouterr().out
    assert "invented_rise cannot be held to the last bit" in printed
    assert "made sharper on 2026-11-29" in printed
    assert "differ" not in printed


def _of_invented(**values: Any) -> Callable[[Any], None]:
    def change(decision: Any) -> None:
        [one] = [one for one in decision["guardrails"] if one["name"] == "invented_rise"]
        one |= values

    return change


CHANGES: dict[str, Callable[[Any], Any]] = {
    "verdict": lambda d: d | {"verdict": "PROMOTE"},
    "reasons": lambda d: d | {"reasons": ["gained"]},
    "rows": lambda d: d | {"rows": d["rows"] + 1},
    "another guardrail": lambda d: d["guardrails"][0].update(value=0.5),
    "a metric": lambda d: d["metrics"]["rougeL"].update(gain=0.5),
    "no share of these rows": _of_invented(value=0.4),
    "more than all": _of_invented(value=2.0),
    "no number": _of_invented(value=float("nan")),
    "its bound": _of_invented(bound="<= 1"),
    "held": _of_invented(held=True),
    "a later schema": lambda d: d | {"schema_version": SCHEMA},
    "an earlier schema": lambda d: d | {"schema_version": 2},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_anything_else_that_differs_is_found_out(
    change: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Sharper rules excuse no edit."""
    folder = shutil.copytree(PREVIOUS / "names_broken", tmp_path / "gate")
    decision = json.loads((folder / "decision.json").read_text())
    (folder / "decision.json").write_text(json.dumps(change(decision) or decision))
    assert recompute.main([str(folder)]) == 1


@pytest.mark.parametrize("name", BEFORE)
def test_verify_says_it_as_a_remark(name: str, home_with_store: Path) -> None:
    """No difference, and nothing is to be restored; what was shown of it is checked too."""
    client = connection.connect()
    experiment = client.create_experiment("demo")
    verdict = json.loads((PREVIOUS / name / "decision.json").read_bytes())["verdict"]
    run_id = client.create_run(experiment, tags={"precis.verdict": verdict}).info.run_id
    shown = PREVIOUS / name / "shown.json"
    client.log_artifacts(run_id, str(shown.parent), "sealed/gate" if shown.exists() else "gate")
    if shown.exists():
        client.log_artifact(run_id, str(shown), "gate")
    found = Findings()
    assert stored.check(client, run_id, home_with_store / "scratch", found)
    assert found.differences == []
    assert any("cannot be held to the last bit" in remark for remark in found.remarks)
    if shown.exists():
        edited = json.loads(shown.read_bytes()) | {"rows": 1}
        (home_with_store / "shown.json").write_text(json.dumps(edited))
        client.log_artifact(run_id, str(home_with_store / "shown.json"), "gate")
        stored.check(client, run_id, home_with_store / "again", found)
        assert [one for one in found.differences if "does not tell what was decided" in one]
