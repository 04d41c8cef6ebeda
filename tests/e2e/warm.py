"""`precis` in milliseconds: one process imports everything once, and forks for each command.

What a test sees is a process of its own with its own files, environment and exit status, as a shell
starts it; only the seconds of imports are saved. Some tests start the real command all the same.
`-c SCRIPT ARGUMENTS` in place of a verb runs a script, as `python -c` does.

Run as a script it is that process: it reads a call in JSON per line and answers with exit statuses.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


class WarmPrecis:
    """Runs `precis ARGV` in forks of one process; close it in the end."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, argv: list[str], folder: Path, environment: dict[str, str], stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """What `subprocess.run` would return for the same command in that folder and environment."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.TemporaryDirectory() as scratch:
            files = [Path(scratch) / name for name in ("stdin", "stdout", "stderr")]
            files[0].write_text(stdin)
            call = {
                "argv": argv,
                "folder": str(folder),
                "environment": environment,
                "files": [str(file) for file in files],
            }
            self.process.stdin.write(json.dumps(call) + "\n")
            self.process.stdin.flush()
            status = self.process.stdout.readline()
            assert status, f"the warm process ended with {self.process.wait()}"
            texts = [file.read_text() for file in files[1:]]
        return subprocess.CompletedProcess(argv, int(status), *texts)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def serve() -> int:
    """Fork for each call on standard input. In a fork this returns what its command returned."""
    import threading

    import mlflow  # noqa: F401
    import torch  # noqa: F401
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer  # noqa: F401 - by use

    import flows.check
    import flows.cli.app
    import flows.evaluate
    import flows.retrain
    import flows.stack.embedded  # noqa: F401
    from flows.cli.entry import main

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        assert threading.active_count() == 1, threading.enumerate()  # a fork has only one
        pid = os.fork()
        if not pid:
            call = json.loads(line)
            _become(call)
            argv = call["argv"]
            if argv[0] != "-c":
                return main(argv)
            exec(argv[1], {"__name__": "__main__"})
            return 0
        answers.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        answers.flush()
    return 0


def _become(call: dict[str, Any]) -> None:
    """Take folder, environment and standard files of a call, as a process that was just started."""
    from prefect.context import refresh_global_settings_context

    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    modes = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (file, mode) in enumerate(zip(call["files"], modes, strict=True)):
        os.dup2(os.open(file, mode, 0o600), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the buffer of the old one is the next call's
    argv = call["argv"]
    sys.argv = ["-c", *argv[2:]] if argv[0] == "-c" else ["precis", *argv]
    refresh_global_settings_context()


if __name__ == "__main__":
    sys.exit(serve())
