"""A package is judged by its own code, on every row, or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.errors import EvaluationError
from tasks.contracts.records import Row
from tasks.evaluate.predict import load_code, predict
from tasks.evaluate.scores import batch_plan, measures
from tasks.processes import step_process
from tasks.serving.summarizer import Generator, SummarizerSettings
from tasks.tracking.predictions_table import read_table

ROWS = tiny.make_rows(7)
SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 12, 3)


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(base: Path, folder: Path, settings: SummarizerSettings = SETTINGS) -> Path:
    return tiny.packaged(base, folder, settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    """A package of a random tiny model."""
    return packaged(base, tmp_path / "package")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", ROWS)


def test_every_row_gets_a_prediction_in_its_order(model: Path, rows: Path, tmp_path: Path) -> None:
    """The child reports progress, and answers with what its table holds."""
    lines: list[dict[str, Any]] = []
    table = tmp_path / "new" / "table.json"
    answer = step_process.run(
        "tasks.evaluate.predict:predict",
        {"package": str(model), "rows": str(rows), "table": str(table)},
        tmp_path / "child",
        on_progress=lines.append,
        threads=1,
    )
    predictions = read_table(table)
    assert [Row(p.id, p.source, p.document, p.references) for p in predictions] == ROWS
    assert [(line["done"], line["total"]) for line in lines] == [(3, 7), (6, 7), (7, 7)]
    assert answer.items() >= vars(measures(predictions)).items()
    assert answer["output_tokens"] == sum(p.output_tokens for p in predictions)
    assert (answer["device"], answer["dtype"]) == ("cpu", "float32")
    assert answer["seconds"] > 0


def test_the_package_own_code_runs(model: Path, rows: Path, tmp_path: Path) -> None:
    """What is edited in the package, and nowhere else, shows in the outputs."""
    tiny.edit_package(
        model, "return Summary(text.strip(),", "return Summary('EDITED ' + text.strip(),"
    )
    predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")
    assert all(p.text.startswith("EDITED ") for p in read_table(tmp_path / "table.json"))


def test_loading_the_code_registers_nothing(model: Path) -> None:
    """Only MLflow, which loads the file by itself, sets the model to serve."""
    tiny.edit_package(model, "mlflow.models.set_model(Summarizer())", "raise AssertionError")
    assert load_code(model).Generator is not Generator


def test_the_table_holds_the_batch_plan(model: Path, rows: Path, tmp_path: Path) -> None:
    """Generating the plan's batches again, in its order, is an exact replay."""
    predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")
    predictions = read_table(tmp_path / "table.json")
    generator = Generator(model, "cpu")
    plan = batch_plan(predictions)
    assert plan == generator.batches([row.document for row in ROWS])
    for number, batch in enumerate(plan):
        again = generator.summarize_batch([ROWS[i].document for i in batch], number)
        assert [s.text for s in again] == [predictions[i].text for i in batch]


FAILURES = [
    ("CUDA out of memory. Tried", "batch 1 of 3 failed.*lower evaluation.batch_size"),
    ("can't allocate memory: you", "batch 1 of 3 failed.*lower evaluation.batch_size"),
    ("device-side assert", r"batch 1 of 3 failed \(RuntimeError: device-side assert\)$"),
]


@pytest.mark.parametrize(("problem", "says"), FAILURES)
def test_a_failed_batch_stops_the_evaluation(
    model: Path, rows: Path, tmp_path: Path, problem: str, says: str
) -> None:
    """Out of memory, or anything else: an error that says how to fix it, and no table."""
    tiny.edit_package(
        model,
        "        prompts = [encode(",
        f"        raise RuntimeError({problem!r})\n        x = [(",
    )
    with pytest.raises(EvaluationError, match=says):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")
    assert not (tmp_path / "table.json").exists()


def test_a_lost_output_stops_the_evaluation(model: Path, rows: Path, tmp_path: Path) -> None:
    """A batch that gives back fewer summaries than documents is a failure, not a shift by one."""
    pairs = "zip(rows, prompts, strict=True)"
    tiny.edit_package(model, f"in {pairs}", f"in list({pairs})[1:]")
    with pytest.raises(EvaluationError, match="batch 1 of 3 failed"):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "holds no rows"), ('{"id": "1"', "cannot be read"), (None, "cannot be read")],
)
def test_rows_must_be_there(model: Path, tmp_path: Path, text: str | None, says: str) -> None:
    """Empty, half written or missing rows."""
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(EvaluationError, match=says):
        predict(str(model), str(path), str(tmp_path / "table.json"), "cpu")


def test_a_package_must_hold_code_and_weights(model: Path, rows: Path, tmp_path: Path) -> None:
    shutil.rmtree(model / "summarizer")
    with pytest.raises(EvaluationError, match="could not be loaded"):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")


def test_weights_that_are_not_finite_are_refused(model: Path, rows: Path, tmp_path: Path) -> None:
    """The most likely token of NaNs is still a token: such a model is not scored."""
    from safetensors.torch import load_file, save_file

    weights = load_file(model / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    (model / "model.safetensors").unlink()  # a link to the base's
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(EvaluationError, match=r"not finite: model\.norm\.weight"):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")


def test_a_prompt_that_cannot_fit_is_an_error(base: Path, rows: Path, tmp_path: Path) -> None:
    """The template alone is longer than the prompt may be."""
    model = packaged(base, tmp_path / "package", replace(SETTINGS, max_source_tokens=5))
    with pytest.raises(EvaluationError, match=r"shorten prompt\.template"):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu")


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of the real small base."""
    settings = replace(SETTINGS, max_source_tokens=900, max_new_tokens=20)
    return packaged(shared / "models/dialog-7m", tmp_path_factory.mktemp("real"), settings)


@pytest.fixture(scope="module")
def dialogues(shared: Path) -> list[str]:
    """32 real dev documents."""
    with (shared / "data/dialogsum/dev.jsonl").open() as lines:
        return [json.loads(line)["dialogue"] for line in islice(lines, 32)]


def written(model: Path, documents: list[str], **changes: Any) -> list[Any]:
    """What the model writes for each document, all but the batch number."""
    generator = Generator(model, "cpu")
    generator.settings = replace(generator.settings, **changes)
    return [replace(summary, batch=0) for summary in generator.summarize(documents)]


def test_batching_changes_nothing_in_float32(real: Path, dialogues: list[str]) -> None:
    """One by one, or eight at a time: 32 of 32 outputs equal."""
    assert written(real, dialogues, batch_size=1) == written(real, dialogues, batch_size=8)


def test_stop_strings_do_not_depend_on_the_batch(real: Path, dialogues: list[str]) -> None:
    """A summary that a stop string ends early is not charged for its batch's padding."""
    short = {"stop": ("e",), "max_new_tokens": 10}
    alone = written(real, dialogues[:8], batch_size=1, **short)
    assert alone == written(real, dialogues[:8], batch_size=8, **short)
    assert min(one.output_tokens for one in alone) < 5
