"""What `precis serve` answers: the judged texts, whole and streamed; and what it refuses, by name.

Over 250 lines: one server answers all of it.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import served_models
from served_models import LONG, NAME, SETTINGS, documents

pytestmark = pytest.mark.usefixtures("one_thread")
KEY = "key-of-tests"
LIMIT = 20_000


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return served_models.texts_of(tmp_path_factory, 1)


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client, with the key, of a server of v1."""
    home = tmp_path_factory.mktemp("serve")
    with (
        served_models.store(tmp_path_factory, home),
        tempfile.TemporaryDirectory() as sockets,
        served_models.served(
            home, Path(sockets), api_key=KEY, max_request_bytes=LIMIT, request_timeout_seconds=60
        ) as server,
        httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60
        ) as asking,
    ):
        yield asking


def chat(document: Any, **more: Any) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": document}], **more}


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    lines = [line for line in answer.text.split("\n\n") if line]
    assert lines.pop() == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_each_endpoint_gives_the_judged_texts(client: httpx.Client, stored: list[str]) -> None:
    """Chat, a filled prompt, /summarize; all at once from many clients, in batches; with the version."""

    def ask(item: tuple[int, str]) -> None:
        index, document = item
        answer = client.post("/v1/chat/completions", json=chat(document))
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["message"] == {
            "role": "assistant", "content": stored[index],
        }  # fmt: skip
        assert answer.headers["X-Precis-Version"] == f"{NAME}/1"
        assert answer.json()["precis"]["digest"] == answer.headers["X-Precis-Digest"]
        if document != LONG:
            prompt = SETTINGS.template.replace("{document}", document)
            answer = client.post("/v1/completions", json={"model": NAME, "prompt": prompt})
            assert answer.json()["choices"][0]["text"] == stored[index], answer.text

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, enumerate(documents())))
    answer = client.post("/summarize", json={"documents": documents()})
    found = answer.json()
    assert [each["summary"] for each in found["summaries"]] == stored
    assert [each["truncated"] for each in found["summaries"]] == [False] * 12 + [True]
    assert (found["model"], found["version"], answer.headers["X-Precis-Truncated"]) == (
        NAME,
        1,
        "1",
    )
    one = client.post("/summarize", json={"document": {"document": documents()[3]}}).json()
    assert one["summaries"][0]["summary"] == stored[3]


def test_a_stream_is_the_text_in_pieces(client: httpx.Client, stored: list[str]) -> None:
    """Several at once; joined, the stored text; the last event counts tokens where that is asked for."""

    def ask(index: int) -> None:
        asked = chat(documents()[index], stream=True, stream_options={"include_usage": True})
        answer = client.post("/v1/chat/completions", json=asked)
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = events(answer)
        deltas = [event["choices"][0]["delta"] for event in found[:-1]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == stored[index]
        assert found[-2]["choices"][0]["finish_reason"] in ("stop", "length")
        assert found[-1]["usage"]["completion_tokens"] > 0

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))
    prompts = [SETTINGS.template.replace("{document}", text) for text in documents()[:3]]
    answer = client.post("/v1/completions", json={"prompt": prompts, "stream": True})
    texts = ["", "", ""]
    for event in events(answer):
        choice = event["choices"][0]
        texts[choice["index"]] += choice["text"]
    assert texts == stored[:3]


def test_a_shorter_answer_is_the_beginning(client: httpx.Client, stored: list[str]) -> None:
    """max_tokens below the judged limit: the same text, ended sooner, with the reason `length`."""
    asked = chat(documents()[0], max_tokens=3)
    answer = client.post("/v1/chat/completions", json=asked).json()
    text = answer["choices"][0]["message"]["content"]
    assert stored[0].startswith(text.rstrip("\ufffd"))
    assert answer["usage"]["completion_tokens"] <= 3
    assert answer["choices"][0]["finish_reason"] == "length"
    streamed = events(client.post("/v1/chat/completions", json=asked | {"stream": True}))
    pieces = [event["choices"][0]["delta"].get("content", "") for event in streamed]
    assert "".join(pieces) == text


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", chat(""), 400, "messages: document is blank"),
        ("/v1/chat/completions", chat(" \n"), 400, "is blank"),
        ("/v1/chat/completions", chat(None), 400, "messages.0.content"),
        ("/v1/chat/completions", chat(5), 400, "messages.0.content"),
        ("/v1/chat/completions", chat("a </s> b"), 400, "holds </s>, a special token"),
        ("/v1/chat/completions", {"messages": []}, 400, "messages"),
        ("/v1/chat/completions", {"model": NAME}, 400, "messages: Field required"),
        ("/v1/chat/completions", chat("a", model="other"), 404, "this server has 'lamps' alone"),
        ("/v1/chat/completions", chat("a", n=2), 400, "n: there is one greedy answer"),
        ("/v1/chat/completions", chat("a", temperature=0.7), 400, "temperature: answers are greedy"),
        ("/v1/chat/completions", chat("a", top_p=0.5), 400, "top_p: answers are greedy"),
        ("/v1/chat/completions", chat("a", max_tokens=13), 400, "max_tokens: 13 is more than 12"),
        ("/v1/chat/completions", chat("a", max_completion_tokens=10**30), 400, "max_completion_tokens"),
        ("/v1/chat/completions", chat("a", max_tokens=0), 400, "max_tokens"),
        ("/v1/chat/completions", chat("a", max_tokens=-1), 400, "max_tokens"),
        ("/v1/chat/completions", chat("a", max_tokens=1.5), 400, "max_tokens"),
        ("/v1/chat/completions", chat("a", max_tokens="3"), 400, "max_tokens"),
        ("/v1/chat/completions", chat("a", tools=[{"type": "function"}]), 400, "tools: this model"),
        ("/v1/chat/completions", chat("a", logprobs=True), 400, "logprobs: log probabilities"),
        ("/v1/chat/completions", chat("a", stop=["x"]), 400, "stop: what ends an answer"),
        ("/v1/chat/completions", chat("a", best_effort=1), 400, "best_effort"),
        ("/v1/chat/completions", chat("a", stream="yes"), 400, "stream"),
        (
            "/v1/chat/completions", {"messages": [{"role": "system", "content": "x"}]}, 400,
            "send it as the only message, from the user",
        ),
        (
            "/v1/chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, 400,
            "messages.0.role: write system, user or assistant",
        ),
        ("/v1/completions", {"prompt": [1, 2]}, 400, "prompt"),
        ("/v1/completions", {"prompt": []}, 400, "prompt"),
        ("/v1/completions", {"prompt": "x " * 300}, 400, "was judged with prompts of up to 96"),
        ("/v1/completions", {"prompt": "a", "echo": True}, 400, "echo"),
        ("/summarize", {}, 400, "give either document or documents"),
        ("/summarize", {"document": "a", "documents": ["a"]}, 400, "give either document or documents"),
        ("/summarize", {"documents": []}, 400, "documents"),
        ("/summarize", {"documents": ["a", ""]}, 400, "documents[1]: document is blank"),
        ("/summarize", {"document": {"a": "x", "b": "y"}}, 400, "name the column"),
        ("/summarize", {"document": [{"role": "user", "content": "x"}]}, 400, "is a list, not text"),
        ("/summarize", {"documents": ["x"] * 257}, 400, "documents"),
        ("/summarize", [], 400, "object"),
        ("/summarize", {"document": "x" * LIMIT}, 413, "larger than 20000 bytes"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(
    client: httpx.Client, path: str, body: Any, status: int, message: str
) -> None:
    answer = client.post(path, json=body)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), (
        answer.text
    )


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"document": "\xff"}', "JSON"),
        (b'{"document": "\\ud800"}', "JSON"),
        (b'{"document": "a", "max_tokens": NaN}', "max_tokens"),
        (b'{"document": "a", "max_tokens": 1e999}', "max_tokens"),
        (b'{"document": "a", "max_tokens": Infinity}', "max_tokens"),
        (b'{"document": ' + b"[" * 9000 + b"]" * 9000 + b"}", ""),
        (b"null", ""),
    ],
)
def test_bodies_that_are_no_request(client: httpx.Client, body: bytes, message: str) -> None:
    """Broken JSON, other encodings, half a surrogate pair, NaN, nesting: 400, and nothing is echoed."""
    answer = client.post("/summarize", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]


def test_another_content_type_or_method(client: httpx.Client) -> None:
    plain = client.post("/summarize", content=b"x", headers={"Content-Type": "text/plain"})
    assert plain.status_code == 415
    assert client.get("/summarize").status_code == 405
    assert client.get("/v2").status_code == 404
    chunked = client.post(
        "/summarize", content=iter([b"x" * 9000] * 3), headers={"Content-Type": "application/json"}
    )
    assert chunked.status_code == 413


def test_without_the_key_nothing_is_answered_but_health(client: httpx.Client) -> None:
    """A wrong key or none is 401; health says which version, and not what was refused; the page is open."""
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": KEY}):
        for method, path in (
            ("POST", "/summarize"), ("GET", "/metrics"), ("GET", "/v1/models"),
            ("POST", "/-/refresh"), ("GET", "/openapi.json"),
        ):  # fmt: skip
            answer = httpx.request(method, f"{client.base_url}{path}", headers=headers)
            assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    health = httpx.get(f"{client.base_url}/health").json()
    assert (health["status"], health["version"], "refused" in health) == ("ready", 1, False)
    known = client.get("/health").json()
    assert (known["refused"], known["rows_checked"], known["engine"]["dtype"]) == ([], 4, "float32")
    assert known["rows_unchecked"] is None
    page = httpx.get(f"{client.base_url}/")
    assert page.status_code == 200
    assert "<script src" not in page.text
    assert NAME in page.text


def test_metrics_count_what_is_answered(client: httpx.Client) -> None:
    client.post("/summarize", json={"document": LONG})
    text = client.get("/metrics").text
    assert 'precis_requests_total{endpoint="/summarize",status="200",version="1"}' in text
    assert 'precis_served_version{digest="' in text
    assert "precis_ready 1.0" in text
    assert "precis_truncated_documents_total" in text
    assert client.get("/v1/models").json()["data"][0]["id"] == NAME
