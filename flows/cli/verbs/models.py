"""`precis champion`, `history`, `ask`, `pull`, `verify`, `prune`, `rollback`: what registered models take."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from flows.cli.verbs.flow_runs import prefect_api, result_of
from flows.cli.verbs.options import Json, ModelName

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State


def champion(name: ModelName, as_json: Json = False) -> None:
    """Who is champion, and why."""
    from flows import registry

    current = registry.describe_champion(name)
    if as_json:
        print(json.dumps(current.as_dict() if current else None, indent=2))
    else:
        print(current.as_text() if current else f"{name}: no champion yet")


def history(name: ModelName, as_json: Json = False) -> None:
    """Every promotion, refusal and rollback, oldest first."""
    from flows import registry

    records = registry.history(name)
    registry.tell_moves(name)
    if as_json:
        print(json.dumps([asdict(record) for record in records], indent=2))
    else:
        print("\n".join(record.line() for record in records) or f"{name}: no verdict yet")


def ask(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The champion of that name, NAME@ALIAS, NAME/VERSION, a models:/ URI or a package "
            "(./folder).",
        ),
    ],
    question: Annotated[
        list[str] | None,
        typer.Argument(metavar="QUESTION", help="None: standard input, or a chat."),
    ] = None,
    document: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Summarize it, or ask about it; -: standard input."),
    ] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="NAME=TEXT", help="A text of a model that takes several; NAME=@FILE."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="The longest answer, in tokens.")
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda"] | None, typer.Option(help="Default: a GPU if there is one.")
    ] = None,
) -> None:
    """Ask a model, or chat with it at the terminal.

    What is asked is QUESTION, a document, both, or standard input.
    """
    try:
        from flows import ask as asking

        text = " ".join(question) if question else None
        inputs = tuple(input_ or ())
        asking.ask(asking.Question(model, text, document, device, max_new_tokens, inputs))
    except KeyboardInterrupt:  # an everyday way to end an answer, or the wait for one
        print()
        raise typer.Exit(128 + signal.SIGINT) from None


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="The champion of that name, NAME@ALIAS, NAME/VERSION or a models:/ URI.",
        ),
    ],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that is not there yet, or empty.")
    ],
    adapter: Annotated[
        bool,
        typer.Option(
            "--adapter",
            help="The adapter and its dequantized base, each in a folder of its own in DIR, which may hold "
            "others.",
        ),
    ] = False,
) -> None:
    """Copy a registered model to a folder, checked byte by byte, for vLLM or transformers.

    A pull that was interrupted goes on when it is run again.
    """
    from flows.pull import pull as pull_model

    print(pull_model(model, folder, adapter))


def verify(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The champion of that name, NAME@ALIAS or NAME/VERSION."
        ),
    ],
    every: Annotated[
        bool, typer.Option("--all", help="Every version, and every refusal in the history.")
    ] = False,
    rows: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Stored summaries to write again, of each version."),
    ] = 3,
    as_json: Json = False,
) -> None:
    """Check a registered model against what was judged: files, decision, history, alias, summaries.

    Changes nothing but a note on the version that it was verified. Exit status 1 when something differs;
    each difference is named.
    """
    from flows.registry import say, tell_moves
    from flows.verify import note, verify_model

    found = verify_model(model, rows, every)
    note(found, say)
    tell_moves(found.name)
    print(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())
    if not found.as_judged:
        raise typer.Exit(1)


def prune(
    name: ModelName,
    keep: Annotated[
        int, typer.Option(metavar="N", min=1, help="Retrains, the newest, that keep everything.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; else it is only listed.")] = False,
) -> None:
    """Remove old runs' working files, and the adapters of refused challengers.

    Versions keep all they have. Exit status 1 when something could not be removed.
    """
    from flows.prune import prune as prune_model

    found = prune_model(name, keep, yes)
    print(found.as_text())
    if found.problems:
        raise typer.Exit(1)


def rollback(
    name: ModelName,
    to: Annotated[
        int | None,
        typer.Option(metavar="VERSION", help="Default: the champion before this one."),
    ] = None,
) -> None:
    """Put an earlier champion back."""
    with prefect_api():
        from flows.rollback import rollback as flow

        state = cast("State[Any]", flow(name, to, return_state=True))
    result_of(state)
    print(state.message)
