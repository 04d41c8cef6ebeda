"""`precis lineage`, `who-learned`, `page`: where a model came from, where a row went, and all in one page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.verbs.options import Json, ModelName, model_name


def lineage(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The champion of that name, NAME@ALIAS or NAME/VERSION."
        ),
    ],
    as_json: Json = False,
) -> None:
    """What a version was made from: data, base, adapter, recipe, git commit, run, predecessor."""
    from flows.lineage import lineage as find

    found = find(model)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())


def who_learned(
    row_id: Annotated[
        str | None,
        typer.Argument(metavar="ID", help="A training row's id; -: a document on standard input."),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A document in place of an id; -: standard input."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="Only this model.", callback=model_name),
    ] = None,
    as_json: Json = False,
) -> None:
    """Which versions learned from a training row or document, or from one like it.

    Refused challengers are listed too, by their run.
    """
    if (row_id is None) == (document is None):
        raise typer.BadParameter("give either a row's ID or a --document")
    if row_id == "-":
        row_id, document = None, "-"
    from flows.who_learned import who_learned as search

    answer = search(row_id, document, name)
    print(json.dumps(answer.as_dict(), indent=2) if as_json else answer.as_text())


def page(
    name: ModelName,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; default: NAME.html.")
    ] = None,
) -> None:
    """Write one HTML page of a model: versions, gains, data, refusals with reasons, looks used.

    Sealed numbers of refused challengers are not on it.
    """
    from flows.model_page import write_page

    print(write_page(name, out or Path(f"{name}.html")))
