"""A command at a terminal of its own: what a person sees there, and types."""

from __future__ import annotations

import os
import pty
import subprocess
import threading
from dataclasses import dataclass, field
from pathlib import Path

from servers import wait_for


@dataclass
class Terminal:
    """A command whose standard input and error are a terminal; its output is kept apart."""

    words: list[str]
    folder: Path
    environment: dict[str, str]
    seen: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self._keyboard, its_end = pty.openpty()
        self.process = subprocess.Popen(
            self.words, cwd=self.folder, env=self.environment, stdin=its_end, stdout=subprocess.PIPE,
            stderr=its_end, text=True,
        )  # fmt: skip
        os.close(its_end)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            while data := os.read(self._keyboard, 4096):
                self.seen += data
        except OSError:  # Linux: nobody has the other end open any more
            return

    @property
    def text(self) -> str:
        return self.seen.decode(errors="replace")

    def wait_for(self, text: str, times: int = 1, seconds: float = 300) -> None:
        """Until the terminal has shown this so many times."""
        wait_for(
            lambda: self.text.count(text) >= times or self.process.poll() is not None,
            seconds,
            f"{text!r} {times} times in {self.text[-3000:]}",
        )
        assert self.text.count(text) >= times, self.text[-3000:]

    def type(self, *lines: str) -> None:
        """Lines, each with its Return."""
        os.write(self._keyboard, "".join(f"{line}\n" for line in lines).encode())

    def finish(self) -> str:
        """Its standard output, at its end."""
        out, _ = self.process.communicate()
        assert self.process.returncode == 0, self.text[-4000:]
        return out
