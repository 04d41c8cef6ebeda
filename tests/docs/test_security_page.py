"""What docs/security.md promises and no other test holds; and each test that the page names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flows.serve.plan import ServePlan
from flows.stack import services

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/security.md"
SOURCES = [*(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve"}


def calls() -> Iterator[tuple[str, ast.Call]]:
    """All calls in tasks/ and flows/, with where they stand."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def test_named_tests_exist() -> None:
    """A test that was renamed would leave its promise without one."""
    named = set(re.findall(r"`(tests/[\w/.]+)`", PAGE.read_text()))
    assert len(named) >= 8
    assert not [name for name in named if not (ROOT / name).exists()]


def test_remote_code_is_off_everywhere() -> None:
    """No call passes anything but False, and no setting of a recipe could."""
    passed = [
        (where, ast.unparse(word.value))
        for where, call in calls()
        for word in call.keywords
        if word.arg == "trust_remote_code"
    ]
    assert len(passed) > 5
    assert {value for _, value in passed} == {"False"}, passed
    assert "trust_remote_code" not in (ROOT / "tasks/contracts/recipe.py").read_text()


def test_nothing_here_unpickles() -> None:
    """Neither by pickle and its like, nor by torch.load; transformers' own is tried with a planted file."""
    imported = {
        (path.relative_to(ROOT), name)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        for name in _imports(node)
        if name in UNPICKLERS
    }
    assert not imported
    assert not [where for where, call in calls() if ast.unparse(call.func) == "torch.load"]


def _imports(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [str(node.module).partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


def test_no_task_or_flow_keeps_pickled_results() -> None:
    """`persist_result` is False wherever it is named, and the tasks' common options name it."""
    from tasks.orchestration import task_options

    kept = [
        (where, ast.unparse(word.value))
        for where, call in calls()
        for word in call.keywords
        if word.arg == "persist_result" and ast.unparse(word.value) != "False"
    ]
    assert not kept
    options = [value for value in vars(task_options).values() if isinstance(value, dict)]
    assert any(value.get("persist_result") is False for value in options)


def test_servers_listen_on_loopback() -> None:
    """Each server of the stack is given the address, and `precis serve`'s default is it."""
    folder = ROOT / "nowhere"
    for command in (services.prefect_server(1), services.mlflow_server(1, str(folder))):
        assert command[command.index("--host") + 1] == "127.0.0.1"
    assert ServePlan.__dataclass_fields__["host"].default == "127.0.0.1"
    assert '"--addr", f"{HOST}:{port}"' in (ROOT / "flows/stack/services.py").read_text()
