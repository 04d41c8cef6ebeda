"""The report as GitHub-flavoured Markdown, shorter: for a Prefect artifact."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from tasks.contracts import formatting
from tasks.report.data import Part, ReportData
from tasks.report.examples import Example, examples, losses, wins
from tasks.report.marks import Marker
from tasks.report.plots import Plot

MAX_IMAGE_CHARACTERS = (
    200_000  # characters of a data URI: an artifact is kept in Prefect's database
)
MAX_TEXT_CHARACTERS = 600  # characters of a document or summary
# Prefect's page wraps no code, and shows this many characters of a line.
WRAP = textwrap.TextWrapper(80, replace_whitespace=False, break_on_hyphens=False)


def render_markdown(data: ReportData, plots: Sequence[Plot]) -> str:
    """Verdict, tables, plots, wins and losses.

    Documents and outputs are untrusted: they are in code blocks that they cannot end.
    """
    ordered = examples(data.challenger, data.opponent, data.metric)
    return "\n\n".join(
        [
            f"# {inline(data.headline)}",
            _bullets(data.decision.reasons),
            *filter(None, [inline(formatting.about_feedback(data.decision))]),
            *([f"To know:\n\n{_bullets(data.decision.notes)}"] if data.decision.notes else []),
            *(text for part in data.parts for text in _numbers(data, part)),
            *filter(None, [data.example_rows]),
            *(_image(plot) for plot in plots if len(plot.uri) <= MAX_IMAGE_CHARACTERS),
            *(
                [data.no_examples]
                if data.no_examples
                else [
                    *_examples("Biggest wins", wins(ordered), data),
                    *_examples("Biggest losses", losses(ordered), data),
                ]
            ),
            *_cuts(data),
            *_steps(data),
            *_facts("Cost", data.cost),
            *_facts("Training", data.training_metrics),
            *_facts("Data", _top_numbers(data.data_report)),
            *_facts("Where it came from", {**data.links, **data.digests}),
        ]
    )


def _numbers(data: ReportData, part: Part) -> list[str]:
    """Scores and guardrails of one part of the evaluation set."""
    title = f": {part.title}" if part.title else ""
    notes = data.decision.open_part.notes if data.decision.open_part and not part.decides else ()
    return [
        *_scores(data, part, title),
        *_guardrails(part, title),
        *_slices(part, title),
        *filter(None, [_bullets(notes)]),
    ]


def _scores(data: ReportData, part: Part, title: str) -> list[str]:
    difference_name = formatting.difference_title(data.metric)
    head = [
        formatting.scores_title(data.metric),
        "untuned base",
        "lead-3",
        "champion",
        "challenger",
    ]
    head += [difference_name, "[low, high]"]
    rows = []
    for name, result in part.metrics.items():
        means = (result.base, result.lead3, result.champion, result.challenger)
        difference, low, high = formatting.change_of(result, name)
        bounds = f"[{formatting.gain(low)}, {formatting.gain(high)}]"
        shown = formatting.metric_title(name)
        shown = f"**{shown}**" if name == data.metric else shown
        rows.append(
            [shown, *(formatting.score(m) for m in means), formatting.gain(difference), bounds]
        )
    caption = f"{difference_name.capitalize()} over {data.against} on {part.rows} rows"
    caption += f"; **{data.metric}** decides." if part.decides else ". These rows decide nothing."
    return [f"## Scores{title}", table(head, rows, right=len(head) - 1), caption]


def _guardrails(part: Part, title: str) -> list[str]:
    rows = [
        [
            formatting.guardrail_title(guardrail.name),
            formatting.score(guardrail.value),
            guardrail.bound,
            "yes" if guardrail.held else "**no**",
        ]
        for guardrail in part.guardrails
    ]
    return [f"## Guardrails{title}", table(["Condition", "found", "bound", "held"], rows)]


def _slices(part: Part, title: str) -> list[str]:
    if not part.slices:
        return []
    rows = [
        [
            code(f"{one.by}: {one.value}"),
            str(one.documents),
            formatting.gain(one.gain),
            "too few documents"
            if one.low is None or one.high is None
            else f"[{formatting.gain(one.low)}, {formatting.gain(one.high)}]",
        ]
        for one in part.slices
    ]
    return [
        f"## Slices{title}",
        table(["Slice", "documents", "gain", "[low, high]"], rows, right=3),
        *(
            [f"{part.slices_left_out} more slices are in the decision."]
            if part.slices_left_out
            else []
        ),
    ]


def _cuts(data: ReportData) -> list[str]:
    if not data.cuts:
        return []
    rows = [[cut.text(), cut.done] for cut in data.cuts]
    return ["## What did not fit", table(["", ""], rows)]


def _steps(data: ReportData) -> list[str]:
    if not data.steps:
        return []
    head = ["step", "time estimated", "measured", "memory estimated", "measured"]
    rows = [
        [
            step.step,
            formatting.duration(step.estimated.seconds),
            formatting.duration(step.measured.seconds),
            formatting.gib(step.estimated.memory_gib),
            formatting.gib(step.measured.memory_gib),
        ]
        for step in data.steps
    ]
    return ["## Estimated and measured", table(head, rows, right=len(head) - 1)]


def _image(plot: Plot) -> str:
    return f"### {plot.title}\n\n![{plot.title}]({plot.uri})\n\n{plot.text}"


def _examples(title: str, chosen: Sequence[Example], data: ReportData) -> list[str]:
    if not chosen:
        return [f"## {title}", "None."]
    parts, marker = [f"## {title}"], Marker(data.challenger)
    for example in chosen:
        old, new = example.opponent.scores[data.metric], example.challenger.scores[data.metric]
        parts.append(
            f"### {formatting.gain(example.change)} {data.metric} ({old:.3f} → {new:.3f}), "
            f"row {code(example.challenger.id)}"
        )
        texts = {
            "Document": example.document,
            "Reference": "\n\n".join(example.challenger.references),
            data.opponent_name.capitalize(): example.opponent.text,
            "Challenger": example.challenger.text,
        }
        parts += [f"{who}:\n\n{block(text)}" for who, text in texts.items()]
        if marked := marker.marked(example.challenger):
            found = ", ".join(map(code, marked))
            parts.append(
                f"In neither document nor reference, though the challenger says it: {found}"
            )
    return parts


def _facts(title: str, facts: object) -> list[str]:
    if not isinstance(facts, dict) or not facts:
        return []
    rows = [[formatting.label(key), formatting.fact(value)] for key, value in facts.items()]
    return [f"## {title}", table(["", ""], rows)]


def _top_numbers(report: object, path: str = "", depth: int = 0) -> dict[str, object]:
    """A nested report's numbers, two levels deep: `train rows: 1500`."""
    if not isinstance(report, dict):
        return {path: report} if isinstance(report, (int, float)) else {}
    numbers: dict[str, object] = {}
    if depth <= 2:
        for key, value in report.items():
            numbers |= _top_numbers(value, f"{path} {key}".strip(), depth + 1)
    return numbers


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: int = 0) -> str:
    """A table of untrusted texts. `right`: the last so many columns are numbers."""
    rules = ["---"] * (len(head) - right) + ["---:"] * right
    return "\n".join(f"| {' | '.join(map(_cell, row))} |" for row in (head, rules, *rows))


class _Code(str):
    """A code span, in which nothing is HTML."""

    __slots__ = ()


def _cell(text: str) -> str:
    text = text if isinstance(text, _Code) else inline(text)
    return " ".join(text.replace("|", "\\|").split())


def inline(text: str) -> str:
    """Untrusted text within a line."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {inline(text)}" for text in texts)


def code(text: str) -> _Code:
    """A name as code on one line, so that it cannot be a link or picture."""
    return _Code(f"`{' '.join(text.replace('`', ' ').split())}`")


def block(text: str, most_characters: int = MAX_TEXT_CHARACTERS) -> str:
    """Untrusted text as it is: in a fence longer than any run of backticks inside it."""
    lines = formatting.shortened(text, most_characters).split("\n")
    shown = "\n".join(map(WRAP.fill, lines)) or "(empty)"
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"
