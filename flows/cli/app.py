"""The typer app: the verbs in the order in which `precis --help` shows them."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.verbs import lineage, models, recipes, servers

# Plain text throughout: output is read by scripts and logs as well as at a terminal.
app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def precis(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show tracebacks; may also stand after the verb.")
    ] = False,
) -> None:
    """Train, judge and register LLM summarizers: a new version only if it beats the champion."""


for verb in (
    recipes.run,
    recipes.evaluate,
    recipes.check,
    models.champion,
    models.history,
    models.ask,
    models.pull,
    models.verify,
    lineage.lineage,
    lineage.who_learned,
    lineage.page,
    servers.notify_data,
    models.prune,
    models.rollback,
    servers.serve,
    servers.up,
):
    app.command()(verb)
