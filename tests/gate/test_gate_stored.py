"""Stored decisions: recomputed from what lies beside them, those of the version before too.

Over 250 lines: each kind of file beside a decision is stored, and then doctored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gate.gate_tables import judged, record, two_models
from pydantic import TypeAdapter

from tasks.contracts.digest import of_file
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Decision, Prediction, from_json, to_json
from tasks.contracts.slice_labels import write_labels
from tasks.gate.decide import decide
from tasks.gate.earlier_looks import EarlierLook, look_of
from tasks.gate.recompute import GateInputs, main, recompute
from tasks.tracking.predictions_table import read_table, write_table

# Written by the code of 2026-11-28 before its packages were made (commit b98b9c9): `promoted` and
# `rejected` are 40 rows of two runs of the demo, their texts shortened; the others are made-up scores.
# `sliced` is of the last code before the data's columns could be slices (1b3cb95).
PREVIOUS = Path(__file__).parent / "previous_decision"


def _stored(folder: Path, seed: int, kind: str = "champion") -> Decision:
    """A gate artifact as the gate task writes it: the champion's with baselines, the base's without."""
    ours, theirs = two_models(seed, gain=0.011)
    inputs = GateInputs(
        gate=Gate(min_delta=0.001),
        opponent_kind="base" if kind == "base" else "champion",
        opponent_version=None if kind == "base" else 4,
        looks=3,
        scores={"challenger": record(ours, "a"), "opponent": record(theirs, "b")},
    )
    shown = None if kind == "base" else theirs
    decision = _decided(inputs, ours, theirs, shown)
    tables = {"challenger": ours, "opponent": theirs, "base": shown, "lead3": shown}
    for name, rows in tables.items():
        if rows is not None:
            write_table(folder / f"{name}.json", rows)
            if name in inputs.scores:
                digest = of_file(folder / f"{name}.json")
                inputs.scores[name] = replace(inputs.scores[name], table_digest=digest)
    (folder / "gate_inputs.json").write_text(to_json(inputs))
    (folder / "decision.json").write_text(to_json(decision))
    return decision


def _decided(
    inputs: GateInputs,
    ours: list[Prediction],
    theirs: list[Prediction],
    shown: list[Prediction] | None,
    earlier: Sequence[EarlierLook] = (),
) -> Decision:
    return decide(
        ours,
        theirs,
        inputs.gate,
        opponent_kind=inputs.opponent_kind,
        opponent_version=inputs.opponent_version,
        challenger_scores=inputs.scores["challenger"],
        opponent_scores=inputs.scores["opponent"],
        base=shown,
        lead3=shown,
        looks=inputs.looks,
        earlier=earlier,
    )


@pytest.mark.parametrize("kind", ["champion", "base"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_stored_decision_is_recomputed_exactly(tmp_path: Path, seed: int, kind: str) -> None:
    """The decision recomputed from stored scores equals the stored decision, to the last bit."""
    decision = _stored(tmp_path, seed, kind)
    assert recompute(tmp_path) == decision
    assert main([str(tmp_path)]) == 0


def _stored_with_earlier(folder: Path) -> Decision:
    """The same, after another challenger whose scores are at hand."""
    _stored(folder, 1)
    ours, theirs = read_table(folder / "challenger.json"), read_table(folder / "opponent.json")
    inputs = from_json(GateInputs, (folder / "gate_inputs.json").read_bytes())
    other = two_models(1, gain=0.009)[0]
    first = judged(other, theirs, inputs.gate, digests=("first", "b"))
    earlier = [look_of(first, "rougeL", other, theirs)]
    (folder / "earlier_looks.json").write_bytes(TypeAdapter(list[EarlierLook]).dump_json(earlier))
    stored = replace(inputs, earlier_digest=of_file(folder / "earlier_looks.json"))
    decision = _decided(inputs, ours, theirs, theirs, earlier)
    (folder / "gate_inputs.json").write_text(to_json(stored))
    (folder / "decision.json").write_text(to_json(decision))
    return decision


def test_a_decision_after_earlier_looks_is_recomputed_exactly(tmp_path: Path) -> None:
    """What it used of earlier challengers is stored with it; without, its bound would be another."""
    decision = _stored_with_earlier(tmp_path)
    assert recompute(tmp_path) == decision
    assert decision.alpha > 0.05 / 9


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("[]")])
def test_doctored_earlier_looks_are_found_out(
    change: Callable[[Path], Any], tmp_path: Path
) -> None:
    """The file that is gone or was changed is named."""
    _stored_with_earlier(tmp_path)
    change(tmp_path / "earlier_looks.json")
    with pytest.raises(EvaluationError, match=r"earlier_looks\.json is gone or was changed"):
        recompute(tmp_path)


def _stored_with_labels(folder: Path) -> Decision:
    """A decision by topics, as the gate task writes it."""
    ours, theirs = two_models(1, gain=0.011)
    labels = {"topic": {row.id: (f"t{n % 3}", "每") for n, row in enumerate(ours)}}
    write_labels(folder / "labels.json", labels)
    scores = {"challenger": record(ours, "new"), "opponent": record(theirs, "old")}
    for name, rows in (("challenger", ours), ("opponent", theirs)):
        write_table(folder / f"{name}.json", rows)
    digest = of_file(folder / "labels.json")
    gate = Gate(slices=("topic", "length"), bootstrap_samples=1000)
    inputs = GateInputs(gate, "champion", 2, 1, scores, labels_digest=digest)
    decision = judged(ours, theirs, gate, labels=labels)
    (folder / "gate_inputs.json").write_text(to_json(inputs))
    (folder / "decision.json").write_text(to_json(decision))
    return decision


def test_a_decision_by_labels_is_recomputed_exactly(tmp_path: Path) -> None:
    """The labels are stored with it."""
    decision = _stored_with_labels(tmp_path)
    assert recompute(tmp_path) == decision
    assert [one.value for one in decision.slices][:4] == ["t0", "t1", "t2", "每"]


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("{}")])
def test_doctored_labels_are_found_out(change: Callable[[Path], Any], tmp_path: Path) -> None:
    """The file that is gone or was changed is named."""
    _stored_with_labels(tmp_path)
    change(tmp_path / "labels.json")
    with pytest.raises(EvaluationError, match=r"labels\.json is gone or was changed"):
        recompute(tmp_path)


def test_a_doctored_decision_is_found_out(tmp_path: Path) -> None:
    """A stored verdict that its scores do not give is seen by recomputing."""
    _stored(tmp_path, 1)
    path = tmp_path / "decision.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"verdict": "PROMOTE", "rows": stored["rows"] + 1}))
    assert main([str(tmp_path)]) == 1


def test_a_doctored_table_is_found_out(tmp_path: Path) -> None:
    """A stored table that is not the one scored is refused."""
    _stored(tmp_path, 1)
    write_table(tmp_path / "challenger.json", two_models(1, gain=0.2)[0])
    with pytest.raises(EvaluationError, match="changed after it was scored"):
        recompute(tmp_path)


@pytest.mark.parametrize("name", ["promoted", "rejected", "inconclusive", "by_loss", "sliced"])
def test_a_decision_of_the_version_before_is_recomputed_exactly(name: str) -> None:
    """Numbers to the last bit, reasons to the letter; only the wording of notes may change."""
    stored = from_json(Decision, (PREVIOUS / name / "decision.json").read_bytes())
    recomputed = recompute(PREVIOUS / name)
    assert replace(recomputed, notes=stored.notes) == stored
    assert len(recomputed.notes) == len(stored.notes)
    assert main([str(PREVIOUS / name)]) == 0


def _without_tables(folder: Path) -> None:
    _stored(folder, 1)
    (folder / "opponent.json").unlink()


def _garbled_inputs(folder: Path) -> None:
    _stored(folder, 1)
    (folder / "gate_inputs.json").write_text('{"gate": {}}')


def _garbled_table(folder: Path) -> None:
    _stored(folder, 1)
    inputs = json.loads((folder / "gate_inputs.json").read_text())
    inputs["scores"]["opponent"]["table_digest"] = ""
    (folder / "gate_inputs.json").write_text(json.dumps(inputs))
    (folder / "opponent.json").write_text("[]")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Path.rmdir, "is not a folder; name the artifact folder `gate`"),
        (lambda folder: None, "has no decision.json, no gate_inputs.json"),
        (_without_tables, "has no opponent.json, so it is not the artifact folder `sealed/gate`"),
        (_garbled_inputs, "gate_inputs.json cannot be read as GateInputs; fetch it again"),
        (_garbled_table, "opponent.json is not a predictions table; fetch it again"),
    ],
)
def test_a_wrong_folder_is_a_sentence(
    make: Callable[[Path], Any],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 1 and what is wrong; no traceback."""
    make(tmp_path)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert str(tmp_path) in printed


def _edited_scores(value: Any) -> Callable[[Path], None]:
    """A table whose scores were edited, and the digest by which that is known taken away."""

    def make(folder: Path) -> None:
        _stored(folder, 1)
        inputs = json.loads((folder / "gate_inputs.json").read_text())
        for scores in inputs["scores"].values():
            scores["table_digest"] = ""
        (folder / "gate_inputs.json").write_text(json.dumps(inputs))
        table = json.loads((folder / "challenger.json").read_text())
        table["data"][0][table["columns"].index("rougeL")] = value
        (folder / "challenger.json").write_text(json.dumps(table))

    return make


@pytest.mark.parametrize("value", ["high", None, [], {}, float("nan"), 1e400, 10**400, 0.99])
def test_edited_scores_are_a_sentence(
    value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever stands there in place of a score: exit status 1, and no traceback."""
    _edited_scores(value)(tmp_path)
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert re.search(
        "fetch the folder again|score it again|not a number from 0 to 1", printed.err
    ), printed


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[" * 100_000, b"null", b"[1]", b'{"data": 1}']
)
@pytest.mark.parametrize(
    "name", ["decision.json", "gate_inputs.json", "challenger.json", "base.json"]
)
def test_garbage_is_a_sentence(
    name: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In any of the files; the message names it."""
    _edited_scores(0.5)(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert main([str(tmp_path)]) == 1
    assert name in capsys.readouterr().err


def test_help_explains_the_folder(capsys: pytest.CaptureFixture[str]) -> None:
    """Where it is, on the embedded store and on a server; wrong usage is exit status 2."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "mlruns/artifacts/NAME/RUN/artifacts/sealed/gate" in printed
    assert "mlflow artifacts download -u runs:/RUN/sealed/gate" in printed
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
