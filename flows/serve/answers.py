"""An engine's lines as OpenAI's answers, whole or as server-sent events, and as /summarize gives them."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import JSONResponse

from flows.serve.engines import Target
from flows.serve.requests import Kind

DONE = "data: [DONE]\n\n"
RETRY_AFTER = {"Retry-After": "2"}  # seconds


@dataclass
class Collected:
    """What an engine wrote for a request: texts, and what they cost, by item."""

    prompts: list[tuple[int, int]] = field(default_factory=list)  # tokens, and cut tokens
    ended: dict[int, dict[str, Any]] = field(default_factory=dict)

    def add(self, line: dict[str, Any]) -> None:
        """Take a line of the engine's."""
        if "prompts" in line:
            self.prompts = [(tokens, cut) for tokens, cut in line["prompts"]]
        elif "text" in line:
            self.ended[line["index"]] = line

    @property
    def prompt_tokens(self) -> int:
        """Tokens read."""
        return sum(tokens for tokens, _ in self.prompts)

    @property
    def output_tokens(self) -> int:
        """Tokens written."""
        return sum(line["output_tokens"] for line in self.ended.values())

    @property
    def truncated(self) -> int:
        """How many documents were cut."""
        return sum(cut > 0 for _, cut in self.prompts)

    def usage(self) -> dict[str, int]:
        """OpenAI's count of tokens."""
        read, written = self.prompt_tokens, self.output_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def model_of(target: Target) -> dict[str, Any]:
    """Which version answered."""
    return {"version": target.number, "digest": target.digest}


def whole(kind: Kind, name: str, target: Target, found: Collected) -> dict[str, Any]:
    """The answer in one piece."""
    lines = [found.ended[index] for index in range(len(found.ended))]
    if kind == "documents":
        return {"model": name, **model_of(target), "usage": found.usage(), "summaries": [
            {"summary": line["text"], "truncated": cut > 0, "cut_tokens": cut,
             "finished": line["finished"]}
            for line, (_, cut) in zip(lines, found.prompts, strict=True)
        ]}  # fmt: skip
    choices = []
    for line in lines:
        text = {"text": line["text"]}
        if kind == "chat":
            text = {"message": {"role": "assistant", "content": line["text"]}}
        choices.append(
            {"index": line["index"], **text, "logprobs": None, "finish_reason": _reason(line)}
        )
    return _head(kind, name) | {
        "object": "chat.completion" if kind == "chat" else "text_completion",
        "choices": choices,
        "usage": found.usage(),
        "precis": model_of(target) | {"truncated": found.truncated > 0},
    }


async def events(
    kind: Kind,
    name: str,
    target: Target,
    lines: AsyncIterator[dict[str, Any]],
    found: Collected,
    include_usage: bool,
) -> AsyncIterator[str]:
    """The answer as server-sent events; `found` collects what it cost."""
    head = _head(kind, name) | {
        "object": "chat.completion.chunk" if kind == "chat" else "text_completion"
    }
    if include_usage:
        head["usage"] = None

    def event(index: int, text: str | None, reason: str | None, **more: Any) -> str:
        choice: dict[str, Any] = {"index": index, "logprobs": None, "finish_reason": reason}
        if kind == "chat":
            choice["delta"] = {"role": "assistant"} if more else {}
            choice["delta"] |= {} if text is None else {"content": text}
        else:
            choice["text"] = text or ""
        return event_of(head | {"choices": [choice]})

    sent: dict[int, str] = {}
    async for line in lines:
        found.add(line)
        index = line.get("index", 0)
        if "prompts" in line and kind == "chat":
            yield event(0, "", None, role=True)
        elif "piece" in line:
            sent[index] = sent.get(index, "") + line["piece"]
            yield event(index, line["piece"], None)
        elif "text" in line:
            if rest := line["text"][len(sent.get(index, "")) :]:
                yield event(index, rest, None)
            yield event(index, None, _reason(line))
    if include_usage:
        yield event_of(head | {"choices": [], "usage": found.usage()})
    yield DONE


def error_of(message: str, field: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kind = "invalid_request_error" if code is None else code
    return {"error": {"message": message, "type": kind, "param": field, "code": code}}


def too_many() -> JSONResponse:
    """The answer to a request for which there is no room now."""
    message = "more requests are being answered than this server takes at once; ask again"
    return JSONResponse(error_of(message, code="unavailable"), 503, RETRY_AFTER)


def _head(kind: Kind, name: str) -> dict[str, Any]:
    prefix = "chatcmpl" if kind == "chat" else "cmpl"
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}


def _reason(line: dict[str, Any]) -> str:
    return "stop" if line["finished"] else "length"


def event_of(value: dict[str, Any]) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(value)}\n\n"
