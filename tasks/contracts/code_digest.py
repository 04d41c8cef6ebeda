"""Digests of the code that decides a step's numbers: a comment, a docstring or a move changes none.

A step's result may be taken from an earlier run only if the same code would make it again. What
counts is the syntax tree, without comments and docstrings, of the step's own modules and of every
module of this project that they import, found from the import statements, and of the packages that
those are in. Imports of the project itself and file names are left out of the digest, so that moving a
module changes no key.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tasks.contracts import digest

ROOT = Path(__file__).parents[2]  # the folder that holds the package `tasks`
PACKAGE = "tasks"
# Modules and packages that no number depends on, each with the reason.
PLUMBING = {
    "tasks.contracts.recipe": "what its values say is among a step's inputs",
    "tasks.contracts.formatting": "text for people",
    "tasks.contracts.errors": "words for people",
    "tasks.contracts.digest": "names bytes, which are compared by these names",
    "tasks.contracts.code_digest": "computes this digest",
    "tasks.contracts.truncation": "counts for people",
    "tasks.processes": "where and when a step runs, and what it used",
    "tasks.tracking.artifacts": "where files lie; their content is among the inputs by digest",
    "tasks.tracking.checked_package": "where files lie; their content is among the inputs by digest",
    "tasks.tracking.whole_model": "makes files, which are digested",
    "tasks.tracking.connection": "which MLflow is asked",
    "tasks.tracking.history": "tells what happened",
    "tasks.tracking.mlflow_run": "where results are stored",
    "tasks.tracking.step_cache": "finds stored results",
    "tasks.orchestration": "retries, progress and places in Prefect",
    "tasks.models.hub": "brings files, which are digested",
    "tasks.costs.preflight": "estimates for people",
    "tasks.costs.forecast": "estimates for people",
    "tasks.costs.step_costs": "estimates for people",
    "tasks.costs.calibration": "estimates for people",
    "tasks.costs.batches": "estimates for people",
    "tasks.costs.hardware_speed": "estimates for people",
    "tasks.train.launch": "starts processes",
    "tasks.train.rank": "starts processes",
    "tasks.train.meter": "measures time and memory",
    "tasks.train.notes": "messages for people",
    "tasks.train.checkpoints.store": "keeps checkpoints, which are digested",
    "tasks.train.checkpoints.backends": "keeps checkpoints, which are digested",
    "tasks.ingest.s3": "brings files, which are digested",
}
POLICY_MODULE = "task"  # task.py of a step: names, retries, logs, artifacts


@functools.cache
def of_step(step: str, root: Path = ROOT) -> str:
    """SHA-256 (hex) of the code that decides what the step `tasks/STEP/` makes.

    `root`: the folder that holds the package `tasks`.
    """
    own = [_module_name(path, root) for path in (root / PACKAGE / step).rglob("*.py")]
    deciding = _with_imports((name for name in own if not _is_plumbing(name)), root)
    # A set: packages whose __init__.py holds a docstring alone all count as one.
    return digest.of_value(sorted({_tree(root, name).digest for name in deciding}))


def of_file(path: Path) -> str:
    """SHA-256 (hex) of the code of one file."""
    return _digest(_parse(path))


def of_folder(folder: Path) -> str:
    """SHA-256 (hex) of the code of the *.py files directly in `folder`, by file name."""
    files = sorted(folder.glob("*.py"))
    return digest.of_value([[path.name, _digest(_parse(path))] for path in files])


class _Module:
    """A module's digest and the modules of this project that it imports."""

    def __init__(self, path: Path, name: str, root: Path) -> None:
        tree = _parse(path)
        is_package = path.name == "__init__.py"
        package = name if is_package else name.rpartition(".")[0]
        self.imports = {
            target for module in _imported(tree, package) if (target := _resolve(module, root))
        } | _packages_of(name)
        self.digest = _digest(tree)


@functools.cache
def _tree(root: Path, name: str) -> _Module:
    path = _file_of(name, root)
    if path is None:
        raise FileNotFoundError(f"module {name} has no file below {root}")
    return _Module(path, name, root)


def _with_imports(names: Iterable[str], root: Path) -> set[str]:
    """These modules and all that they import, directly or not; plumbing is not followed."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += [m for m in _tree(root, name).imports if not _is_plumbing(m)]
    return reached


def _is_plumbing(name: str) -> bool:
    parts = name.split(".")
    if parts[-1] == POLICY_MODULE:
        return True
    return any(".".join(parts[: n + 1]) in PLUMBING for n in range(1, len(parts)))


def _packages_of(name: str) -> set[str]:
    """The packages that a module is in: importing it runs their `__init__.py`, and what that imports."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def _module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _file_of(name: str, root: Path) -> Path | None:
    base = root.joinpath(*name.split("."))
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


def _resolve(module: str, root: Path) -> str | None:
    """The module of this project that a dotted name is, or is an attribute of."""
    while module:
        if _file_of(module, root):
            return module
        module = module.rpartition(".")[0]
    return None


def _imported(node: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that are imported anywhere below `node`; those for type checkers left out."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if _is_own(alias.name))
        elif isinstance(child, ast.ImportFrom):
            module = _absolute(child, package)
            if _is_own(module):
                yield from (f"{module}.{alias.name}" for alias in child.names)
        # No statement is below an expression, and most nodes are.
        elif not isinstance(child, ast.expr) and not _for_type_checkers(child):
            yield from _imported(child, package)


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = parts[: len(parts) - node.level + 1]
    return ".".join([*base, node.module] if node.module else base)


def _is_own(module: str) -> bool:
    return module.split(".", maxsplit=1)[0] == PACKAGE


def _for_type_checkers(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _digest(tree: ast.Module) -> str:
    return hashlib.sha256(_dump(tree).encode()).hexdigest()


def _dump(value: Any) -> str:
    """What decides in a syntax tree, as text.

    Unlike ast.dump's, Python 3.11's and 3.13's agree: no empty fields. One pass over each of 170 modules in
    every run: ast.NodeTransformer and then ast.iter_fields take five times as long.
    """
    if not isinstance(value, ast.AST):
        return repr(value)
    fields = []
    for name in value._fields:
        part = getattr(value, name, None)
        if isinstance(part, list):
            if items := [_dump(item) for item in part if _decides(item)]:
                fields.append(f"{name}=[{','.join(items)}]")
        elif part is not None or (name == "value" and isinstance(value, ast.Constant)):
            fields.append(f"{name}={_dump(part)}")  # `None` itself is a constant's value
    return f"{type(value).__name__}({','.join(fields)})"


def _decides(item: Any) -> bool:
    """Not docstrings and this project's own import statements (comments are in no tree)."""
    if isinstance(item, ast.Expr):  # a bare string, a docstring above all, computes nothing
        return not (isinstance(item.value, ast.Constant) and isinstance(item.value.value, str))
    if isinstance(item, ast.Import):
        return not all(_is_own(alias.name) for alias in item.names)
    if isinstance(item, ast.ImportFrom):
        return not (item.level or _is_own(item.module or ""))
    return True
