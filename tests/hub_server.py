"""A stand-in for the Hugging Face hub, and processes of precis that ask it over HTTP."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

ROOT = Path(__file__).parents[1]
COMMIT = "5e1f" * 10
GRANTED, OTHER, BROKEN = "hf_granted", "hf_other", "hf_revoked"

# In a process of its own: whether the hub is asked, and which, is fixed when its client is imported.
SCRIPT = """
import json, os, sys
from pathlib import Path
from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base
from tasks.models import find_base
for line in sys.stdin:
    case = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    if case["token"]:
        os.environ["HF_TOKEN"] = case["token"]
    base = Base(model=case["model"], revision=case["revision"])
    looked = find_base.look_up(base, Path("scratch"))
    path = looked.folder.path if looked.folder else ""
    answer = {"path": str(path), "facts": looked.facts, "problems": looked.problems}
    if case["find"]:
        try:
            answer["found"] = str(find_base.locate(base).path)
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
        return next(
            ((status, code, message) for true, status, code, message in cases if true), None
        )

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
