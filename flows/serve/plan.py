"""The options of `precis serve`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class ServePlan:
    """What is served, where, by which engine, and how much a request may ask for."""

    reference: str  # NAME, NAME@ALIAS or NAME/VERSION
    host: str = "127.0.0.1"
    port: int = 8080
    engine: Literal["auto", "vllm", "transformers"] = "auto"
    vllm: str | None = None  # its command; None: `vllm` on the path
    api_key: str | None = None
    max_request_bytes: int = 1 << 20
    max_requests: int = 1000  # at once
    request_timeout_seconds: float = 120.0
    poll_seconds: float = 15.0
    check_rows: int = 4

    @property
    def name(self) -> str:
        """The registered model's name: also the name of the model in requests and answers."""
        return self.reference.removeprefix("models:/").partition("@")[0].partition("/")[0]

    @property
    def follows_champion(self) -> bool:
        """Whether the reference is the champion, not another alias or a version."""
        from tasks.register.task import ALIAS  # an engine's process does without its seconds

        path = self.reference.removeprefix("models:/")
        return path in (self.name, f"{self.name}@{ALIAS}")


def read_key(file: Path | None, variable: str | None) -> str | None:
    """The API key of a file, else of the environment; None: there is none. Raises PrecisError."""
    from tasks.contracts.errors import PrecisError

    if file is None and not variable:
        return None
    source = "PRECIS_API_KEY" if file is None else f"--api-key-file {file}"
    try:
        key = (variable or "") if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise PrecisError(f"{source}: {error}; name a file that holds the key") from error
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise PrecisError(f"{source}: write one line of ASCII letters, digits and marks")
    return key
