"""What did not fit, counted from ingest to the terminal against numbers counted by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from gate.gate_tables import in_the_open, judged, table

from flows.outcome import Outcome
from tasks.contracts import truncation
from tasks.contracts.recipe import Data, Gate, Prompt, Recipe
from tasks.contracts.records import Prediction, Row, read_rows
from tasks.contracts.truncation import Cut
from tasks.evaluate.predict import predict
from tasks.evaluate.scores import lead3_predictions
from tasks.ingest.prepare import prepare
from tasks.models.encoding import encode_for
from tasks.report.task import StoredReport
from tasks.serving.summarizer import SummarizerSettings
from tasks.tracking.predictions_table import read_table

TEMPLATE = "z:{document}:"
AROUND = 4  # <s>, z and two colons; every z is a token of its own
MOST = 24  # so 20 z fit
TRAIN = (5, 20, 21, 30, 45, 50)  # cut by 1, 10, 25 and 30
EVALUATION = (20, 24, 40)  # cut by 4 and 20


def rows(sizes: tuple[int, ...], spell: str) -> list[dict[str, Any]]:
    """Documents of so many tokens, each unlike the others: z, and q where a binary digit is 1."""
    made = []
    for i, size in enumerate(sizes):
        head = f"{i:04b}".replace("0", "z").replace("1", "q")
        made.append({"document": head + spell * (size - 4), "summary": "z" * (6 + i)})
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"), context=64)


def settings(summarize: str = "direct") -> SummarizerSettings:
    return SummarizerSettings(TEMPLATE, MOST, "tail", 8, 2, summarize=summarize)


@pytest.fixture
def data(tmp_path: Path) -> Data:
    for name, sizes, spell in (("train", TRAIN, "z"), ("evaluation", EVALUATION, "q")):
        lines = [json.dumps(row) + "\n" for row in rows(sizes, spell)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    paths = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "evaluation")}
    return Data(**paths, near_duplicate_jaccard=1.0, near_duplicate_containment=1.0)


def ingested(data: Data, base: Path, folder: Path, wanted: SummarizerSettings) -> dict[str, Any]:
    prepare(data, Prompt(template=TEMPLATE), wanted, base, folder)
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def judged_by(base: Path, folder: Path, wanted: SummarizerSettings) -> list[Prediction]:
    """The predictions of the untuned base on ingested evaluation rows."""
    model = tiny.packaged(base, folder / "package", wanted)
    predict(str(model), str(folder / "evaluation.jsonl"), str(folder / "table.json"), "cpu")
    return read_table(folder / "table.json")


def test_cut_documents_are_counted_as_by_hand(data: Data, base: Path, tmp_path: Path) -> None:
    """Training and evaluation documents: how many, their share, tokens cut on average and at most."""
    report = ingested(data, base, tmp_path / "data", settings())
    (training,) = truncation.of_training(report, {})
    assert training == Cut("training documents", "cut", 4, 6, (1 + 10 + 25 + 30) / 4, 30)
    predictions = judged_by(base, tmp_path / "data", settings())
    assert [p.cut_tokens for p in predictions] == [0, 4, 20]
    assert {p.prompt_tokens for p in predictions} == {MOST}
    (evaluation,) = truncation.of_predictions("evaluation documents", predictions)
    assert evaluation == Cut("evaluation documents", "cut", 2, 3, 12.0, 20)
    found = report["evaluation"]["truncated_prompts"]
    assert (found["count"], found["tokens_cut"]["mean"], found["tokens_cut"]["max"]) == (2, 12, 20)
    assert truncation.as_metrics(predictions) == {
        "cut_documents": 2,
        "cut_mean_tokens": 12,
        "cut_largest_tokens": 20,
    }
    assert truncation.line([evaluation, training]) == (
        "cut: 2 of 3 evaluation documents (66.7%), by 12 tokens on average and 20 at most; "
        "4 of 6 training documents (66.7%), by 16 tokens on average and 30 at most"
    )


def test_under_map_reduce_evaluation_documents_are_read_in_parts(
    data: Data, base: Path, tmp_path: Path
) -> None:
    """They are not called cut; training documents are cut as before."""
    wanted = settings("map_reduce")
    report = ingested(data, base, tmp_path / "data", wanted)
    assert truncation.of_training(report, {})[0].count == 4
    assert "truncated_prompts" not in report["evaluation"]
    found = report["evaluation"]["prompts_in_parts"]
    assert found == {"count": 2, "share": pytest.approx(2 / 3, abs=1e-6), "limit": MOST}
    predictions = judged_by(base, tmp_path / "data", wanted)
    assert [p.prompt_tokens for p in predictions] == [AROUND + size for size in EVALUATION]
    assert predictions[0].parts == 1
    assert min(p.parts for p in predictions[1:]) >= 2
    parted = next(c for c in truncation.of_predictions("x", predictions) if c.unit == "parts")
    assert (parted.done, parted.count, parted.of) == ("summarized in parts", 2, 3)
    assert "summarized in parts: 2 of 3 x (66.7%), " in truncation.line([parted])


def test_training_learns_from_the_cut_document_under_map_reduce_too(
    data: Data, base: Path, tmp_path: Path
) -> None:
    """The same token ids, whichever way long documents are summarized."""
    from transformers import AutoTokenizer

    ingested(data, base, tmp_path / "data", settings())
    train = read_rows(tmp_path / "data" / "train.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = [
        encode_for(train, tokenizer, tiny.prepared(base, _recipe(base, summarize)))
        for summarize in ("direct", "map_reduce")
    ]
    assert found[0] == found[1]
    assert max(map(len, found[0].input_ids)) <= MOST + 6 + len(TRAIN)


def _recipe(base: Path, summarize: str) -> Recipe:
    return tiny.make_recipe(
        base,
        prompt={"template": TEMPLATE, "max_source_tokens": MOST, "summarize": summarize},
        training={"max_length": 64},
        evaluation={"max_new_tokens": 8},
    )


def test_cut_completions_are_counted_too() -> None:
    """From training's own metrics; how much of each is not known."""
    (found,) = truncation.of_training({}, {"rows": 1500.0, "truncated_rows": 3.0})
    assert truncation.line([found]) == "cut: 3 of 1,500 training completions (0.2%)"


def test_what_is_not_known_is_not_called_uncut() -> None:
    """A package of an older version does not count cuts, and lead-3 cuts nothing."""
    assert truncation.of_predictions("x", table([0.5] * 3)) == []
    copied = lead3_predictions([Row("1", "1", "One. Two.", ("One.",))])
    assert truncation.of_predictions("x", copied) == []
    assert truncation.as_metrics(copied) == {}


def test_the_terminal_says_it_in_one_line_if_anything_was_cut() -> None:
    """And the JSON object has the numbers."""
    rows_ = table([0.5] * 30)
    decision = in_the_open(judged(rows_, rows_, digests=("a", "b")))
    outcome = Outcome("demo", decision, None, "REJECTED demo", (), "run", "flow")
    assert "did not fit" not in outcome.as_text()
    none = Cut("evaluation documents", "cut", 0, 30, 0.0, 0)
    assert "did not fit" not in outcome.with_report(StoredReport("", (none,), ())).as_text()
    some = Cut("training documents", "cut", 2, 40, 15.0, 20)
    told = outcome.with_report(StoredReport("", (none, some), ()))
    lines = [line for line in told.as_text().splitlines() if "did not fit" in line]
    assert lines == [
        "did not fit: cut: 2 of 40 training documents (5.0%), by 15 tokens on average and 20 at most"
    ]
    assert json.loads(told.as_json())["cuts"][1] == {
        "what": "training documents",
        "done": "cut",
        "count": 2,
        "of": 40,
        "mean": 15.0,
        "largest": 20,
    }


def test_a_loss_is_shown_as_it_changed_in_the_terminal() -> None:
    """Numbers side by side, their difference, and which way is better; the JSON holds the gain."""
    draw = [2.0 + 0.01 * (i % 7) for i in range(40)]
    theirs = table([0.5] * 40, losses=draw)
    ours = [
        replace(r, scores=r.scores | {"loss": r.scores["loss"] - 0.1 - i / 1e4})
        for i, r in enumerate(theirs)
    ]
    gate = Gate(metric="loss", bootstrap_samples=1000)
    decision = in_the_open(
        judged(ours, theirs, gate, tokenizers=("t", "t"), lead3=table([0.5] * 40))
    )
    outcome = Outcome("qa", decision, 3, "PROMOTED qa v3", (), "run", "flow")
    text = outcome.as_text().splitlines()
    found = decision.metrics["loss"]
    assert text[1].endswith("challenger   change")
    assert text[2] == (
        f"loss      {'-':>9}{'-':>9}{found.champion:>9.4f}{found.challenger:>11.4f}   "
        f"-{found.gain:.4f} [-{found.high:.4f}, -{found.low:.4f}] (lower is better)"
    )
    assert json.loads(outcome.as_json())["metrics"]["loss"]["gain"] == found.gain > 0
