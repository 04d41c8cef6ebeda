"""One owner of the state of a `precis up`: its folder and Prefect's, which belong together.

The kernel holds the locks, so a stack that was killed holds none. A second stack on the same folder is
told the first one's address and pid. Which Prefect home goes with which folder is written into both: a
stack that finds them apart would show the runs of one store and the champions of another.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tasks.contracts.errors import PrecisError
from tasks.processes.file_lock import hold_lock

LOCK, OWNER, PARTNER = "precis-up.lock", "precis-up.json", "precis-up-belongs-to.json"


@contextlib.contextmanager
def own(folder: Path, prefect_home: Path | None, address: str) -> Iterator[None]:
    """Own the stack's folder, and Prefect's home where its database is there, while the block runs.

    Raises PrecisError if another stack owns one of them, or if they belong to others.
    """
    owned = [(folder, "MLflow's store")]
    if prefect_home is not None:
        owned.append((prefect_home, "Prefect's history"))
    with contextlib.ExitStack() as held:
        for path, _ in owned:
            path.mkdir(parents=True, exist_ok=True)
            held.enter_context(hold_lock(path / LOCK, 0, _taken(path)))
        if prefect_home is not None:
            _require_partners(folder, prefect_home)
        text = json.dumps(
            {
                "address": address,
                "pid": os.getpid(),
                "host": socket.gethostname(),
                "folder": str(folder),
            }
        )
        for path, _ in owned:
            _write(path / OWNER, text)
            held.callback((path / OWNER).unlink, missing_ok=True)
        yield


def _taken(path: Path) -> PrecisError:
    owner = _read(path / OWNER)
    who = (
        f"at {owner.get('address')}, pid {owner.get('pid')} on {owner.get('host')}, folder "
        f"{owner.get('folder')}"
        if owner
        else "which is still starting"
    )
    return PrecisError(
        f"another `precis up` uses {path} ({who}); use that one, end it with Ctrl-C or kill, or start this "
        "one in another folder and with another PREFECT_HOME"
    )


def _require_partners(folder: Path, prefect_home: Path) -> None:
    """Record that both belong together. Raises PrecisError if one of them belongs to another."""
    names = {folder: str(prefect_home), prefect_home: str(folder)}
    for path, partner in names.items():
        recorded = _read(path / PARTNER).get("belongs_to")
        if recorded not in (None, partner):
            fix = (
                f"set PREFECT_HOME={recorded}"
                if path == folder
                else f"set PREFECT_HOME={folder / 'prefect'} for a history of this folder's own, or start it "
                f"in {Path(recorded).parent}"
            )
            raise PrecisError(
                f"{path} belongs to a stack with {recorded}, not to {partner}: runs of one and champions of "
                f"another would be mixed; {fix}; if {recorded} was moved or given up, delete {path / PARTNER}"
            )
    for path, partner in names.items():
        _write(path / PARTNER, json.dumps({"belongs_to": partner}))


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):  # not there, or cut off by a full disk
        return {}
    return found if isinstance(found, dict) else {}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)
