"""Hub bases: fetched over HTTP by the real client, or one reason why not, with its mend."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pytest
import tiny
from conftest import ROOT

from tasks import digest, package
from tasks.errors import BaseModelError
from tasks.recipe import Base

COMMIT = "5e1f" * 10
GRANTED, OTHER, BROKEN = "hf_granted", "hf_other", "hf_revoked"

# In a process of its own: whether the hub is asked, and which, is fixed when its client is imported.
SCRIPT = """
import json, os, sys
from pathlib import Path
from tasks import package
from tasks.errors import BaseModelError
from tasks.recipe import Base
for line in sys.stdin:
    case = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if case["token"]:
        os.environ["HF_TOKEN"] = case["token"]
    base = Base(model=case["model"], revision=case["revision"])
    looked = package.look_for(base, Path("scratch"))
    answer = {"path": str(looked.path or ""), "facts": looked.facts, "problems": looked.problems}
    if case["find"]:
        try:
            answer["found"] = package.find_base(base).path
        except BaseModelError as error:
            answer["error"] = str(error)
    print(json.dumps(answer), flush=True)
"""


class Machine:
    """A process of precis that sees one hub address; all of them share one cache."""

    def __init__(self, folder: Path, endpoint: str, offline: str = "0") -> None:
        ours = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING_FACE_"))}
        theirs = {"HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": offline, "HF_HOME": str(folder / "hf")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=folder,
            env=ours | theirs | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(
        self, model: str, token: str = "", revision: str | None = COMMIT, find: bool = True
    ) -> dict[str, Any]:
        """What the check says of a base, and what a run does with it."""
        assert self.process.stdin
        assert self.process.stdout
        case = {"model": model, "token": token, "revision": revision, "find": find}
        self.process.stdin.write(json.dumps(case) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(timeout=60) == 0


class StandInHub(http.server.BaseHTTPRequestHandler):
    """Stands in for huggingface.co, which tests cannot reach: its statuses, headers and JSON.

    acme/open is for all, acme/gated and acme/locked for GRANTED alone, acme/bare has no weights,
    acme/ill answers 503, acme/page a web page; there is nothing else.
    """

    files: Path
    asked: list[str]

    def do_GET(self) -> None:
        self.answer(body=True)

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def answer(self, *, body: bool) -> None:
        path = urlparse(self.path).path.strip("/")
        self.asked.append(f"{self.command} {path}")
        parts = path.removeprefix("api/models/").split("/")
        name, rest = "/".join(parts[:2]), parts[2:]
        if refused := self.refusal(name, rest):
            status, code, message = refused
            headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
            return self.reply(status, json.dumps({"error": message}).encode(), headers, body=body)
        if name == "acme/page":
            return self.reply(200, b"<html>log in to the hotel's network</html>", {}, body=body)
        if rest[0] == "auth-check":
            return self.reply(200, b"OK", {}, body=body)
        if rest[0] == "resolve":
            return self.file(self.files / rest[2], body=body)
        return self.reply(200, json.dumps(self.described(name, rest[0])).encode(), {}, body=body)

    def refusal(self, name: str, rest: list[str]) -> tuple[int, str, str] | None:
        """As the hub refuses; https://huggingface.co/docs/hub/models-gated has the words."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = name in ("acme/open", "acme/gated", "acme/locked", "acme/bare", "acme/page")
        # What a gated model is may be read by all; its files may not.
        closed = (
            name in ("acme/gated", "acme/locked") and token != GRANTED and rest[0] != "revision"
        )
        lost = rest[1:] and rest[1] not in (COMMIT, "main")
        asked = f"Access to model {name} is restricted"
        cases = [
            (token == BROKEN, 401, "", "Invalid credentials in Authorization header"),
            (name == "acme/ill", 503, "", "Service Unavailable"),
            (not known and token, 404, "RepoNotFound", "Repository not found"),
            (not known, 401, "RepoNotFound", "Invalid username or password."),
            (lost, 404, "RevisionNotFound", f"Invalid rev id: {rest[1:2]}"),
            (
                closed and token,
                403,
                "GatedRepo",
                f"{asked} and you are not in the authorized list.",
            ),
            (closed, 401, "GatedRepo", f"{asked}. Please log in."),
        ]
        return next(((status, code, said) for true, status, code, said in cases if true), None)

    def described(self, name: str, what: str) -> Any:
        files = [
            f
            for f in sorted(self.files.iterdir())
            if f.suffix != ".safetensors" or "bare" not in name
        ]
        if what == "tree":
            return [
                {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": sha(f)}
                for f in files
            ]
        sizes = "blobs" in parse_qs(urlparse(self.path).query)
        siblings = [
            {"rfilename": f.name} | ({"size": f.stat().st_size} if sizes else {}) for f in files
        ]
        return {"id": name, "sha": COMMIT, "siblings": siblings}

    def file(self, path: Path, *, body: bool) -> None:
        headers = {"ETag": f'"{sha(path)}"', "X-Repo-Commit": COMMIT}
        self.reply(200, path.read_bytes(), headers, body=body)

    def reply(self, status: int, content: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


def sha(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()


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


# What is asked for, and what must be said.
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
    "a path": ({"model": "./acme/open"}, ["no such folder (looked in ", "correct the path"]),
    "an ill hub": (
        # A download asks again for half a minute before it gives up.
        {"model": "acme/ill", "find": False},
        [
            "the hub refuses acme/ill with status 503: Service Unavailable; the hub is ill: try again later"
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
    """The check and the run name the same one reason, and what to do; nothing else is said."""
    answer = online.ask(**REFUSALS[name][0])
    assert answer["path"] == ""
    assert answer["facts"] == []
    assert len(answer["problems"]) == 1
    texts = [answer["problems"][0], answer.get("error", answer["problems"][0])]
    for said in texts:
        for words in REFUSALS[name][1]:
            assert words.format(hub=hub[0]) in said
    everything = "".join(texts)
    others = {"gated", "does not know the token", "no such model", "has no revision", "status 503"}
    mine = {words for words in others if any(words in w for w in REFUSALS[name][1])}
    assert not [words for words in others - mine if words in everything]
    assert not any(token in everything for token in (GRANTED, OTHER, BROKEN)), "no token is shown"


def test_a_model_is_fetched_once_and_then_used_without_the_hub(
    online: Machine, offline: Machine, hub: tuple[str, list[str]], files: Path
) -> None:
    """The check downloads nothing and says how much would be; a run does; then nobody is asked."""
    asked = hub[1]
    asked.clear()
    look = online.ask("acme/locked", GRANTED, find=False)
    assert look["problems"] == []
    wanted = [file for file in files.iterdir() if file.suffix != ".bin"]
    size = sum(file.stat().st_size for file in wanted) / 2**30
    assert look["facts"] == [
        f"base: acme/locked would be downloaded from the hub ({size:.2f} GiB); its memory, its context "
        "and lengths in tokens are known once it is here"
    ]
    assert not [line for line in asked if "resolve" in line], "a check downloads nothing"
    found = Path(online.ask("acme/locked", GRANTED)["found"])
    assert {path.name for path in found.iterdir()} == {file.name for file in wanted}
    assert digest.of_files(found, found.iterdir()) == digest.of_files(files, wanted)
    asked.clear()
    for machine in (online, offline):
        again = machine.ask("acme/locked")
        assert (again["path"], again["problems"], again["found"]) == (str(found), [], str(found))
    assert asked == []


def test_a_download_that_broke_off_is_not_taken_for_a_model(
    online: Machine, offline: Machine
) -> None:
    """A shard is missing: offline it is said, online it is fetched; other tools' caches too."""
    found = Path(online.ask("acme/open")["found"])
    shard = found / "model-00002-of-00002.safetensors"
    shard.unlink()
    for listing in (True, False):
        if not listing:
            shutil.rmtree(found.parents[1] / "trees")
        answer = offline.ask("acme/open")
        assert answer["problems"] == [answer["error"]]
        for words in (
            f"acme/open at revision {COMMIT} is not, or not wholly, in this machine's cache",
            "HF_HUB_OFFLINE keeps precis from asking",
            f"hf download acme/open --revision {COMMIT}",
        ):
            assert words in answer["error"]
    again = online.ask("acme/open")
    assert (again["found"], len(again["facts"])) == (str(found), 1)
    assert shard.is_file()


def test_a_hub_without_the_weights_is_said_before_anything_is_fetched(
    online: Machine, hub: tuple[str, list[str]]
) -> None:
    """A repository of other formats alone."""
    hub[1].clear()
    assert online.ask("acme/bare", find=False)["problems"] == [
        f"acme/bare on the hub has no .safetensors weights at revision {COMMIT}; pin another "
        "revision, or save it in that form and name the folder"
    ]
    assert not [line for line in hub[1] if "resolve" in line]


def test_no_network(folder: Path) -> None:
    """Nobody answers: the address, and two ways out; no traceback."""
    machine = Machine(folder, "http://127.0.0.1:9")
    answer = machine.ask("acme/nowhere")
    machine.end()
    for said in (answer["problems"][0], answer["error"]):
        assert "the hub (http://127.0.0.1:9) cannot be reached: ConnectError" in said
        assert "connect this machine, or copy the model here" in said


def test_offline_says_so(home: Path) -> None:
    """HF_HUB_OFFLINE is set: the setting is named, not the network."""
    base = Base(model="acme/open", revision=COMMIT)
    looked = package.look_for(base, home)
    with pytest.raises(BaseModelError) as caught:
        package.find_base(base)
    assert (looked.path, looked.facts, looked.problems) == (None, [], [str(caught.value)])
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
    ref = package.find_base(Base(model=str(snapshot)))
    assert (ref.path, ref.digest) == (str(snapshot), digest.of_folder(files))
    with pytest.raises(BaseModelError, match="point base") as caught:
        package.find_base(Base(model=str(tmp_path / "models--acme--open")))
    assert f"({snapshot})" in str(caught.value)


def test_a_folder_with_a_shard_or_a_config_gone_wrong(files: Path, tmp_path: Path) -> None:
    """Each is named before anything is loaded."""
    shutil.copytree(files, tmp_path / "broken")
    (tmp_path / "broken/model-00001-of-00002.safetensors").unlink()
    (tmp_path / "broken/config.json").write_text('{"model_type": ')
    problems = package.problems_of(tmp_path / "broken")
    assert len(problems) == 2
    assert "config.json is not valid JSON" in problems[0]
    assert "its index names: model-00001-of-00002.safetensors" in problems[1]
