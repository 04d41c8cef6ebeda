"""Slots on a real Prefect server: one holder, and one that outlives the server's absence."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Servers, wait_for

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

HOLD = """
import sys
from tasks.orchestration import concurrency
concurrency.RENEW_SECONDS = 1.0
concurrency.get_run_logger = __import__("logging").getLogger
try:
    with concurrency.sole_retrain("held", wait=sys.argv[1] == "wait"):
        print("held", flush=True)
        sys.stdin.read()
except concurrency.Busy:
    print("busy", flush=True)
print("out", flush=True)
"""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    running = Servers(tmp_path_factory.mktemp("slots"))
    running.start("prefect")
    yield running
    running.close()


def holder(servers: Servers, how: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", HOLD, how]
    env = servers.client.environment()
    pipe = subprocess.PIPE
    return subprocess.Popen(words, env=env, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def taken(servers: Servers) -> int:
    limits = servers.ask("v2/concurrency_limits/filter", {})
    return int(next(one["active_slots"] for one in limits if one["name"] == "precis-retrain-held"))


def test_one_holder_at_a_time(servers: Servers) -> None:
    """A second one is told, or waits for the first."""
    first = holder(servers, "wait")
    assert says(first) == "held"
    assert says(holder(servers, "end")) == "busy"
    waiting = holder(servers, "wait")
    assert taken(servers) == 1
    first.communicate("")
    assert says(waiting) == "held"
    waiting.communicate("")
    assert taken(servers) == 0


RACE = """
import threading
from tasks.orchestration import concurrency
failures = []

def create(name, together):
    together.wait()
    try:
        concurrency._create(name)
    except Exception as error:
        failures.append(repr(error))

for number in range(5):
    together = threading.Barrier(6)
    threads = [threading.Thread(target=create, args=(f"race-{number}", together)) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
print(failures)
"""


def test_runs_that_make_the_same_limit_at_once_all_go_on(servers: Servers) -> None:
    """Only one of them makes it; the server tells the others that it is there."""
    words, env = [sys.executable, "-c", RACE], servers.client.environment()
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr[-2000:]


def test_a_dead_holder_loses_its_slot(servers: Servers) -> None:
    """Killed with -9: free again once its lease of a minute has ended."""
    first = holder(servers, "wait")
    assert says(first) == "held"
    first.kill()
    first.wait()
    assert taken(servers) == 1
    wait_for(lambda: taken(servers) == 0, 150, "the slot stays taken")


def test_a_holder_takes_its_slot_again_after_the_server_was_away(servers: Servers) -> None:
    """Longer than the lease: the server has freed the slot meanwhile, and the holder notices."""
    first = holder(servers, "wait")
    assert says(first) == "held"
    servers.stop("prefect")
    gone = time.monotonic()
    wait_for(lambda: time.monotonic() - gone > 70, 90, "longer than the lease")
    servers.start("prefect")
    wait_for(lambda: taken(servers) == 1, 60, "the slot was given up")
    assert says(holder(servers, "end")) == "busy"
    first.communicate("")
    assert taken(servers) == 0


def test_a_limit_that_is_not_there_is_named(servers: Servers, tmp_path: Path) -> None:
    """PRECIS_GPU_LIMIT with a typing error."""
    code = "from tasks.orchestration.concurrency import gpu\nwith gpu(): pass"
    env = servers.client.environment() | {"PRECIS_GPU_LIMIT": "no-such-limit"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert "has no limit 'no-such-limit'; create it (prefect gcl create" in done.stderr


def test_more_slots_than_a_limit_has_are_refused(servers: Servers) -> None:
    """They would be waited for forever: training.devices above what PRECIS_GPU_LIMIT allows."""
    servers.prefect("gcl", "create", "two-gpus", "--limit", "2")
    code = (
        "from tasks.orchestration.concurrency import gpu\n"
        "with gpu(2): print('held')\nwith gpu(3): pass"
    )
    env = servers.client.environment() | {"PRECIS_GPU_LIMIT": "two-gpus"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "held"
    assert "3 slots of 'two-gpus' are needed" in done.stderr
    assert "and it has 2" in done.stderr


def test_a_model_spread_over_more_gpus_than_slots_holds_them_all(servers: Servers) -> None:
    """One GPU step at a time is a limit of 1, whatever the machine has; a limit of 3 gives two of them."""
    code = (
        "import sys\nfrom tasks.orchestration.concurrency import gpu\n"
        "with gpu(1, spread=int(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    for limit, spread, expected in ((1, 8, 1), (3, 2, 2), (3, 1, 1)):
        name = f"gpus-{limit}-{spread}"
        servers.prefect("gcl", "create", name, "--limit", str(limit))
        env = servers.client.environment() | {"PRECIS_GPU_LIMIT": name}
        words, pipe = [sys.executable, "-c", code, str(spread)], subprocess.PIPE
        held = subprocess.Popen(words, env=env, stdin=pipe, stdout=pipe, text=True)
        assert says(held) == "held"
        limits = servers.ask("v2/concurrency_limits/filter", {})
        assert next(one["active_slots"] for one in limits if one["name"] == name) == expected
        held.communicate("", timeout=60)
        assert held.returncode == 0
