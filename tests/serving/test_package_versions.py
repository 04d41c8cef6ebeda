"""Packages answer by the code that they carry: of an earlier version, or of two versions side by side."""

from __future__ import annotations

import inspect
import runpy
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts import digest
from tasks.evaluate.predict import predict
from tasks.models import package_code
from tasks.models.chat_session import ChatSession
from tasks.models.chat_templates import LLAMA_2
from tasks.serving.summarizer import Generator, SummarizerSettings
from tasks.tracking.predictions_table import read_table

PREVIOUS = Path(__file__).parent / "previous_package"
SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 12, 3)
DOCUMENTS = [row.document for row in tiny.make_rows(5)]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(params=["generate", "continuous"])
def previous(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A package as the version before made it: one file, or two."""
    decoding: str = request.param
    folder = tiny.packaged(base, tmp_path / "previous", replace(SETTINGS, decoding=decoding))
    shutil.rmtree(folder / "summarizer")
    shutil.copyfile(PREVIOUS / "summarizer.py", folder / "summarizer.py")
    if decoding == "continuous":
        shutil.copyfile(PREVIOUS / "continuous.py", folder / "continuous.py")
    return folder


def texts(generator: Any) -> list[str]:
    return [summary.text for summary in generator.summarize(DOCUMENTS)]


def test_a_package_of_the_version_before_answers_as_it_did(previous: Path) -> None:
    """As its own file does when it is run, and as today's code does, to the last number."""
    code = package_code.load_code(previous)
    assert Path(inspect.getfile(code.Generator.summarize)) == previous / "summarizer.py"
    generator = code.Generator(previous, "cpu")
    if generator.settings.decoding == "continuous":
        assert generator.decoder() is not None, generator.refusal
    summaries = [asdict(summary) for summary in generator.summarize(DOCUMENTS)]
    losses = [asdict(loss) for loss in generator.losses(DOCUMENTS, [["Yes."]] * len(DOCUMENTS))]
    # The dotted name gives it a __package__, so that it registers nothing with MLflow.
    run = runpy.run_path(str(previous / "summarizer.py"), run_name="previous.summarizer")
    for other in (run["Generator"](previous, "cpu"), Generator(previous, "cpu")):
        assert [asdict(summary) for summary in other.summarize(DOCUMENTS)] == summaries
        again = other.losses(DOCUMENTS, [["Yes."]] * len(DOCUMENTS))
        assert [asdict(loss) for loss in again] == losses
    assert "".join(ChatSession(previous, "cpu").answer(DOCUMENTS[0])) == summaries[0]["text"]


def test_a_champion_of_the_version_before_is_evaluated(previous: Path, tmp_path: Path) -> None:
    """Every row and its loss, by its own code, as a challenger with the same weights is."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(5))
    challenger = shutil.copytree(previous, tmp_path / "challenger", symlinks=True)
    package_code.copy_code(challenger)
    tables = []
    for package in (previous, challenger):
        table = tmp_path / f"{package.name}.json"
        answer = predict(str(package), str(rows), str(table), "cpu", loss=True)
        assert answer["decoding"] == SummarizerSettings.load(package).decoding
        tables.append(read_table(table))
    assert tables[0] == tables[1]


def test_a_package_of_the_version_before_reads_messages_as_they_are_stored(previous: Path) -> None:
    """Rows hold conversations as lists of messages, weights included; it was made for texts too."""
    settings = SummarizerSettings.load(previous)
    replace(settings, template="{document}", format="chat", chat_template=LLAMA_2).save(previous)
    question = {"role": "user", "content": "Where is the lamp?"}
    answer = {"role": "assistant", "content": "At home.", "weight": 0}
    documents = [[question], [question, answer, question]]
    own = package_code.load_code(previous).Generator(previous, "cpu")
    today = Generator(previous, "cpu")
    assert list(map(asdict, own.summarize(documents))) == list(
        map(asdict, today.summarize(documents))
    )
    references = [["Yes."]] * len(documents)
    assert list(map(asdict, own.losses(documents, references))) == list(
        map(asdict, today.losses(documents, references))
    )


def test_new_code_takes_the_place_of_an_earlier_version_s(previous: Path) -> None:
    """Where a base is a package itself, by links: its own code stays as it was."""
    own = digest.of_folder(previous)
    view = previous.with_name("view")
    view.mkdir()
    for file in previous.iterdir():
        (view / file.name).symlink_to(file)
    package_code.copy_code(view)
    assert digest.of_folder(previous) == own
    assert not (view / "summarizer.py").exists()
    assert not (view / "continuous.py").exists()
    again = previous.with_name("again")
    again.mkdir()
    (again / "summarizer").mkdir()
    for file in digest.visible_files(view / "summarizer"):
        (again / "summarizer" / file.name).symlink_to(file)
    (again / "summarizer/removed_since.py").symlink_to(view / "summarizer/loss.py")
    code = digest.of_folder(view / "summarizer")
    package_code.copy_code(again)
    assert digest.of_folder(view / "summarizer") == digest.of_folder(again / "summarizer") == code
    assert not any(file.is_symlink() for file in (again / "summarizer").iterdir())


def test_mlflow_serves_a_model_of_the_version_before(base: Path, tmp_path: Path) -> None:
    """It holds its own copy of the file; the version before wrote its MLmodel so."""
    import mlflow

    linked = tiny.packaged(base, tmp_path / "linked", SETTINGS)
    expected = texts(Generator(linked, "cpu"))
    folder = shutil.copytree(linked, tmp_path / "package")  # MLflow takes no links
    shutil.rmtree(folder / "summarizer")
    shutil.copyfile(PREVIOUS / "summarizer.py", folder / "summarizer.py")
    mlflow.pyfunc.save_model(
        str(tmp_path / "model"),
        python_model=str(folder / "summarizer.py"),
        artifacts={"package": str(folder)},
        pip_requirements=["mlflow"],
    )
    assert mlflow.pyfunc.load_model(str(tmp_path / "model")).predict(DOCUMENTS) == expected


def test_two_versions_in_one_process_share_no_code(base: Path, tmp_path: Path) -> None:
    """Each answers by its own, also from threads, and by modules that are imported only then."""
    settings = replace(SETTINGS, decoding="continuous")
    expected = texts(Generator(tiny.packaged(base, tmp_path / "plain", settings), "cpu"))
    generators = {}
    for name in ("first", "second"):
        folder = tiny.packaged(base, tmp_path / name, settings)
        tiny.edit_package(
            folder, "return Summary(text.strip(),", f"return Summary('{name}: ' + text.strip(),"
        )
        # steps.py is first imported when something is decoded.
        tiny.edit_package(folder, '"precis_slots_"', f'"precis_{name}_slots_"')
        generators[name] = package_code.load_code(folder).Generator(folder, "cpu")
    with ThreadPoolExecutor(2) as pool:
        answers = dict(zip(generators, pool.map(texts, generators.values()), strict=True))
    for name, generator in generators.items():
        assert answers[name] == [f"{name}: {text}" for text in expected]
        steps = type(generator.decoder().steps)
        assert Path(inspect.getfile(steps)) == tmp_path / name / "summarizer/steps.py"
        assert f"precis_{name}_slots_" in sys.modules[steps.__module__].ATTENTION_NAME
    assert texts(generators["first"]) == answers["first"]


def test_code_that_fails_to_load_leaves_nothing_behind(base: Path, tmp_path: Path) -> None:
    """No module of it stays, and a package without code is explained."""
    folder = tiny.packaged(base, tmp_path / "package", SETTINGS)
    before = {name for name in sys.modules if name.startswith("precis_package")}
    tiny.edit_package(folder, "class Generator:", "1 / 0\n\n\nclass Generator:")
    with pytest.raises(ZeroDivisionError):
        package_code.load_code(folder)
    assert {name for name in sys.modules if name.startswith("precis_package")} == before
    shutil.rmtree(folder / "summarizer")
    with pytest.raises(ImportError, match=r"has no summarizer/__init__\.py"):
        package_code.load_code(folder)
