"""The house rules that a machine can hold: who imports whom, what stands where."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = {"ingest", "train", "merge", "evaluate", "gate", "register", "report"}
# Shared modules, and which of them plain logic may use: the rest know Prefect or the running flow.
PURE = {
    "context",
    "continuous",
    "views",
    "hub",
    "examples",
    "loading",
    "rounding",
    "fit",
    "sizes",
    "needs",
    "recipe",
    "records",
    "errors",
    "digest",
    "code_digest",
    "summarizer",
    "package",
    "child",
    "used",
    "table",
    "metrics",
    "cuts",
    "tokenizer",
    "history",
    "s3",
    "asking",
    "chat_templates",
    "device",
    "lock",
}
POLICY = PURE | {
    "artifacts",
    "stores",
    "tracking",
    "policy",
    "progress",
    "estimate",
    "forecast",
    "slots",
    "cluster",
    "worker",
    "attached",
}
STANDARD_ONLY = {"recipe": {"pydantic"}, "records": {"pydantic"}, "errors": set()}


def imports(path: Path) -> set[str]:
    """Every module a file imports, `from x import y` as x.y."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, node.module or ""])
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return found


def own(path: Path, package: str) -> list[list[str]]:
    """The imports of `package`, split at dots, the package itself left out."""
    return [m.split(".")[1:] for m in imports(path) if m.split(".")[0] == package]


FILES = sorted(p for p in (ROOT / "tasks").rglob("*.py") if p.name != "__init__.py")
LOGIC = [p for p in FILES if p.parent != ROOT / "tasks" and p.name != "task.py"]
TASKS = [p for p in FILES if p.name == "task.py"]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", LOGIC, ids=named)
def test_logic_knows_no_prefect_and_no_other_step(path: Path) -> None:
    """A step's logic imports shared modules and its own step, never Prefect, never another step."""
    step = path.relative_to(ROOT / "tasks").parts[0]
    assert not [m for m in imports(path) if m.split(".")[0] in {"prefect", "flows"}]
    for parts in own(path, "tasks"):
        assert parts[0] == step or parts[0] in PURE, f"tasks.{'.'.join(parts)}"


@pytest.mark.parametrize("path", TASKS, ids=named)
def test_a_task_uses_its_own_step(path: Path) -> None:
    """task.py imports its own step and shared modules."""
    for parts in own(path, "tasks"):
        assert parts[0] in POLICY | {path.parent.name}, f"tasks.{'.'.join(parts)}"


@pytest.mark.parametrize("path", sorted((ROOT / "flows").glob("*.py")), ids=named)
def test_flows_see_tasks_not_logic(path: Path) -> None:
    """A flow composes tasks; of a step it sees only task.py."""
    for parts in own(path, "tasks"):
        if parts[0] in STEPS:
            assert parts[1] == "task", f"tasks.{'.'.join(parts)}"
        else:
            assert parts[0] in POLICY


def test_only_the_command_line_knows_deployments() -> None:
    """tasks < flows < deployments: `precis up` is the one way back."""
    for path in FILES + sorted((ROOT / "flows").glob("*.py")):
        if path != ROOT / "flows" / "verbs.py":
            assert not own(path, "deployments"), named(path)


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_contracts_need_only_pydantic(name: str) -> None:
    """recipe, records and errors import the standard library and pydantic."""
    for module in imports(ROOT / "tasks" / f"{name}.py"):
        top = module.split(".")[0]
        assert top in sys.stdlib_module_names or top in STANDARD_ONLY[name], module


def test_nothing_else_stands_at_the_top() -> None:
    """The top level holds what the map in README names."""
    plan = "pyproject.toml README.md Makefile LICENSE CHANGELOG.md CONTRIBUTING.md constraints.txt"
    folders = "flows tasks tests deployments mlruns docs"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {t for t in top if not t.startswith(".")} <= set(plan.split()) | set(folders.split())


def test_imports_have_no_effects(tmp_path: Path) -> None:
    """Importing flows and tasks makes no folder and sets no tracking URI."""
    script = (
        "import os, flows.retrain, flows.check, flows.rollback, flows.registry, flows.ask\n"
        "import sys; assert 'torch' not in sys.modules, 'torch imported by the flow'\n"
        "assert os.listdir('.') == [], os.listdir('.')\n"
    )
    env = {
        "PREFECT_HOME": str(tmp_path.parent / "prefect-home"),
        "PATH": "",
        "PYTHONPATH": str(ROOT),  # this checkout, wherever the package is installed from
        "HOME": str(tmp_path.parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("entry", ["train.qlora", "merge.merge", "evaluate.predict"])
def test_a_steps_own_process_does_without_mlflow(entry: str) -> None:
    """What a step's process imports has no MLflow in it: two seconds of every step."""
    script = f"import sys, tasks.{entry}; assert 'mlflow' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
