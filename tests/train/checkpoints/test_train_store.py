"""What counts in a checkpoint store, and what is refused: in a folder, and on a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3_server
from store_sites import KINDS, Site, site

from tasks.contracts import digest
from tasks.contracts.errors import TrainingError
from tasks.train.checkpoints import local
from tasks.train.checkpoints.backends import Backend, backend_of
from tasks.train.checkpoints.store import CheckpointStore, check, remove_job

JOB, OTHER = {"rows": "a"}, {"rows": "b"}
ROOT = f"{digest.of_value(JOB)}/checkpoint-20"


@pytest.fixture(params=KINDS)
def there(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Site]:
    with site(request.param, tmp_path, monkeypatch) as opened:
        yield opened


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The notes that the child process reports to its parent."""
    monkeypatch.setenv("PRECIS_CHILD_FOLDER", str(tmp_path))
    lines = tmp_path / "progress.jsonl"
    return lambda: [json.loads(line)["text"] for line in lines.read_text().splitlines()]


def machine(there: Site, job: dict[str, Any] = JOB) -> CheckpointStore:
    """The store as another machine opens it."""
    return CheckpointStore(backend_of(there.uri), job)


def checkpoint(folder: Path, step: int, word: str = "") -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "deep").mkdir(parents=True)
    for name in ("optimizer.pt", "adapter.safetensors", "deep/rng_state.pth"):
        (path / name).write_text(f"{name} of step {step} {word}" * 100)
    local.mark_complete(path, {"seconds": float(step)})
    return path


def test_another_machine_goes_on_from_the_last_complete_one(
    there: Site, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    """Ahead of the local one it is downloaded as it was; otherwise the local one is used."""
    store = machine(there)
    assert store.newest(tmp_path / "b", None) is None
    for step in (5, 10, 100):
        store.save(checkpoint(tmp_path / "a", step))
    newest = machine(there).newest(tmp_path / "b", checkpoint(tmp_path / "b", 90))
    assert newest == tmp_path / "b" / "checkpoint-100"
    assert digest.of_folder(newest) == digest.of_folder(tmp_path / "a" / "checkpoint-100")
    assert local.usage_at(newest) == {"seconds": 100.0}
    assert not (tmp_path / "b" / "incoming").exists()
    for step in (100, 101):
        mine = tmp_path / "c" / f"checkpoint-{step}"
        assert machine(there).newest(tmp_path / "c", mine) == mine
    uri = f"{there.uri.rstrip('/')}/{digest.of_value(JOB)}/checkpoint-100"
    assert any(text.startswith(f"checkpoint 100 stored at {uri} (0.0 MiB, ") for text in notes())
    assert notes()[-1] == f"training goes on from checkpoint 100 of {uri}"


def test_two_are_kept_and_other_jobs_are_left_alone(there: Site, tmp_path: Path) -> None:
    """Each upload removes what is older than the one before it; a finished job leaves nothing."""
    mine, other = machine(there), machine(there, OTHER)
    other.save(checkpoint(tmp_path / "other", 1))
    backend_of(there.uri).write(f"{ROOT}/0a/optimizer.pt", b"of a run killed while it uploaded")
    for step in (10, 30, 40):
        mine.save(checkpoint(tmp_path / "a", step))
    left = backend_of(there.uri).names(f"{mine.key}/")
    assert {name.split("/")[1] for name in left} == {"job.json", "checkpoint-30", "checkpoint-40"}
    assert other.newest(tmp_path / "b", None) == tmp_path / "b" / "checkpoint-1"
    remove_job(there.uri, mine.key)
    assert backend_of(there.uri).names(f"{mine.key}/") == []
    assert len(backend_of(there.uri).names(f"{other.key}/")) == 6


def _manifest(backend: Backend) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(backend.read(f"{ROOT}/complete.json"))
    return manifest


def _rewrite(backend: Backend, **values: Any) -> None:
    backend.write(f"{ROOT}/complete.json", json.dumps(_manifest(backend) | values).encode())


def _file(backend: Backend) -> str:
    return f"{ROOT}/{_manifest(backend)['upload']}/optimizer.pt"


DAMAGE: dict[str, tuple[Callable[[Backend], None], str]] = {
    "torn manifest": (
        lambda p: p.write(f"{ROOT}/complete.json", p.read(f"{ROOT}/complete.json")[:99]),
        "complete.json is damaged",
    ),
    "altered": (
        lambda p: p.write(_file(p), p.read(_file(p)).replace(b"20", b"21", 1)),
        "optimizer.pt has another BLAKE3",
    ),
    "cut short": (lambda p: p.write(_file(p), p.read(_file(p))[:-1]), "bytes, complete.json says"),
    "a file lost": (lambda p: p.remove([_file(p)]), "a file is missing"),
    "of another job": (lambda p: _rewrite(p, job="0" * 64), "another job or step"),
    "files nowhere": (lambda p: _rewrite(p, files={}), "no complete.json of its own"),
    "leads out": (
        lambda p: _rewrite(p, files={"../../x": {"size_bytes": 1, "blake3": ""}}),
        "complete.json is damaged",
    ),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_torn_or_altered_one_is_refused_for_an_older_one(
    there: Site, tmp_path: Path, how: str, notes: Callable[[], list[str]]
) -> None:
    """It is named in the log with the reason; with none older, training starts from scratch."""
    damage, reason = DAMAGE[how]
    for step in (10, 20):
        machine(there).save(checkpoint(tmp_path / "a", step))
    damage(backend_of(there.uri))
    newest = machine(there).newest(tmp_path / "b", None)
    assert newest == tmp_path / "b" / "checkpoint-10"
    assert not (tmp_path / "b" / "checkpoint-20").exists()
    (text,) = (line for line in notes() if "is refused" in line)
    assert "checkpoint 20 at " in text
    assert reason in text
    backend_of(there.uri).remove([f"{digest.of_value(JOB)}/checkpoint-10/complete.json"])
    assert machine(there).newest(tmp_path / "c", None) is None


class InterruptedBackend:
    """A real backend where something happens after the second file of an upload."""

    def __init__(self, real: Backend, act: Callable[[], None]) -> None:
        self.real, self.act, self.uploads = real, act, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def upload(self, path: Path, name: str) -> None:
        self.real.upload(path, name)
        self.uploads += 1
        if self.uploads == 2:
            self.act()


def test_two_machines_at_the_same_step_never_mix(there: Site, tmp_path: Path) -> None:
    """The upload that ends last counts, as a whole; an interrupted one does not count."""
    local = {word: checkpoint(tmp_path / word, 50, word) for word in ("one", "two", "three")}

    def break_off() -> None:
        raise TrainingError("the network is gone")

    def upload(word: str, act: Callable[[], None]) -> None:
        CheckpointStore(InterruptedBackend(backend_of(there.uri), act), JOB).save(local[word])

    def read() -> str:
        return digest.of_folder(machine(there).newest(tmp_path / "b", None) or Path("none"))

    upload("one", lambda: machine(there).save(local["two"]))
    assert read() == digest.of_folder(local["one"])
    machine(there).save(local["two"])
    upload("three", break_off)
    assert read() == digest.of_folder(local["two"])


def test_a_store_that_fails_during_training_does_not_end_it(
    there: Site, tmp_path: Path, notes: Callable[[], list[str]]
) -> None:
    """The upload fails with a warning, and the local checkpoint stays; no folder is made in its place."""
    store = machine(there)
    store.save(checkpoint(tmp_path / "a", 10))
    there.vanish()
    local = checkpoint(tmp_path / "a", 20)
    store.save(local)
    assert notes()[-1].startswith("checkpoint 20 is not stored: training.checkpoint_store: ")
    assert notes()[-1].endswith(f"It stays in {local}, and the next one will be tried again")
    assert (local / "complete.json").exists()
    with pytest.raises(
        TrainingError, match=r"training\.checkpoint_store: .*; (make or mount|check)"
    ):
        machine(there)
    with pytest.raises(TrainingError, match=r"training\.checkpoint_store: "):
        check(there.uri)


def test_a_store_that_cannot_be_used_is_an_error_before_training(tmp_path: Path) -> None:
    """An absent folder, a file, an unknown kind, no bucket: what, where and how to fix it."""
    (tmp_path / "file").write_text("")
    (tmp_path / "share").mkdir()
    assert check(str(tmp_path / "share")) == f"checkpoint store: {tmp_path}/share answers"
    fix = "make or mount the folder on every worker, or leave training.checkpoint_store out"
    for name in ("absent", "file"):
        with pytest.raises(TrainingError, match=f"training.checkpoint_store: .*{name}.*{fix}"):
            check(str(tmp_path / name))
    with pytest.raises(
        TrainingError, match="gs://bucket is not a kind of store that precis knows; write s3"
    ):
        check("gs://bucket")
    with pytest.raises(TrainingError, match="s3:///prefix names no bucket"):
        check("s3:///prefix")
    (tmp_path / "share" / digest.of_value(JOB)).write_text("no folder")
    with pytest.raises(TrainingError, match=r"training\.checkpoint_store: .*share: .*exists"):
        CheckpointStore(backend_of(str(tmp_path / "share")), JOB)


@pytest.mark.full
def test_what_an_s3_store_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bucket, wrong or no credentials, no right to write, no server: notes before training."""
    (tmp_path / "served" / "bucket").mkdir(parents=True)
    fix = r"training\.checkpoint_store: s3://.*{}.*check bucket and prefix, the AWS credentials"
    with s3_server.running(tmp_path / "served", "--read-only") as endpoint:
        for name, value in s3_server.environment(endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        assert check("s3://bucket") == "checkpoint store: s3://bucket answers"
        with pytest.raises(TrainingError, match=fix.format("PutObject")):
            CheckpointStore(backend_of("s3://bucket"), JOB)
        with pytest.raises(TrainingError, match=fix.format("NoSuchBucket")):
            check("s3://absent/prefix")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong" * 5)
        with pytest.raises(TrainingError, match=fix.format("Signature")):
            check("s3://bucket")
        for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"):
            monkeypatch.delenv(name)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
            monkeypatch.setenv(name, str(tmp_path / "absent"))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        with pytest.raises(TrainingError, match=fix.format("Unable to locate credentials")):
            check("s3://bucket")
    for name, value in s3_server.environment(endpoint).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainingError, match=fix.format("Could not connect")):
        check("s3://bucket")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    with pytest.raises(TrainingError, match=fix.format("Invalid endpoint")):
        check("s3://bucket")
