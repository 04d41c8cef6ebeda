"""Hub bases: fetched over HTTP by the real client, or one reason why not, with its fix."""

from __future__ import annotations

import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from hub_server import BROKEN, COMMIT, GRANTED, OTHER, Machine, StandInHub, sha

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base
from tasks.models import base_checks, find_base


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.make_tiny_base(tmp_path_factory.mktemp("hub") / "files", shards=2)
    (folder / "LICENSE.txt").write_text("Do as you like.")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights once more")
    return folder


@pytest.fixture(scope="module")
def hub(files: Path) -> Iterator[tuple[str, list[str]]]:
    """The stand-in's address, and what it was asked."""
    kind = type("Hub", (StandInHub,), {"files": files, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind.asked
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machines")


@pytest.fixture(scope="module")
def online(hub: tuple[str, list[str]], folder: Path) -> Iterator[Machine]:
    machine = Machine(folder, hub[0])
    yield machine
    machine.end()


@pytest.fixture(scope="module")
def offline(folder: Path) -> Iterator[Machine]:
    machine = Machine(folder, "http://127.0.0.1:9", offline="1")
    yield machine
    machine.end()


# The request, and what the message must contain.
REFUSALS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "gated, no token": (
        {"model": "acme/gated"},
        [
            "acme/gated is gated, and no token is set: accept its licence at {hub}/acme/gated",
            "HF_TOKEN",
        ],
    ),
    "gated, licence not accepted": (
        {"model": "acme/gated", "token": OTHER},
        ["the account of HF_TOKEN may not read it: accept its licence at {hub}/acme/gated"],
    ),
    "a token that is not valid": (
        {"model": "acme/gated", "token": BROKEN},
        ["the hub does not know the token in HF_TOKEN", "{hub}/settings/tokens"],
    ),
    "no such model": (
        {"model": "acme/gone"},
        ["the hub has no such model, or it is private, and no HF_TOKEN is set; correct the name"],
    ),
    "no such model for this token": (
        {"model": "acme/gone", "token": GRANTED},
        ["the hub has no such model, or it is hidden from the account of HF_TOKEN"],
    ),
    "no such commit": (
        {"model": "acme/open", "revision": "0" * 40},
        [
            "acme/open is on the hub, but has no revision " + "0" * 40,
            "{hub}/acme/open/commits/main",
        ],
    ),
    "no such branch": (
        {"model": "acme/open", "revision": "better"},
        ["acme/open is on the hub, but has no revision better"],
    ),
    "no revision": (
        {"model": "acme/open", "revision": None},
        ["pin it with base.revision (a commit)"],
    ),
    "a name no hub has": (
        {"model": "acme/a b", "revision": "main"},
        ["no name of a hub model", "correct it"],
    ),
    "an address": (
        {"model": "https://huggingface.co/acme/open"},
        ["no such folder (looked in ", "owner/name without its address"],
    ),
    "a path": ({"model": "./acme/open"}, ["no such folder (looked in ", "correct the path"]),
    "an ill hub": (
        # A download asks again for half a minute before it gives up.
        {"model": "acme/ill", "find": False},
        [
            "the hub refuses acme/ill with status 503: Service Unavailable; the hub has a fault: try "
            "again later"
        ],
    ),
    "no hub": (
        {"model": "acme/page"},
        ["{hub} does not answer as a hub does; correct HF_ENDPOINT"],
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_reason_has_its_own_words(
    name: str, online: Machine, hub: tuple[str, list[str]]
) -> None:
    """The check and the run name the same one reason, and what to do, and nothing else."""
    answer = online.ask(**REFUSALS[name][0])
    assert answer["path"] == ""
    assert answer["facts"] == []
    assert len(answer["problems"]) == 1
    texts = [answer["problems"][0], answer.get("error", answer["problems"][0])]
    for message in texts:
        for phrase in REFUSALS[name][1]:
            assert phrase.format(hub=hub[0]) in message
    everything = "".join(texts)
    others = {"gated", "does not know the token", "no such model", "has no revision", "status 503"}
    mine = {phrase for phrase in others if any(phrase in w for w in REFUSALS[name][1])}
    assert not [phrase for phrase in others - mine if phrase in everything]
    assert not any(token in everything for token in (GRANTED, OTHER, BROKEN)), "no token is shown"


def test_a_model_is_fetched_once_and_then_used_without_the_hub(
    online: Machine, offline: Machine, hub: tuple[str, list[str]], files: Path
) -> None:
    """The check downloads nothing and says how much would be; a run does; then nobody is asked."""
    requests = hub[1]
    requests.clear()
    look = online.ask("acme/locked", GRANTED, find=False)
    assert look["problems"] == []
    expected = [file for file in files.iterdir() if file.suffix != ".bin"]
    size = sum(file.stat().st_size for file in expected) / 2**30
    assert look["facts"] == [
        f"base: acme/locked would be downloaded from the hub ({size:.2f} GiB); its memory, its context "
        "and lengths in tokens are known once it is here"
    ]
    assert not [line for line in requests if "resolve" in line], "a check downloads nothing"
    folder = Path(online.ask("acme/locked", GRANTED)["found"])
    assert {path.name for path in folder.iterdir()} == {file.name for file in expected}
    assert digest.of_files(folder, folder.iterdir()) == digest.of_files(files, expected)
    requests.clear()
    for machine in (online, offline):
        again = machine.ask("acme/locked")
        assert (again["path"], again["problems"], again["found"]) == (str(folder), [], str(folder))
    assert requests == []


def test_a_download_that_broke_off_is_not_taken_for_a_model(
    online: Machine, offline: Machine
) -> None:
    """A shard is missing: offline that is a problem, online it is fetched; other tools' caches too."""
    folder = Path(online.ask("acme/open")["found"])
    shard = folder / "model-00002-of-00002.safetensors"
    shard.unlink()
    for listing in (True, False):
        if not listing:
            shutil.rmtree(folder.parents[1] / "trees")
        answer = offline.ask("acme/open")
        assert answer["problems"] == [answer["error"]]
        for phrase in (
            f"acme/open at revision {COMMIT} is not, or not completely, in this machine's cache",
            "HF_HUB_OFFLINE keeps precis from asking",
            f"hf download acme/open --revision {COMMIT}",
        ):
            assert phrase in answer["error"]
    again = online.ask("acme/open")
    assert (again["found"], len(again["facts"])) == (str(folder), 1)
    assert shard.is_file()


def test_a_hub_without_the_weights_is_said_before_anything_is_fetched(
    online: Machine, hub: tuple[str, list[str]]
) -> None:
    """A repository of other formats alone."""
    hub[1].clear()
    [problem] = online.ask("acme/bare", find=False)["problems"]
    assert problem.startswith(
        f"acme/bare on the hub, at revision {COMMIT}, has model.safetensors.index.json, and none of the "
        "files that it names: its weights are in PyTorch's .bin format (pytorch_model.bin), which"
    )
    assert not [line for line in hub[1] if "resolve" in line]


def test_no_network(folder: Path) -> None:
    """Nobody answers: the address, and two ways out; no traceback."""
    machine = Machine(folder, "http://127.0.0.1:9")
    answer = machine.ask("acme/nowhere")
    machine.end()
    for message in (answer["problems"][0], answer["error"]):
        assert "the hub (http://127.0.0.1:9) cannot be reached: ConnectError" in message
        assert "connect this machine, or copy the model here" in message


def test_offline_says_so(home: Path) -> None:
    """HF_HUB_OFFLINE is set: the setting is named, not the network."""
    base = Base(model="acme/open", revision=COMMIT)
    lookup = find_base.look_up(base, home)
    with pytest.raises(BaseModelError) as caught:
        find_base.locate(base)
    assert (lookup.folder, lookup.facts, lookup.problems) == (None, [], [str(caught.value)])
    assert "HF_HUB_OFFLINE keeps precis from asking the hub: unset it, or copy" in str(caught.value)


def test_a_snapshot_folder_is_used_as_it_is(files: Path, tmp_path: Path) -> None:
    """A cache carried over: the snapshot works by its path; the folder above it says where to point."""
    snapshot = tmp_path / "models--acme--open/snapshots" / COMMIT
    blobs = tmp_path / "models--acme--open/blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in files.iterdir():
        shutil.copyfile(file, blobs / sha(file))
        (snapshot / file.name).symlink_to(Path("../../blobs") / sha(file))
    ref = find_base.locate(Base(model=str(snapshot)))
    assert ref.path == snapshot
    assert digest.of_folder(ref.path) == digest.of_folder(files)
    with pytest.raises(BaseModelError, match="point base") as caught:
        find_base.locate(Base(model=str(tmp_path / "models--acme--open")))
    assert f"({snapshot})" in str(caught.value)


def test_a_folder_with_a_shard_or_a_config_gone_wrong(files: Path, tmp_path: Path) -> None:
    """Each is named before anything is loaded."""
    shutil.copytree(files, tmp_path / "broken")
    (tmp_path / "broken/model-00001-of-00002.safetensors").unlink()
    (tmp_path / "broken/config.json").write_text('{"model_type": ')
    problems = base_checks.file_problems(tmp_path / "broken")
    assert len(problems) == 2
    assert "config.json is not valid JSON" in problems[0]
    assert "its index names: model-00001-of-00002.safetensors" in problems[1]
