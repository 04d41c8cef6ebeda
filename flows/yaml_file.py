"""Read a YAML file that anyone may have written: within limits of size, time and memory.

PyYAML's SafeLoader builds no objects, but expands aliases without a limit (nine lines become gigabytes),
keeps the last of two equal keys without a message, and waits for ever for a pipe.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from tasks.contracts.errors import RecipeError

MAX_BYTES = 256 * 2**10  # a recipe with every setting has 4 kB; PyYAML reads about 200 kB a second
MAX_VALUES = 10_000  # aliases expanded; a recipe with every setting has some 200
NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
# YAML 1.1 reads 1:30 as 90, and 010 as 8.
OTHER_BASES = re.compile(r"[-+]?0[0-7_]+|.*:.*")
NOT_TEXT = re.compile("[\0\ud800-\udfff]")


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises RecipeError that says what the file is instead, and where."""
    shown = path if len(str(path)) < 200 else f"{str(path)[:100]}... ({len(str(path))} characters)"
    try:
        text = _text(path)
        return _mapping(text)
    except FileNotFoundError:
        raise RecipeError(f"{shown}: no such recipe (looked from {Path.cwd()})") from None
    except OSError as error:
        raise RecipeError(f"{shown}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{shown}: cannot be read: it is not UTF-8 (byte {error.start}); save it as UTF-8"
        ) from None
    except RecursionError:
        raise RecipeError(f"{shown}: not valid YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", line', "in line")[
            :400
        ]
        raise RecipeError(f"{shown}: not valid YAML: {reason}") from None
    except RecipeError as error:
        raise RecipeError(
            "\n".join(f"{shown}: {line}" for line in str(error).split("\n"))
        ) from None


def value(text: str) -> Any:
    """One value, as `--set` has it. Text that is no YAML is taken as it is."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def _text(path: Path) -> str:
    """The file's text; what is no regular file is not opened, since a pipe would be waited for."""
    try:
        facts = path.stat()
    except ValueError as error:  # a null character
        raise RecipeError(f"is no path ({error})") from None
    kind = stat.S_IFMT(facts.st_mode)
    if kind != stat.S_IFREG:
        names = {stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
        what = names.get(kind, "device")
        raise RecipeError(f"is a {what}, not a recipe; name a YAML file")
    with path.open("rb") as stream:
        content = stream.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise RecipeError(
            f"has {facts.st_size:,} bytes, and a recipe at most {MAX_BYTES:,}; name a YAML file of settings"
        )
    return content.decode("utf-8")


def _mapping(text: str) -> dict[str, Any]:
    loader = _Loader(text)
    values = loader.get_single_data()
    if loader.twice:
        raise RecipeError("\n".join(loader.twice))
    if not isinstance(values, dict):
        raise RecipeError("a recipe is a mapping of settings; see deployments/recipes/")
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's reader, which refuses what would expand without end, and notes keys given twice."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.twice: list[str] = []

    def get_single_node(self) -> Any:
        """The document's root, once it is known how much it holds."""
        node = super().get_single_node()
        if node is not None:
            _refuse_large(node)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
            # A thirteenth month, a number of 5,000 digits, !!bool x, !!timestamp x
            problem = f"{node.tag.rpartition(':')[2]} cannot be read from this ({error})"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        first: dict[Any, int] = {}
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            line = key.start_mark.line + 1
            if key.value in first:
                problem = f"{key.value} is given again (first in line {first[key.value]}); keep one"
                self.twice.append(f"line {line}: {problem}")
            first.setdefault(key.value, line)
        return super().construct_mapping(node, deep)


def _refuse_large(root: yaml.Node) -> None:
    """Raise ValueError for aliases that expand to too much, or to themselves, and for text that is none."""
    sizes: dict[int, int | None] = {}  # of nodes with all that is below them; None: still counted

    def size(node: yaml.Node) -> int:
        line = node.start_mark.line + 1
        if id(node) in sizes:
            known = sizes[id(node)]
            if known is None:
                raise ValueError(f"line {line}: an alias stands within what it names; write it out")
            return known
        sizes[id(node)] = None
        total = 1
        if isinstance(node, yaml.ScalarNode):
            if NOT_TEXT.search(node.value):
                raise ValueError(f"line {line}: null characters or half characters in a text")
            if node.tag in NUMBERS and not node.style and OTHER_BASES.fullmatch(node.value):
                raise ValueError(
                    f"line {line}: {node.value} is a number of another base in YAML; put it in quotes, or "
                    "write it in decimals"
                )
        elif isinstance(node, yaml.MappingNode):
            total += sum(size(key) + size(inner) for key, inner in node.value)
        else:
            total += sum(size(inner) for inner in node.value)
        if total > MAX_VALUES:
            raise ValueError(
                f"line {line}: with its aliases written out it has more than {MAX_VALUES:,} values"
            )
        sizes[id(node)] = total
        return total

    size(root)
