"""`precis ...`: thin, one verb a function. Exit status 0: done; 1: failed; 2: bad usage."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.errors import PrecisError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.evaluate import Evaluated
    from flows.outcome import Outcome

QUIET = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the zombie automation allows for four of these
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # an embedded run sends nothing anywhere
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = _arguments(argv)
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    # By default TERM ends Python on the spot: the step's child and Prefect's server would stay.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        status: int = arguments.verb(arguments)
    except PrecisError as error:
        if arguments.debug:
            raise
        print(f"precis: {error}", file=sys.stderr)
        return 1
    return status


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
    from deployments.up import Plan
    from deployments.up import up as serve

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
    from flows import embedded

    if not arguments.debug:
        _hide_known_tracebacks()
    with embedded.server() as ready:
        with _without_collecting():
            import flows.retrain  # noqa: F401 - takes seconds, as does the server's start
        ready()
        from prefect import tags
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        silent = {} if heartbeats else {PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        # Tagged as deployed runs are: automations know ours by it.
        with temporary_settings(silent), tags("precis"):
            yield


@contextlib.contextmanager
def _without_collecting() -> Iterator[None]:
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="precis", description=__doc__.split(".")[0])
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for verb in (run, evaluate, check):
        one = _verb(verbs, verb)
        one.add_argument(
            "recipe", metavar="RECIPE", help="a YAML file, e.g. deployments/recipes/demo.yaml"
        )
        one.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="override a setting, e.g. training.seed=1",
        )
        if verb is not check:
            one.add_argument(
                "--json", action="store_true", help="print the decision as JSON, nothing else"
            )
    for verb in (champion, history):
        one = _verb(verbs, verb)
        one.add_argument("name", type=_name, metavar="NAME", help="the registered model")
        one.add_argument("--json", action="store_true")
    _ask_words(_verb(verbs, ask))
    _notify_data_words(_verb(verbs, notify_data))
    one = _verb(verbs, rollback)
    one.add_argument("name", type=_name, metavar="NAME", help="the registered model")
    one.add_argument(
        "--to", type=int, metavar="VERSION", help="default: the champion before this one"
    )
    one = _verb(verbs, up)
    one.add_argument(
        "--postgres", action="store_true", help="PostgreSQL and S3, not SQLite and files"
    )
    one.add_argument("--port", type=int, default=4200, help="of the Prefect server")
    one.add_argument("--mlflow-port", type=int, default=5000)
    one.add_argument("--s3-port", type=int, default=9000, help="with --postgres")
    one.add_argument("--runs", type=int, default=2, metavar="N", help="flow runs at once")
    return parser


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    if rest and arguments.verb is ask and not any(word.startswith("-") for word in rest):
        # argparse takes no more words for QUESTION once an option stood before it.
        arguments.question, rest = [*arguments.question, *rest], []
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _ask_words(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "model",
        metavar="NAME",
        help="the champion of that name, NAME@ALIAS, NAME/VERSION, a models:/ URI or a package (./folder)",
    )
    one.add_argument(
        "question", metavar="QUESTION", nargs="*", help="none: standard input, or a chat"
    )
    one.add_argument("--document", metavar="FILE", help="summarize it, or ask about it; -: stdin")
    one.add_argument("--max-new-tokens", metavar="N", type=_positive, help="longest answer")
    one.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU if there is one")


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def _notify_data_words(one: argparse.ArgumentParser) -> None:
    which = one.add_mutually_exclusive_group(required=True)
    which.add_argument("name", nargs="?", type=_name, metavar="NAME", help="the registered model")
    which.add_argument("--s3-event", metavar="FILE", help="an S3 notification; -: standard input")
    one.add_argument("--source", metavar="URI", help="what arrived, with NAME")


def _name(text: str) -> str:
    """A registered model's name, as recipes may give it."""
    from tasks.recipe import NAME

    if not re.match(NAME, text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no model's name: letters, digits and _ . - only"
        )
    return text


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], verb: object
) -> argparse.ArgumentParser:
    name = getattr(verb, "__name__", "").replace("_", "-")
    one = verbs.add_parser(name, help=(verb.__doc__ or "").strip())
    one.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    one.set_defaults(verb=verb)
    return one
