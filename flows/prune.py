"""Remove what runs that are over leave: `precis prune NAME --keep N`; without --yes only says what."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from tasks.contracts.formatting import gib
from tasks.register.task import require_known, trained_by, versions_of
from tasks.tracking import connection, pruning
from tasks.tracking.pruning import Removal

GIB = 2**30


@dataclass(frozen=True)
class Pruned:
    """What was found, and of it what could not be removed, with the reason."""

    name: str
    keep: int
    items: tuple[Removal, ...]
    problems: tuple[str, ...]
    done: bool  # removed, and not only listed

    def as_text(self) -> str:
        """A line each, and the sum."""
        if not self.items:
            return f"{self.name}: nothing to remove"
        lines = [f"{i.what} of run {i.run_id}  {gib(i.bytes / GIB)}  {i.path}" for i in self.items]
        lines += [f"not removed: {problem}" for problem in self.problems]
        total = gib(sum(item.bytes for item in self.items) / GIB)
        if self.done:
            lines.append(
                f"{self.name}: {len(self.items) - len(self.problems)} of {len(self.items)} removed"
            )
        else:
            lines.append(
                f"{self.name}: {total} in {len(self.items)} places; nothing was removed. "
                f"To remove them: precis prune {self.name} --keep {self.keep} --yes"
            )
        return "\n".join(lines)


def prune(name: str, keep: int, yes: bool) -> Pruned:
    """List, or with `yes` remove, what all retrains but the newest `keep` leave.

    Raises NoSuchChampion for a name that nobody knows, RegistryError when MLflow fails.
    """
    require_known(name)
    client = connection.connect()
    versions = versions_of(client, name)
    protected = {version.run_id for version in versions}
    protected |= {trained_by(client, name, version) for version in versions}
    items = tuple(pruning.removals(client, name, protected, keep))
    problems = []
    if yes:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        problems = [
            f"{item.path}: {problem}"
            for item, problem in pruning.remove(client, items, when)
            if problem
        ]
    return Pruned(name, keep, items, tuple(problems), yes)
