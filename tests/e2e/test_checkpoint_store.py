"""A whole run that dies with its machine, and one on another machine that shares only a bucket."""

from __future__ import annotations

import re
from pathlib import Path

import psutil
import pytest
import s3_server
from stack import Stack
from test_faults import family, wait_for

from tasks.train.checkpoints.backends import backend_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]


@pytest.mark.long
def test_a_run_killed_on_one_machine_goes_on_on_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second says from which checkpoint; when its adapter is in MLflow the store is empty."""
    (tmp_path / "s3" / "bucket").mkdir(parents=True)
    changes = {"training.checkpoint_store": "s3://bucket/runs"}
    with s3_server.running(tmp_path / "s3") as endpoint:
        env = s3_server.environment(endpoint)
        here, there = (Stack(tmp_path / name, env=env) for name in ("here", "there"))
        process = here.start(changes)
        log = here.folder / "err.log"
        wait_for(lambda: "checkpoint 10 stored at s3://bucket/runs/" in log.read_text(), process)
        for one in (all_of_it := family(process.pid)):
            one.kill()
        process.wait()
        psutil.wait_procs(all_of_it[1:], timeout=60)
        outcome = there.finish(there.start(changes))
        assert outcome["verdict"] == "PROMOTE"
        text = (there.folder / "err.log").read_text()
        went_on = re.search(r"training goes on from checkpoint (\d+) of s3://bucket/runs/", text)
        assert went_on
        assert min(map(int, re.findall(r"- step (\d+)/", text))) > int(went_on[1])
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        assert backend_of("s3://bucket/runs").names("") == []
