"""A registered model's page as Markdown: for a Prefect artifact. What stands on it: model_page.py."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.contracts import formatting
from tasks.report.markdown import code, inline, table
from tasks.report.model_page import ModelPage, VersionRow, against, numbers
from tasks.report.page import is_link
from tasks.tracking.history import HistoryRecord


def render_markdown(page: ModelPage, address: str) -> str:
    """The page. `address`: of the HTML page in MLflow, which draws the intervals."""
    full = f"[this page in MLflow]({address})" if is_link(address) else code(address)
    return "\n\n".join(
        [
            f"# {page.name}",
            *_served(page),
            "## Versions",
            _versions(page),
            *([*_part("Waiting for approval", page.waiting, page)] if page.waiting else []),
            *_part("Refused", page.refusals, page),
            "## Looks used",
            _looks(page),
            f"With intervals drawn: {full}. Written {page.written} UTC from {code(page.store)}.",
        ]
    )


def _served(page: ModelPage) -> list[str]:
    if page.problem:
        return [inline(page.problem)]
    if not page.champion:
        return ["No champion yet."]
    uri = code(f"models:/{page.name}@champion")
    served = f"**Served: version {page.champion}**, champion since {page.since}: {uri}"
    notes = "\n".join(f"- {inline(each)}" for each in page.verified) or "- not noted"
    return [served, f"Verified:\n\n{notes}"]


def _versions(page: ModelPage) -> str:
    if not page.versions:
        return "None."
    head = ["version", "time", "", "metric", "gain", "[low, high]", "against", "look"]
    head += ["data", "base", "run, recipe"]
    return table(head, [_row(row) for row in reversed(page.versions)])


def _row(row: VersionRow) -> list[str]:
    entry, made = row.entry, row.made
    rows = ", ".join(f"{d.train_rows} rows {code(d.train_digest[:8])}" for d in made.datasets)
    base = " ".join(filter(None, (made.base_model, (made.base_revision or "")[:12])))
    judged = entry is not None and bool(entry.looks)
    return [
        f"v{row.number}",
        _time(entry) if entry else "",
        row.became,
        (entry.metric or "") if entry else "",
        *_gain(entry),
        against(entry) if entry and judged else "",
        str(entry.looks) if entry and judged else "",
        rows or "not known",
        code(base) if base else "not known",
        _run(made.run_id, row.run_url),
    ]


def _part(title: str, entries: Sequence[HistoryRecord], page: ModelPage) -> list[str]:
    head = ["time", "verdict", "reasons", "gain", "[low, high]", "against", "look", "run"]
    rows = [
        [
            _time(entry),
            entry.title(),
            "; ".join(entry.reasons),
            *_gain(entry),
            against(entry),
            str(entry.looks or ""),
            _run(entry.mlflow_run_id, page.run_urls.get(entry.mlflow_run_id)),
        ]
        for entry in reversed(entries)
    ]
    return [f"## {title}", table(head, rows) if rows else "None."]


def _looks(page: ModelPage) -> str:
    rows = [[opponent, code(seal[:16]), str(count)] for opponent, seal, count in page.looks]
    return table(["against", "evaluation seal", "challengers judged"], rows) if rows else "None."


def _gain(entry: HistoryRecord | None) -> tuple[str, str]:
    found = numbers(entry)
    if found is None:
        return "", ""
    gain, low, high = map(formatting.gain, found)
    return gain, f"[{low}, {high}]"


def _run(run_id: str, url: str | None) -> str:
    return f"[{run_id[:8]}]({url})" if url and is_link(url) else code(run_id[:8])


def _time(entry: HistoryRecord) -> str:
    return entry.time[:16].replace("T", " ")
