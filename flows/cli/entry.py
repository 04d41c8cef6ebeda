"""The `precis` command: its console function. Exit status: 0 done, 1 failed, 2 bad usage.

Nothing heavy is imported here or in `flows.cli.app`: `precis --help` answers in half a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from flows import home_folder, log_filter
from tasks.contracts import machine_faults
from tasks.contracts.errors import PrecisError

DEBUG = "--debug"
CLOSED_PIPE = 128 + 13  # as a shell tells a command that SIGPIPE ended
ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the zombie automation allows for four of these
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",  # an embedded run sends nothing anywhere
}


def console() -> int:
    """The function behind the command `precis`."""
    status = main()
    try:
        sys.stdout.flush()
    except BrokenPipeError:  # `precis ... | head`
        return _without_output(CLOSED_PIPE)
    except OSError as error:
        print(f"precis: {machine_faults.told(error) or error}", file=sys.stderr)
        return _without_output(1)
    return status


def _without_output(status: int) -> int:
    """Let Python's own flush at its end meet no closed pipe or full disk, of which it would tell."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb with `argv` (default: the command line); returns the exit status."""
    words, debug = _take_debug(sys.argv[1:] if argv is None else argv)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    home_folder.keep_private()
    # By default both end Python on the spot: the step's process and Prefect's server would stay.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    if not debug:
        log_filter.hide_known_errors()
    from flows.cli.app import app

    try:
        app(words, prog_name="precis")
    except PrecisError as error:
        if debug:
            raise
        print(f"precis: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return CLOSED_PIPE
    except OSError as error:
        if debug or not (message := machine_faults.told(error)):
            raise
        print(f"precis: {message}", file=sys.stderr)
        return 1
    except SystemExit as ended:  # how typer ends, whatever the status
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    return 0


def _take_debug(argv: Sequence[str]) -> tuple[list[str], bool]:
    """The command line without `--debug`, which may stand anywhere before a `--`; whether it was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    options = [word for word in argv[:end] if word != DEBUG]
    return [*options, *argv[end:]], DEBUG in argv[:end]


if __name__ == "__main__":
    sys.exit(main())
