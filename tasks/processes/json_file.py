"""JSON files that another process reads: it finds the whole file or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write(path: Path, value: Any) -> None:
    """Write `value` to `path` atomically: to a file beside it, which then takes its name."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value, indent=2, sort_keys=True))
    partial.replace(path)


def read_if_there(path: Path) -> Any:
    """The value in the file; None where there is no file."""
    return json.loads(path.read_text()) if path.exists() else None
