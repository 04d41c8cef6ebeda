"""The engine process: `python -m flows.serve.engine FOLDER --socket PATH --engine vllm|transformers`.

It listens once the model is loaded. Started by flows/serve/engines.py, and ended with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import uvicorn

from flows.serve.engine import vllm_writer
from flows.serve.engine.app import EngineService, engine_app
from flows.serve.engine.judged_package import JudgedPackage
from flows.serve.engine.transformers_writer import TransformersWriter
from tasks.contracts.errors import PrecisError
from tasks.models import package_code
from tasks.processes.device import compute

KEEP_ALIVE_SECONDS = 3600  # the proxy closes idle connections sooner: none is closed as it is used
ENDING_SECONDS = 5


def with_transformers(folder: Path) -> EngineService:
    """A package loaded by its own code, in this process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    code: Any = package_code.load_code(folder)
    generator = code.Generator(folder)
    package = JudgedPackage(folder, code, generator.tokenizer)
    dtype = str(generator.model.dtype).removeprefix("torch.")
    writer = TransformersWriter(package, generator)
    return EngineService(package, writer, engine="transformers", dtype=dtype)


def with_vllm(folder: Path, program: str, socket: Path) -> EngineService:
    """A package whose tokens a vLLM server writes, beside this process. Its end is this process's."""
    package = JudgedPackage(folder)
    dtype = "bfloat16" if compute() == "cuda" else "float32"  # as transformers would load it here
    server = vllm_writer.start(program, package, socket, dtype)

    def end_with_it() -> None:
        print(f"vLLM ended (exit status {server.wait()})", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)  # nothing here could answer any more

    threading.Thread(target=end_with_it, daemon=True).start()
    writer = vllm_writer.VllmWriter(package, socket)
    return EngineService(package, writer, engine="vllm", dtype=dtype)


def main() -> int:
    """Load the package and serve it until TERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--engine", choices=("vllm", "transformers"), required=True)
    parser.add_argument("--vllm", default="vllm")
    given = parser.parse_args()
    try:
        if given.engine == "vllm":
            service = with_vllm(given.folder, given.vllm, given.socket.with_suffix(".vllm"))
        else:
            service = with_transformers(given.folder)
    except PrecisError as error:
        print(f"precis serve: {error}", file=sys.stderr)
        return 1
    uvicorn.run(
        engine_app(service),
        uds=str(given.socket),
        log_level="warning",
        access_log=False,
        lifespan="off",
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=ENDING_SECONDS,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
