"""Find a recipe's base on this machine or the hub, and prepare it for the steps. Imports no torch."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.formatting import listed
from tasks.contracts.recipe import Base, Recipe
from tasks.contracts.units import GIB
from tasks.models import finite_weights, hub, rope, rope_view, settings, weight_files
from tasks.models.base_checks import file_problems, is_complete
from tasks.models.prepared_base import BaseFolder, PreparedBase
from tasks.processes import workspace


@dataclass(frozen=True)
class BaseLookup:
    """What `look_up` gives: the folder (None: a run would download it), facts, and problems."""

    folder: BaseFolder | None
    facts: list[str]
    problems: list[str]


def find_base(recipe: Recipe) -> PreparedBase:
    """The recipe's base, downloaded if this machine lacks it, digested.

    Raises BaseModelError with all that is missing, for weights that are not finite, and as
    `settings_for`.
    """
    folder = locate(recipe.base)
    with ThreadPoolExecutor(1) as pool:  # both read the files, so one of them reads from memory
        digesting = pool.submit(digest.of_files, folder.path, weight_files.model_files(folder.path))
        problems = finite_weights.problems(weight_files.weight_files(folder.path))
        folder_digest = digesting.result()
    if problems:
        raise BaseModelError("\n".join(problems))
    return prepare(recipe, folder, folder_digest)


def prepare(recipe: Recipe, folder: BaseFolder, folder_digest: str = "") -> PreparedBase:
    """A located base with the settings that the recipe gives it. Raises as `settings_for`."""
    return PreparedBase(
        path=folder.path,
        config=folder.config,
        digest=folder_digest,
        model=recipe.base.model,
        revision=recipe.base.revision,
        settings=settings.settings_for(recipe, folder),
        max_row_tokens=settings.max_row_tokens(recipe, folder),
        context_limits=settings.context_limits(recipe),
    )


def locate(base: Base) -> BaseFolder:
    """The base's folder on this machine, its RoPE scaled as the recipe says.

    A local folder as it is, a hub name from the cache or the hub. Raises BaseModelError with all that
    is missing.
    """
    path = _local_folder(base) or hub.fetch(base)
    folder, problems = _checked(path, base)
    if folder is None:
        raise BaseModelError("\n".join(problems))
    return _scaled(folder, base, workspace.work_folder() / "scaled")


def look_up(base: Base, scratch: Path) -> BaseLookup:
    """The base as `locate` would give it, and why it would not. Downloads nothing.

    A base with scaled RoPE is laid out in the folder `scratch`.
    """
    try:
        path = _local_folder(base)
    except BaseModelError as error:
        return BaseLookup(None, [], [str(error)])
    if path is None:
        return BaseLookup(None, *hub.ask(base))
    folder, problems = _checked(path, base)
    if folder is None:
        return BaseLookup(None, [], problems)
    return BaseLookup(_scaled(folder, base, scratch), left_out(path), [])


def left_out(folder: Path) -> list[str]:
    """A line that names the files of weights in a base's folder which are not used; none without any.

    Raises as `weight_files`.
    """
    names = [path.relative_to(folder).as_posix() for path in weight_files.unused(folder)]
    if not names:
        return []
    return [f"base: transformers does not load these, so they are left out: {listed(names, 5)}"]


def scan(folder: BaseFolder) -> tuple[str, list[str]]:
    """Reads all weights: what that took, and which of them are not finite numbers."""
    started, files = time.monotonic(), weight_files.weight_files(folder.path)
    problems = finite_weights.problems(files)
    size = sum(file.stat().st_size for file in files) / GIB
    seconds = time.monotonic() - started
    return f"weights: {size:.2f} GiB read in {seconds:.1f} s, looking for NaN", problems


def _local_folder(base: Base) -> Path | None:
    """The folder that `base.model` names, or the hub's snapshot in this machine's cache, if complete."""
    path = Path(base.model)
    try:
        if path.is_dir():
            return path
        if path.exists():
            raise BaseModelError(
                f"base.model {base.model!r} is a file; name the folder of a Hugging Face model"
            )
    except (OSError, ValueError) as error:  # a name too long, a null byte, no right to look
        raise BaseModelError(f"base.model {base.model[:80]!r} is no path: {error}") from None
    snapshot = hub.cached(base)
    # The cache knows of files that are missing only from a listing, which other tools leave out.
    return snapshot if snapshot and is_complete(snapshot) else None


def _checked(path: Path, base: Base) -> tuple[BaseFolder | None, list[str]]:
    """The folder, or what keeps it from being this recipe's base."""
    if problems := file_problems(path):
        return None, problems
    folder = BaseFolder.read(path)
    if problems := rope.problems(folder.config, base, path):
        return None, problems
    return folder, []


def _scaled(folder: BaseFolder, base: Base, parent: Path) -> BaseFolder:
    path = rope_view.scaled(folder.path, folder.config, base, parent)
    return folder if path == folder.path else BaseFolder.read(path)
