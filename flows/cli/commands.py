"""What each verb of `precis` does; returns the exit status."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.contracts.errors import PrecisError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.evaluate import Evaluated
    from flows.outcome import Outcome


def run(arguments: argparse.Namespace) -> int:
    """The retrain flow, here and now."""
    from flows import recipes

    recipe = recipes.load(Path(arguments.recipe), arguments.set)
    with _prefect(arguments, heartbeats=False):  # it has its own: flows/heartbeat.py
        from flows.retrain import retrain

        state = cast("State[Outcome]", retrain(recipe, return_state=True))
    return _show(state, arguments.json)


def check(arguments: argparse.Namespace) -> int:
    """Everything that can be known before spending GPU time."""
    from flows import check as checks
    from flows import recipes

    found = checks.check(recipes.load(Path(arguments.recipe), arguments.set))
    print(found.as_text())
    return 1 if found.problems else 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Score the champion on evaluation.fresh: has it decayed?"""
    from flows import recipes

    recipe = recipes.load(Path(arguments.recipe), arguments.set)
    with _prefect(arguments):
        from flows.evaluate import evaluate_champion

        state = cast("State[Evaluated]", evaluate_champion(recipe, return_state=True))
    return _show(state, arguments.json)


def notify_data(arguments: argparse.Namespace) -> int:
    """Tell the Prefect server that data have arrived: for a model, or as an S3 event says."""
    from flows import notify

    print("\n".join(notify.data(arguments.name, arguments.source, arguments.s3_event)))
    return 0


def champion(arguments: argparse.Namespace) -> int:
    """Who is champion, and why."""
    from flows import registry

    found = registry.champion(arguments.name)
    if arguments.json:
        print(json.dumps(found.as_dict() if found else None, indent=2))
    else:
        print(found.as_text() if found else f"{arguments.name}: no champion yet")
    return 0


def ask(arguments: argparse.Namespace) -> int:
    """Ask a model: a question, a document, standard input, or a chat at the terminal."""
    try:
        from flows import ask as asking

        return asking.ask(
            asking.Question(
                arguments.model,
                " ".join(arguments.question) if arguments.question else None,
                arguments.document,
                arguments.device,
                arguments.max_new_tokens,
            )
        )
    except KeyboardInterrupt:  # an everyday way to end an answer, or the wait for one
        print()
        return 128 + signal.SIGINT


def history(arguments: argparse.Namespace) -> int:
    """Every promotion, refusal and rollback, oldest first."""
    from flows import registry

    records = registry.history(arguments.name)
    if arguments.json:
        print(json.dumps([asdict(record) for record in records], indent=2))
    else:
        print("\n".join(record.line() for record in records) or f"{arguments.name}: no history yet")
    return 0


def rollback(arguments: argparse.Namespace) -> int:
    """Put an earlier champion back."""
    with _prefect(arguments):
        from flows.rollback import rollback as flow

        state = cast("State[object]", flow(arguments.name, arguments.to, return_state=True))
    if not state.is_completed():
        print(f"precis: {state.message}", file=sys.stderr)
        return 1
    print(state.message)
    return 0


def up(arguments: argparse.Namespace) -> int:
    """The whole stack on this machine: both servers, a worker, all deployments; Ctrl-C ends it."""
    from flows.stack.up import Plan
    from flows.stack.up import up as serve

    serve(
        Plan(
            prefect_port=arguments.port,
            mlflow_port=arguments.mlflow_port,
            s3_port=arguments.s3_port,
            postgres=arguments.postgres,
            runs_at_once=arguments.runs,
        )
    )
    return 0


@contextlib.contextmanager
def _prefect(arguments: argparse.Namespace, heartbeats: bool = True) -> Iterator[None]:
    """A Prefect API to run a flow against, its log as a user wants it, Prefect's heartbeats if need be."""
    from flows.stack import embedded

    if not arguments.debug:
        _hide_known_tracebacks()
    with contextlib.ExitStack() as stack:
        with without_collecting():
            ready = stack.enter_context(embedded.server())  # imports Prefect
            import flows.retrain  # noqa: F401 - takes seconds, as does the server's start
        ready()
        from prefect import tags

        from flows.run_context import OURS

        with _settings(heartbeats), tags(OURS):  # as deployed runs are
            yield


@contextlib.contextmanager
def _settings(heartbeats: bool) -> Iterator[None]:
    """Prefect's settings for the run: with heartbeats or without, the server's version not asked again.

    `ready` has asked for it, and an embedded server is of this installation. `temporary_settings` would
    take 60 ms to write all settings out and validate them.
    """
    from prefect.context import SettingsContext, get_settings_context

    now = get_settings_context()
    settings = now.settings
    quiet: dict[str, Any] = {}
    quiet["client"] = settings.client.model_copy(update={"server_version_check_enabled": False})
    if not heartbeats:
        quiet["flows"] = settings.flows.model_copy(update={"heartbeat_frequency": None})
    with SettingsContext(profile=now.profile, settings=settings.model_copy(update=quiet)):
        yield


@contextlib.contextmanager
def without_collecting() -> Iterator[None]:
    """Imports make a million objects that stay: a fifth of their time goes to looking for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _show(state: State[Outcome] | State[Evaluated], as_json: bool) -> int:
    """Print what a flow came to; the exit status."""
    if not state.is_completed():
        print(f"precis: {state.message}", file=sys.stderr)
        return 1
    found = state.result()
    print(found.as_json() if as_json else found.as_text())
    return 0


def _hide_known_tracebacks() -> None:
    """A PrecisError speaks for itself; Prefect would log it with a traceback as well."""

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], PrecisError))

    for name in ("prefect.task_runs", "prefect.flow_runs"):
        logging.getLogger(name).addFilter(keep)
