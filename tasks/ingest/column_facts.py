"""What was read as what, in words, from the data report: for `precis check` and the run's log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tasks.ingest.columns import quoted
from tasks.ingest.row_types import shown


def column_facts(report: Mapping[str, Any]) -> list[str]:
    """A line for each way that columns were read in an input, then what is missing in it."""
    facts = []
    for key, of_input in report.get("inputs", {}).items():
        files_by_line: dict[str, list[str]] = {}
        for file in of_input["files"]:
            if file["rows_read"]:
                files_by_line.setdefault(_in_words(file["fields"]), []).append(file["name"])
        for line, files in files_by_line.items():
            where = f" ({shown(files, 3)})" if len(files_by_line) > 1 else ""
            facts.append(f"{key}{where}: {line}")
        missing = of_input.get("missing_references", {})
        if missing.get("references"):
            facts.append(
                f"{key}: {missing['references']} references of {missing['rows']} rows are null or blank; "
                "the others of these rows are used"
            )
    return facts


def _in_words(fields: Mapping[str, Any]) -> str:
    parts = [fields["uses"]]
    if fields["unused"]:
        parts.append(f"not used: {quoted(fields['unused'])}")
    if fields["ignored"]:
        parts.append(f"ignored as data.fields.ignore says: {quoted(fields['ignored'])}")
    return "; ".join([*parts, *fields["notes"]])
