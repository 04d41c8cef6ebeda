"""The house rules that a machine can hold: who imports whom, what stands where.

Over 250 lines: one page of rules, which share their reading of the modules.
"""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import only those to its left; those of one group stand beside each other.
ORDER = [
    ["contracts"],
    ["serving"],
    ["processes"],
    ["tracking"],
    ["models"],
    ["orchestration"],
    ["costs"],
    ["ingest", "gate", "register", "train", "merge", "evaluate", "report"],
    ["flows"],
    ["deployments"],
]
RANK = {package: rank for rank, group in enumerate(ORDER) for package in group}
STEPS = set(ORDER[7])
SELF_CONTAINED = {"serving"}  # travels with the registered model: imports nothing of the project
CONTRACTS_NEED = {
    "recipe": {"pydantic"},
    "template_places": set(),
    "credentials": set(),
    "records": {"pydantic"},
    "errors": set(),
    "documents": set(),
}
# Modules that are called otherwise than what is installed, or that belong to a declared package.
DISTRIBUTED_AS = {
    "yaml": "PyYAML",
    "triton": "torch",
    "dask": "prefect-dask",
    "distributed": "prefect-dask",
    "ray": "prefect-ray",
}
KNOWS_PREFECT = {"orchestration", "flows", "deployments"}


def imports(path: Path, tree: ast.Module | None = None) -> set[str]:
    """Every module a file imports, `from x import y` as x.y; `tree`: the file's, or a part of it."""
    names: set[str] = set()
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path, package: str) -> list[list[str]]:
    """The imports of `package`, split at dots, the package itself left out."""
    return [m.split(".")[1:] for m in imports(path) if m.split(".")[0] == package]


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def package_of(module: str) -> str:
    """`gate` for tasks.gate.decide, `flows` for flows.retrain; empty for what is not ours."""
    parts = module.split(".")
    if parts[0] == "tasks":
        return parts[1] if len(parts) > 1 else ""
    return parts[0] if parts[0] in RANK else ""


MODULES = sorted(
    path
    for folder in ("tasks", "flows", "deployments")
    for path in (ROOT / folder).rglob("*.py")
    if not path.is_relative_to(ROOT / "deployments/demo")  # scripts that made the demo's data
)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_a_module_imports_only_packages_to_its_left(path: Path) -> None:
    """One ordered list of packages, no circles, and no step imports another step."""
    own = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if not own:  # tasks/__init__.py
        assert imports(path) == set()
        return
    for module in imports(path):
        other = package_of(module)
        if other and other != own:
            assert own not in SELF_CONTAINED, f"{own} must not import {module}"
            assert RANK[other] < RANK[own], f"{own} must not import {module}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_imports(path: Path) -> set[str]:
    """Modules of ours that `path` imports, inside functions too; not those for type checkers."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    ours = {module_name(module) for module in MODULES}
    # `x.y` is the module y of the package x, or a name in the module x.
    targets = {d if d in ours else d.rpartition(".")[0] for d in imports(path, tree)}
    return (targets & ours) - {module_name(path)}


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Not within a package either, and not by imports that stand inside functions."""
    graph = {module_name(path): run_time_imports(path) for path in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"modules import each other in a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_only_policy_knows_prefect(path: Path) -> None:
    """Of a step only task.py imports Prefect; the shared packages leave it to orchestration."""
    own = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if own not in KNOWS_PREFECT and not (own in STEPS and path.name == "task.py"):
        assert not [m for m in imports(path) if m.split(".")[0] == "prefect"]


@pytest.mark.parametrize("path", sorted((ROOT / "flows").rglob("*.py")), ids=named)
def test_flows_see_tasks_not_logic(path: Path) -> None:
    """A flow composes tasks; of a step it sees only task.py."""
    for module in imports(path):
        if package_of(module) in STEPS:
            assert module.split(".")[2] == "task", module


def test_every_package_is_in_the_order_and_says_what_it_is_for() -> None:
    """No loose module under tasks/; each package's docstring says what it is for, and what not."""
    folders = [p for p in (ROOT / "tasks").iterdir() if p.is_dir() and p.name != "__pycache__"]
    assert {p.name for p in folders} == set(RANK) - {"flows", "deployments"}
    assert [p.name for p in (ROOT / "tasks").glob("*.py")] == ["__init__.py"]
    packages = [p.parent for p in MODULES if p.name == "__init__.py" and p.parent != ROOT / "tasks"]
    for package in packages:
        docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
        assert "Not for" in docstring, (
            f"{named(package)}/__init__.py does not say what it is not for"
        )


@pytest.mark.parametrize("name", CONTRACTS_NEED)
def test_contracts_need_only_pydantic(name: str) -> None:
    """What every other module imports needs the standard library and pydantic alone."""
    for module in imports(ROOT / "tasks" / "contracts" / f"{name}.py"):
        top = module.split(".")[0]
        ours = module.removeprefix("tasks.contracts.").split(".")[0] in CONTRACTS_NEED
        assert ours or top in sys.stdlib_module_names or top in CONTRACTS_NEED[name], module


@pytest.mark.parametrize("folder", ["flows", "tasks"])
def test_what_is_imported_is_declared(folder: str) -> None:
    """Every package that a module imports is in pyproject.toml, or comes with the one it is a part of."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    written = [*project["dependencies"], *optional["servers"], *optional["cluster"]]
    declared = {_plain_name(re.split(r"[<>=!~\[; ]", line)[0]) for line in written}
    own = set(sys.stdlib_module_names) | {"flows", "tasks", "deployments"}
    missing = set()
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - own:
                if _plain_name(DISTRIBUTED_AS.get(name, name)) not in declared:
                    missing.add(f"{path.relative_to(ROOT)} imports {name}")
    assert not missing, "add to pyproject.toml and constraints.txt:\n" + "\n".join(sorted(missing))


def _plain_name(name: str) -> str:
    return name.lower().replace("-", "_")


def test_nothing_else_stands_at_the_top() -> None:
    """The top level holds what the map in README names."""
    plan = "pyproject.toml README.md Makefile LICENSE CHANGELOG.md CONTRIBUTING.md constraints.txt"
    folders = "flows tasks tests deployments mlruns docs"
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    top = {name.split("/")[0] for name in tracked}
    assert {t for t in top if not t.startswith(".")} <= set(plan.split()) | set(folders.split())


SOURCES = [
    path
    for folder in ("tasks", "flows", "deployments", "tests")
    for path in (ROOT / folder).rglob("*.py")
]
# Code of the version before, kept as data.
NOT_OURS_TO_SPLIT = ROOT / "tests/serving/previous_package"


def test_a_long_file_says_why_it_is_long() -> None:
    """No file over 400 lines but the recipe; each over 250 gives its reason at the top."""
    for path in SOURCES:
        text = path.read_text()
        if path.is_relative_to(NOT_OURS_TO_SPLIT) or (lines := text.count("\n")) <= 250:
            continue
        assert lines <= 400 or path == ROOT / "tasks/contracts/recipe.py", f"{named(path)}: {lines}"
        docstring = ast.get_docstring(ast.parse(text)) or ""
        assert re.search(r"Over (250|400)\s+lines", docstring), (
            f"{named(path)}: {lines} lines, and no reason"
        )


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


def test_a_steps_own_process_does_without_mlflow() -> None:
    """What a step's process imports has no MLflow in it: two seconds of every step."""
    entries = ("train.qlora", "merge.merge", "evaluate.predict")
    checks = [f"import tasks.{entry}; assert 'mlflow' not in sys.modules" for entry in entries]
    script = "\n".join(["import sys", *checks])
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
