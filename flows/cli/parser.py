"""The words of the `precis` command, and its exit status. 0: done; 1: failed; 2: bad usage."""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
from collections.abc import Sequence

from flows.cli.commands import (
    ask,
    champion,
    check,
    evaluate,
    history,
    notify_data,
    rollback,
    run,
    up,
)
from tasks.contracts.errors import PrecisError

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="precis",
        description="Train, judge and register LLM summarizers: a new version only if it beats the champion.",
    )
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
    from tasks.contracts.recipe import NAME

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
