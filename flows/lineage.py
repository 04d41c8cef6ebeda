"""What a registered version was made from: data, base, adapter, recipe, code, run, and what it succeeded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tasks.contracts.errors import RegistryError
from tasks.register.task import Version, find_version, trained_by
from tasks.tracking import connection, making
from tasks.tracking.making import Code, Making

SCHEMA_VERSION = 1
DIGITS = 16  # of a digest, on a terminal
UNKNOWN = "not known"


@dataclass(frozen=True)
class Lineage:
    """Where a version came from. `made`: by the run that trained it; after a rollback an earlier one."""

    name: str
    version: Version
    made: Making
    code: Code | None

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        version, made = self.version, self.made
        return {
            "name": self.name,
            "version": version.number,
            "became_champion": version.finished,
            "model_digest": version.digest,
            "registered": version.created.isoformat(timespec="seconds"),
            "description": version.description,
            "predecessor": version.succeeds or None,
            "predecessor_digest": version.succeeds_digest or None,
            "rollback_to": version.rollback_to,
            "registered_by_run": version.run_id,
            "trained_by_run": made.run_id,
            "run_is_known": made.known,
            "started": made.started or None,
            "prefect_flow_run_id": made.prefect_flow_run_id,
            "datasets": [asdict(dataset) for dataset in made.datasets],
            "base": {
                "model": made.base_model,
                "revision": made.base_revision,
                "digest": made.base_digest,
            },
            "adapter": {"uri": made.adapter.uri, "digest": made.adapter.digest}
            if made.adapter
            else None,
            "added_to": {"name": version.base, "digest": version.base_digest}
            if version.base
            else None,
            "pruned": made.pruned,
            "recipe": made.recipe,
            "settings": dict(made.settings),
            "code": asdict(self.code) if self.code else None,
            "schema_version": SCHEMA_VERSION,
        }

    def as_text(self) -> str:
        """A line a fact, for a terminal."""
        return "\n".join(
            [f"{self.name} v{self.version.number}", *(f"  {k:12}{v}" for k, v in self._facts())]
        )

    def _facts(self) -> Iterator[tuple[str, str]]:
        version, made = self.version, self.made
        yield (
            "model",
            f"digest {version.digest[:DIGITS]}...; {version.description or 'no description'}",
        )
        if version.rollback_to:
            yield "rollback", f"to the model of v{version.rollback_to}, by run {version.run_id}"
        before = f"v{version.succeeds}" if version.succeeds else "none: the first champion"
        state = "" if version.finished else "; it never became champion"
        yield "predecessor", before + state
        gone = (
            "" if made.known else " (deleted from MLflow: what it made the model from is not known)"
        )
        yield "run", f"{made.run_id}{f', started {made.started}' if made.started else ''}{gone}"
        if not made.known:
            return
        for dataset in made.datasets:
            yield (
                "data",
                f"{dataset.train_rows:,} training rows, digest {dataset.train_digest[:DIGITS]}..., in "
                f"{dataset.uri}",
            )
        if len(made.datasets) > 1:
            yield "", "the data changed between two tries of the run: which of these is not known"
        if not made.datasets:
            yield "data", UNKNOWN
        revision = f", revision {made.base_revision}" if made.base_revision else ""
        digest = f", digest {made.base_digest[:DIGITS]}..." if made.base_digest else ""
        yield "base", f"{made.base_model or UNKNOWN}{revision}{digest}"
        adapter = made.adapter
        yield (
            "adapter",
            f"{adapter.uri}, digest {adapter.digest[:DIGITS]}..." if adapter else UNKNOWN,
        )
        if version.base:
            yield "added to", f"{version.base}, digest {version.base_digest[:DIGITS]}..."
        if made.pruned:
            yield "pruned", made.pruned
        yield "recipe", made.recipe or UNKNOWN
        dirty = " with changes that are in no commit" if self.code and self.code.dirty else ""
        yield "code", f"git commit {self.code.commit}{dirty}" if self.code else UNKNOWN


def lineage(reference: str) -> Lineage:
    """The lineage of NAME (its champion), NAME@ALIAS or NAME/VERSION. Raises RegistryError."""
    if connection.nothing_yet():
        raise RegistryError(
            f"no model {reference!r}: nothing was ever registered in {connection.shown_uri()}; go to the "
            "folder where the runs were made, or set MLFLOW_TRACKING_URI"
        )
    client = connection.connect()
    name, version = find_version(client, reference)
    made = making.find(client, trained_by(client, name, version), version.digest)
    return Lineage(name, version, made, making.code_of(made.run_id) if made.known else None)
