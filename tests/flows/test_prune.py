"""`precis prune`: lists first, removes working files and refused challengers' adapters, never a version.

Over 250 lines: its tests share one store.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from register import made_store
from register.made_store import NAME, Store

from flows.cli.entry import main
from flows.lineage import lineage
from flows.prune import prune
from flows.who_learned import who_learned
from tasks.contracts.errors import NoSuchChampion, RegistryError
from tasks.processes import workspace
from tasks.processes.file_lock import hold_lock
from tasks.register.task import history_of
from tasks.tracking import artifacts, pruning


@pytest.fixture
def store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """v1, a refusal, v2, a rollback to v1: the oldest retrain is v1's, the newest v2's."""
    store = made_store.put(home, tmp_path_factory)
    artifacts._copies.clear()
    artifacts._roots.clear()
    for made in (
        store.first,
        store.refused,
        store.second,
    ):  # named by step keys, as steps name them
        for step in ("train", "merge"):
            folder = workspace.work_folder() / step / key_of(store, made.run_id, step)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "weights").write_bytes(b"w" * 1000)
    yield store
    mlflow.set_tracking_uri(None)


def key_of(store: Store, run_id: str, step: str) -> str:
    tags = store.client.get_run(run_id).data.tags
    return next(tag for tag in tags if tag.startswith(f"precis.step.{step}.")).rpartition(".")[2][
        :16
    ]


def files() -> set[Path]:
    return {path for path in Path("mlruns").rglob("*") if path.is_file() and path.suffix != ".db"}


def adapter_of(store: Store, run_id: str) -> Path:
    return Path("mlruns/artifacts") / NAME / run_id / "artifacts/adapter"


def test_it_lists_before_it_removes(store: Store) -> None:
    """Without --yes nothing changes, and the command that removes is printed."""
    before = files()
    text = prune(NAME, 1, yes=False).as_text()
    assert f"precis prune {NAME} --keep 1 --yes" in text
    assert store.refused.run_id in text
    assert files() == before


def test_what_is_removed_and_what_is_not(store: Store) -> None:
    """Old working files and the refused adapter; every version's adapter, rows and history stay."""
    history = history_of(store.client, NAME)
    listed = prune(NAME, 1, yes=False).items
    done = prune(NAME, 1, yes=True)
    assert (done.items, done.problems) == (listed, ())
    work = workspace.work_folder()
    for made, stays in ((store.first, False), (store.refused, False), (store.second, True)):
        for step in ("train", "merge"):
            assert (work / step / key_of(store, made.run_id, step)).exists() == stays
    assert not adapter_of(store, store.refused.run_id).exists()
    assert adapter_of(store, store.first.run_id).exists()
    assert adapter_of(store, store.second.run_id).exists()
    assert history_of(store.client, NAME) == history
    assert lineage(f"{NAME}/1").made.adapter
    assert [one.run_id for one in who_learned("row-3-4", None, None).learners] == [
        store.refused.run_id
    ]
    assert "the adapter" in store.client.get_run(store.refused.run_id).data.tags["precis.pruned"]
    assert prune(NAME, 1, yes=True).as_text() == f"{NAME}: nothing to remove"


def test_all_is_kept_of_the_newest(store: Store) -> None:
    """As many as there are: nothing to remove."""
    assert prune(NAME, 3, yes=False).items == ()
    assert {item.run_id for item in prune(NAME, 2, yes=False).items} == {store.first.run_id}


def test_an_adapter_that_a_kept_run_took_over_stays(store: Store) -> None:
    """A run that was recalled from an earlier one names that one's adapter."""
    client, refused = store.client, store.refused
    tag = f"precis.step.train.{'9' * 32}"
    adapter = next(
        value
        for name, value in client.get_run(refused.run_id).data.tags.items()
        if name.startswith("precis.step.train.")
    )
    client.set_tag(store.first.run_id, tag, adapter)
    assert "the adapter" not in {item.what for item in prune(NAME, 1, yes=False).items}


def test_what_is_in_use_stays(store: Store) -> None:
    """A folder whose step is computing is named; a run that is going on keeps its files."""
    folder = workspace.work_folder() / "train" / key_of(store, store.refused.run_id, "train")
    with hold_lock(folder / "lock", 0.0, AssertionError()):  # type: ignore[arg-type]
        done = prune(NAME, 1, yes=True)
    assert [problem.partition(" is in use")[2] != "" for problem in done.problems] == [True]
    assert (folder / "weights").exists()
    run = store.client.create_run(store.client.create_experiment("other")).info.run_id
    tags = store.client.get_run(store.refused.run_id).data.tags
    for name in [tag for tag in tags if tag.startswith("precis.step.")]:
        store.client.set_tag(run, name, tags[name])
    assert prune(NAME, 1, yes=False).items == ()


def test_a_tag_is_never_a_path(store: Store) -> None:
    """Tags that anyone wrote name no folder, and no artifact but the adapter."""
    run, work = store.refused.run_id, workspace.work_folder()
    for key in ("", ".", "..", "0" * 15, "x" * 32):
        store.client.set_tag(run, f"precis.step.merge.{key}", "x")
    adapter = {"uri": f"runs:/{run}/", "digest": "d", "base_digest": "b"}
    store.client.set_tag(run, f"precis.step.train.{'8' * 32}", json.dumps(adapter))
    folders = {item.folder for item in prune(NAME, 1, yes=False).items if item.folder}
    assert all(folder.parent.parent == work for folder in folders)
    assert {item.path for item in prune(NAME, 1, yes=False).items if not item.folder} == {"adapter"}


def test_a_challenger_that_passed_the_gate_stays(store: Store) -> None:
    """It may still be registered: its run was cut off, or someone is asked."""
    store.client.set_tag(store.refused.run_id, "precis.verdict", "PROMOTE")
    assert {item.run_id for item in prune(NAME, 1, yes=False).items} == {store.first.run_id}


@pytest.mark.parametrize(
    ("verdict", "status"),
    [
        ("WAITS_FOR_APPROVAL", "SCHEDULED"),  # deployed: nothing runs until someone answers
        ("WAITS_FOR_APPROVAL", "RUNNING"),  # a terminal asks
        ("WAITS_FOR_APPROVAL", "FAILED"),  # killed while it asked; Prefect may try it again
        ("PROMOTE", "SCHEDULED"),  # it was answered, and is started again
        ("REJECT", "SCHEDULED"),  # whatever it waits for
    ],
)
def test_a_run_that_waits_for_approval_stays(store: Store, verdict: str, status: str) -> None:
    """Its adapter, rows and files are what is registered once people approve."""
    store.client.set_tag(store.refused.run_id, "precis.verdict", verdict)
    store.client.update_run(store.refused.run_id, status=status)
    assert {item.run_id for item in prune(NAME, 1, yes=True).items} == {store.first.run_id}
    assert adapter_of(store, store.refused.run_id).exists()


def test_files_that_a_waiting_run_of_another_model_uses_stay(store: Store) -> None:
    """It took over the refused run's training, and goes on when it is answered."""
    run = store.client.create_run(store.client.create_experiment("other")).info.run_id
    tags = store.client.get_run(store.refused.run_id).data.tags
    for name in [tag for tag in tags if tag.startswith("precis.step.")]:
        store.client.set_tag(run, name, tags[name])
    store.client.update_run(run, status="SCHEDULED")
    removed = {item.folder for item in prune(NAME, 1, yes=False).items}
    for step in ("train", "merge"):
        key = key_of(store, store.refused.run_id, step)
        assert workspace.work_folder() / step / key not in removed


def test_a_question_that_nobody_answered_is_over(store: Store) -> None:
    """Withdrawn, as flows/stale_runs.py does for a cancelled run: its adapter goes."""
    run = store.refused.run_id
    record = json.loads(store.client.get_run(run).data.tags["precis.history"])
    store.client.set_tag(run, "precis.history", json.dumps(record | {"approval": "expired"}))
    store.client.set_tag(run, "precis.verdict", "WAITS_FOR_APPROVAL")
    assert run in {item.run_id for item in prune(NAME, 1, yes=False).items}


def test_folders_of_model_metrics_and_approval_are_removed(store: Store) -> None:
    """nli and bertscore hold outputs of deciding rows, under keys of the step evaluate; so may approval."""
    run, work, key = store.refused.run_id, workspace.work_folder(), "a" * 64
    store.client.set_tag(run, f"precis.step.evaluate.{key}", "{}")
    folders = [work / name / key[:16] for name in ("evaluate", "nli", "bertscore")]
    for folder in (*folders, work / "approval" / run):
        folder.mkdir(parents=True)
        (folder / "table.json").write_bytes(b"[]")
    prune(NAME, 1, yes=True)
    assert not [folder for folder in (*folders, work / "approval" / run) if folder.exists()]


@pytest.mark.parametrize(
    ("verdict", "goes"),
    [("REJECT", True), ("INCONCLUSIVE", True), ("NOT_APPROVED", True), ("", False), ("x", False)],
)
def test_an_adapter_goes_only_after_a_refusal(store: Store, verdict: str, goes: bool) -> None:
    """A run that failed after training promised to keep it; also one that an earlier, refused run trained."""
    store.client.set_tag(store.refused.run_id, "precis.verdict", verdict)
    store.client.set_terminated(store.refused.run_id, status="FAILED")
    what = {
        item.what for item in prune(NAME, 1, yes=False).items if item.run_id == store.refused.run_id
    }
    assert what == {"working files"} | ({"the adapter"} if goes else set())
    if verdict == "REJECT":
        run = store.client.create_run(
            store.client.get_experiment_by_name(NAME).experiment_id,
            tags={"precis.flow": "retrain"}, start_time=1,
        ).info.run_id  # fmt: skip
        tags = store.client.get_run(store.refused.run_id).data.tags
        (train,) = (tag for tag in tags if tag.startswith("precis.step.train."))
        store.client.set_tag(run, train, tags[train])
        store.client.set_terminated(run, status="FAILED")
        assert "the adapter" not in {item.what for item in prune(NAME, 1, yes=False).items}


def test_an_adapter_is_told_before_it_goes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the store fails, the run's tag is there: no adapter is gone without a trace."""

    def fail(run_id: str) -> None:
        assert "precis.pruned" in store.client.get_run(run_id).data.tags
        raise OSError("the store is away")

    items = [item for item in prune(NAME, 1, yes=False).items if item.what == "the adapter"]
    monkeypatch.setattr(artifacts, "repository_of", fail)
    ((_, problem),) = pruning.remove(store.client, items, "now")
    assert problem == "the store is away"


def test_an_edited_tag_removes_nothing(store: Store) -> None:
    """It may have named an adapter that is in use: run and tag are named, with the command."""
    tag = f"precis.step.train.{'7' * 32}"
    store.client.set_tag(store.second.run_id, tag, "x")
    with pytest.raises(RegistryError, match=rf"run {store.second.run_id}: its tag {tag} holds 'x'"):
        prune(NAME, 1, yes=True)
    assert adapter_of(store, store.refused.run_id).exists()


def test_unknown_names_and_folders_without_a_store(store: Store) -> None:
    """A sentence with the nearest name; no store is made."""
    with pytest.raises(NoSuchChampion, match="nearest"):
        prune("sum", 1, yes=True)
    mlflow.set_tracking_uri(None)
    shutil.rmtree("mlruns")
    with pytest.raises(NoSuchChampion):
        prune(NAME, 1, yes=True)


@pytest.mark.usefixtures("store")
def test_the_command_lists_unless_it_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`precis prune NAME --keep N` removes nothing, and prints the command that does."""
    before = files()
    assert main(["prune", NAME, "--keep", "1"]) == 0
    told = capsys.readouterr().out
    assert f"nothing was removed. To remove them: precis prune {NAME} --keep 1 --yes" in told
    assert files() == before
    assert main(["prune", NAME, "--keep", "0"]) == 2
    assert main(["prune", "sum", "--keep", "1"]) == 1
