"""Steps forked from a server: as in a fresh interpreter, and no server outlives its use.

Over 250 lines: what the children run stands beside the tests.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.contracts.errors import ChildFailed
from tasks.processes import fork_server, step_process

HERE = "test_forked_process"


# What the children run: `tests/` is on their path through PYTHONPATH.
def place(**names: str) -> dict[str, Any]:
    """Who and where this process is, and its variables `names`."""

    return {
        "parent": os.getppid(),
        "leads": os.getsid(0) == os.getpid(),
        "forked": fork_server.__name__ in sys.modules
        and "__main__" in sys.modules
        and str(sys.modules["__main__"].__file__).endswith("fork_server.py"),
        "folder": str(Path.cwd()),
        "stdin": os.readlink("/proc/self/fd/0"),
        "open": sorted(os.readlink(f"/proc/self/fd/{n}") for n in _descriptors()),
        "handlers": [str(signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGINT)],
        "env": {name: os.environ.get(name) for name in names},
        "native": _native_env(names),
        "path": sys.path,
        "imported": sorted({"torch", "transformers", "mlflow", "prefect"} & set(sys.modules)),
        "threads": len(os.listdir("/proc/self/task")),
        "random": [random.random(), str(uuid.uuid4()), tempfile.mktemp()],
    }


def _descriptors() -> list[str]:
    return [n for n in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{n}")]


def _native_env(names: dict[str, str]) -> dict[str, str]:
    """The environment as a child of this process gets it."""
    import subprocess

    text = subprocess.run(["env", "-0"], capture_output=True, check=True).stdout
    values = dict(os.fsdecode(line).partition("=")[::2] for line in text.split(b"\0"))
    return {name: values[name] for name in names if name in values}


def trained() -> str:
    """The digest of weights after steps that use threads, and of a product by numpy."""
    import numpy
    import torch

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(300, 700), torch.nn.GELU(), torch.nn.Linear(700, 300)
    )
    optimizer = torch.optim.AdamW(model.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(256, 300)).square().mean().backward()
        optimizer.step()
    numbers = numpy.random.default_rng(0).random((500, 500))
    found = hashlib.sha256((numbers @ numbers).tobytes())
    for weights in model.parameters():
        found.update(weights.detach().numpy().tobytes())
    return f"{torch.get_num_threads()} {found.hexdigest()}"


def draw() -> float:
    import numpy

    return float(numpy.random.random())


def state() -> dict[str, Any]:
    """What the server's imports left."""
    import torch

    return {
        "cuda": torch.cuda.is_initialized() or fork_server.cuda_was_touched(),
        "offline": __import__("huggingface_hub").constants.HF_HUB_OFFLINE,
    }


def wait(seconds: float, started: str = "") -> int:
    if started:
        Path(started).write_text(str(os.getpid()))
    time.sleep(seconds)
    return os.getppid()


@pytest.fixture
def light(light_libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{light_libraries}")


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def call(function: str, folder: Path, **payload: Any) -> Any:
    return step_process.run(f"{HERE}:{function}", payload, folder)


def servers() -> list[psutil.Process]:
    """The fork servers of this process."""
    return [
        child
        for child in psutil.Process().children()
        if child.status() != psutil.STATUS_ZOMBIE
        and "tasks.processes.fork_server" in child.cmdline()
    ]


def wait_for(what: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.mark.usefixtures("light")
def test_a_forked_process_is_as_a_fresh_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session, folder, variables, descriptors, path and handlers; and what is random differs."""
    call("wait", tmp_path / "before", seconds=0)  # the server starts in another folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRECIS_SOME", "ä\udcff\nx")
    names = {
        "PRECIS_SOME": "",
        "PRECIS_NONE": "",
        "OMP_WAIT_POLICY": "",
        "JE_ARROW_MALLOC_CONF": "",
    }
    forked = call("place", tmp_path / "step", **names)
    fresh = step_process.run(f"{HERE}:place", names, tmp_path / "step", fresh=True)
    assert (forked.pop("forked"), fresh.pop("forked")) == (True, False)
    assert forked.pop("parent") != fresh.pop("parent") == os.getpid()
    assert all(a != b for a, b in zip(forked["random"], fresh.pop("random"), strict=True))
    assert forked.pop("random") != call("place", tmp_path / "step", **names)["random"]
    assert forked.pop("imported") == ["torch", "transformers"]
    assert fresh.pop("imported") == []
    assert forked == fresh
    assert forked["folder"] == str(tmp_path)
    assert forked["env"]["PRECIS_SOME"] == "ä\udcff\nx"


@pytest.mark.usefixtures("light")
def test_a_variable_that_libraries_read_brings_another_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect's and ours do not; the idle one is ended; one that still works is left alone."""
    first = call("wait", tmp_path / "a", seconds=0)
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", "1")
    assert call("wait", tmp_path / "a", seconds=0) == first
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    second = call("wait", tmp_path / "a", seconds=0)
    assert second != first
    assert [server.pid for server in servers()] == [second]
    with ThreadPoolExecutor() as pool:
        started = tmp_path / "started"
        busy = pool.submit(call, "wait", tmp_path / "b", seconds=1.5, started=str(started))
        wait_for(started.exists)
        monkeypatch.delenv("HF_HOME")
        third = call("wait", tmp_path / "a", seconds=0)
        assert {server.pid for server in servers()} == {second, third}
        assert busy.result() == second


@pytest.mark.usefixtures("light")
def test_steps_of_several_threads_share_a_server(tmp_path: Path) -> None:
    """Started at once, before there is one: each has its own folder, log and answer."""
    for server in servers():
        server.kill()
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(call, "wait", tmp_path / str(n), seconds=1) for n in range(4)]
        assert len({future.result() for future in calls}) == 1
    assert len(servers()) == 1


@pytest.mark.usefixtures("light")
def test_a_killed_server_fails_the_step_and_the_next_has_another(tmp_path: Path) -> None:
    """ChildFailed, as for a killed child; nothing that it forked lives on, and the folder is free."""
    started, failures = tmp_path / "started", list[str]()

    def fails() -> None:
        with pytest.raises(ChildFailed, match="its fork server was killed") as caught:
            call("wait", tmp_path / "step", seconds=600, started=str(started))
        failures.append(str(caught.value))

    thread = threading.Thread(target=fails)
    thread.start()
    wait_for(lambda: started.exists() and started.read_text())
    child = psutil.Process(int(started.read_text()))
    child.parent().kill()  # type: ignore[union-attr]
    thread.join(30)
    assert failures
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert call("wait", tmp_path / "step", seconds=0) in {server.pid for server in servers()}


@pytest.mark.usefixtures("light")
def test_a_cancel_ends_the_step_and_not_the_server(tmp_path: Path) -> None:
    """Whatever is raised while it is waited for: the whole group ends."""
    started, answers = tmp_path / "started", list[int]()

    def cancelled() -> bool:
        if started.exists() and started.read_text():
            answers.append(int(started.read_text()))
            raise KeyboardInterrupt
        return False

    payload = {"seconds": 600, "started": str(started)}
    with pytest.raises(KeyboardInterrupt):
        step_process.run(f"{HERE}:wait", payload, tmp_path / "step", halt=cancelled)
    assert not psutil.pid_exists(answers[0])
    assert len(servers()) == 1
    assert call("wait", tmp_path / "step", seconds=0) == servers()[0].pid


BROKEN = {
    "an import that fails": ("raise ImportError('no such library')", "no such library"),
    "a thread": (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), name='busy', daemon=True).start()\n",
        "its imports started threads: MainThread, busy",
    ),
    "CUDA": (
        "class cuda:\n    is_initialized = staticmethod(lambda: True)\n",
        "its imports initialized CUDA",
    ),
}


@pytest.mark.parametrize(("text", "reason"), BROKEN.values(), ids=BROKEN)
def test_where_a_fork_would_be_unsafe_a_fresh_interpreter_does_it(
    text: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step's log says why; the server that refused is gone, and is not tried again."""
    (tmp_path / "torch.py").write_text(text)
    (tmp_path / "transformers.py").write_text("def __getattr__(name): return None")
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parent}{os.pathsep}{tmp_path}")
    for _ in range(2):
        assert call("wait", tmp_path / "step", seconds=0) == os.getpid()
        assert reason in (tmp_path / "step/log.txt").read_text()
    wait_for(lambda: not servers())


def test_where_there_is_a_gpu_the_imports_leave_out_what_asks_its_driver(tmp_path: Path) -> None:
    """Trainer imports peft and bitsandbytes, which do: no fork could then use the GPU (tried on an H200)."""
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "transformers.py").write_text("def __getattr__(name): print(name)")
    code = "from tasks.processes import fork_server as f; f.GPU_FILES = {}; f.import_libraries()"
    asked = [
        subprocess.run(
            [sys.executable, "-c", code.format(files)],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for files in ((), (os.devnull,))
    ]
    assert "AutoTokenizer" in asked[1]
    assert asked[0] == [*asked[1], "Trainer"]


@pytest.mark.usefixtures("real")
def test_the_real_libraries_can_be_forked_and_numbers_are_the_same(tmp_path: Path) -> None:
    """Bit for bit those of a fresh interpreter; CUDA untouched; numpy's own generator is another."""
    forked = call("trained", tmp_path / "step")
    assert forked == step_process.run(f"{HERE}:trained", {}, tmp_path / "step", fresh=True)
    assert "refused" not in (tmp_path / "step/log.txt").read_text()
    assert call("draw", tmp_path / "step") != call("draw", tmp_path / "step")
    assert call("state", tmp_path / "step") == {
        "cuda": False,
        "offline": os.environ.get("HF_HUB_OFFLINE") == "1",
    }
    step = call("place", tmp_path / "step")
    assert step["threads"] == 1
    assert step["imported"] == ["torch", "transformers"]  # so neither reads variables too early
