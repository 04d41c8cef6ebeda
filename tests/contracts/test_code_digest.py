"""What code a step's key depends on: a comment changes no key, a constant those of its importers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tasks.contracts import code_digest

STEPS = ("ingest", "train", "merge", "evaluate", "gate")


def keys(root: Path) -> dict[str, str]:
    return {step: code_digest.of_step(step, root) for step in STEPS}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """This project's tasks, to be edited."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(code_digest.ROOT / "tasks", tmp_path / "tasks", ignore=ignored)
    return tmp_path


def changed(copy: Path, module: str, text: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The steps whose code digest changes when `text` is appended to a module of `copy`."""
    path = copy / "tasks" / module
    path.write_text(path.read_text() + text)
    read, altered = code_digest._tree, code_digest._module_name(path, copy)

    def read_once(root: Path, name: str) -> Any:
        """All other modules are the project's own, read by the tests before: a second of CPU a test."""
        return read(root if name == altered else code_digest.ROOT, name)

    monkeypatch.setattr(code_digest, "_tree", read_once)
    before = keys(code_digest.ROOT)
    return {step for step, key in keys(copy).items() if key != before[step]}


EVERY_FILE = sorted(
    p.relative_to(code_digest.ROOT) for p in (code_digest.ROOT / "tasks").rglob("*.py")
)


def test_comments_docstrings_and_layout_change_no_key(copy: Path) -> None:
    """A comment, a docstring or a blank line in every module changes nothing."""
    for name in EVERY_FILE:
        path = copy / name
        path.write_text(f'"""Another docstring."""\n\n# a comment\n{path.read_text()}\n\n# last\n')
    # The real docstring is then a bare string behind the first: no more a part of what is computed.
    assert keys(copy) == keys(code_digest.ROOT)


IMPORTERS = [
    ("train/fast_path/lora_linear.py", {"train"}),
    ("models/quantization.py", {"train", "merge"}),
    ("contracts/metrics.py", {"evaluate", "gate"}),
    ("serving/summarizer/kernels.py", {"ingest", "train", "merge", "evaluate"}),
    ("contracts/records.py", set(STEPS)),
    ("train/launch.py", set()),
]
MORE_IMPORTERS = [  # for `make test-all`
    ("merge/fold.py", {"merge"}),
    ("evaluate/rouge/scoring.py", {"evaluate"}),
    ("gate/bootstrap.py", {"gate"}),
    ("ingest/drop_overlap.py", {"ingest"}),
    # A data set of the hub is in the key by name and commit, not by its bytes; an S3 object is by them.
    ("ingest/hub.py", {"ingest"}),
    ("ingest/s3.py", set()),
    ("contracts/similar_documents.py", {"ingest", "gate"}),
    ("serving/summarizer/prompt.py", {"ingest", "train", "merge", "evaluate"}),
    ("serving/summarizer/pyfunc.py", {"merge", "evaluate"}),
    ("train/task.py", set()),
    ("tracking/mlflow_run.py", set()),
    ("contracts/errors.py", set()),
]


@pytest.mark.parametrize(
    ("module", "steps"),
    [*IMPORTERS, *(pytest.param(*case, marks=pytest.mark.full) for case in MORE_IMPORTERS)],
)
def test_a_constant_changes_the_keys_of_the_steps_that_import_it(
    copy: Path, module: str, steps: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed constant changes the keys of exactly the steps that import its module."""
    assert changed(copy, module, "\nADDED = 1\n", monkeypatch) == steps


def test_all_code_that_a_package_carries_counts() -> None:
    """Whichever of its modules a step imports: its `__init__.py` imports the others, some of them late."""
    folder = code_digest.ROOT / "tasks/serving/summarizer"
    modules = {f"tasks.serving.summarizer.{path.stem}" for path in folder.glob("*.py")}
    # These load a package; `merge` counts what it takes of adapter.py by its own import.
    loads = ("__init__", "pyfunc", "adapter", "scoring_server")
    modules -= {f"tasks.serving.summarizer.{name}" for name in loads}
    assert len(modules) > 10
    for name in ("prompt", "kernels", "cache"):
        reached = code_digest._with_imports({f"tasks.serving.summarizer.{name}"}, code_digest.ROOT)
        assert modules <= reached


def test_a_package_s_init_counts_with_each_of_its_modules(tmp_path: Path) -> None:
    """Python runs it before any of them, and what it imports."""
    for name, text in {
        "__init__.py": "",
        "gate/__init__.py": "",
        "gate/decide.py": "from tasks.shared.inner import x\n",
        "shared/__init__.py": "from .other import y\n",
        "shared/inner.py": "x = 1\n",
        "shared/other.py": "y = 1\n",
    }.items():
        (tmp_path / "tasks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tasks" / name).write_text(text)
    before = code_digest.of_step("gate", tmp_path)
    for name in ("shared/__init__.py", "shared/other.py"):
        code_digest.of_step.cache_clear()
        code_digest._tree.cache_clear()
        with (tmp_path / "tasks" / name).open("a") as file:
            file.write("z = 2\n")
        after = code_digest.of_step("gate", tmp_path)
        assert after != before
        before = after


def test_a_moved_module_changes_no_key(copy: Path) -> None:
    """A module may move: names of files and the project's own imports are in no key."""
    (copy / "tasks/contracts/metrics.py").rename(copy / "tasks/models/measures.py")
    moved = {
        "tasks.contracts.metrics import": "tasks.models.measures import",
        "from tasks.contracts import metrics": "from tasks.models import measures as metrics",
    }
    for path in (copy / "tasks").rglob("*.py"):
        text = path.read_text()
        for old, new in moved.items():
            text = text.replace(old, new)
        path.write_text(text)
    assert keys(copy) == keys(code_digest.ROOT)


def test_every_plumbing_module_exists() -> None:
    """A name in the list of what counts for nothing that no module has would hide a rename."""
    for name in code_digest.PLUMBING:
        parts = code_digest.ROOT.joinpath(*name.split("."))
        assert parts.is_dir() or parts.with_suffix(".py").is_file(), name


def test_a_constant_none_is_not_an_absent_one(tmp_path: Path) -> None:
    """`x = None` and `x = ...` differ, and so do `return` and `return None` harmlessly."""
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, text in ((first, "x = None\n"), (second, "x = 0\n")):
        folder.mkdir()
        (folder / "a.py").write_text(text)
    assert code_digest.of_folder(first) != code_digest.of_folder(second)
