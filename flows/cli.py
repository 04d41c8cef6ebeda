"""`precis ...`: thin, one verb a function. Exit status 0: done; 1: failed; 2: bad usage."""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks.errors import PrecisError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from flows.outcome import Outcome

QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # an embedded run sends nothing anywhere
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",  # a busy machine is slow to start it
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for the decision
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = _parser().parse_args(argv)
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
    from flows.retrain import retrain

    if not arguments.debug:
        _hide_known_tracebacks()
    state = cast("State[Outcome]", retrain(recipe, return_state=True))
    if not state.is_completed():
        print(f"precis: {state.message}", file=sys.stderr)
        return 1
    outcome = state.result()
    print(outcome.as_json() if arguments.json else outcome.as_text())
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Everything that can be known before spending GPU time."""
    from flows import check as checks
    from flows import recipes

    found = checks.check(recipes.load(Path(arguments.recipe), arguments.set))
    print(found.as_text())
    return 1 if found.problems else 0


def champion(arguments: argparse.Namespace) -> int:
    """Who is champion, and why."""
    from flows import registry

    found = registry.champion(arguments.name)
    if arguments.json:
        print(json.dumps(found.as_dict() if found else None, indent=2))
    else:
        print(found.as_text() if found else f"{arguments.name}: no champion yet")
    return 0


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
    from flows.rollback import rollback as flow

    if not arguments.debug:
        _hide_known_tracebacks()
    state = cast("State[object]", flow(arguments.name, arguments.to, return_state=True))
    if not state.is_completed():
        print(f"precis: {state.message}", file=sys.stderr)
        return 1
    print(state.message)
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
    for verb in (run, check):
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
        if verb is run:
            one.add_argument(
                "--json", action="store_true", help="print the decision as JSON, nothing else"
            )
    for verb in (champion, history):
        one = _verb(verbs, verb)
        one.add_argument("name", metavar="NAME", help="the registered model")
        one.add_argument("--json", action="store_true")
    one = _verb(verbs, rollback)
    one.add_argument("name", metavar="NAME", help="the registered model")
    one.add_argument(
        "--to", type=int, metavar="VERSION", help="default: the champion before this one"
    )
    return parser


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], verb: object
) -> argparse.ArgumentParser:
    name = getattr(verb, "__name__", "")
    one = verbs.add_parser(name, help=(verb.__doc__ or "").strip())
    one.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    one.set_defaults(verb=verb)
    return one


if __name__ == "__main__":
    sys.exit(main())
