"""The requests that are taken: OpenAI's, as far as they can be honoured, and /summarize.

What would change the answer and cannot be honoured is refused by its name, never ignored: the texts are
those that were judged.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Kind = Literal["chat", "prompts", "documents"]
MOST_ITEMS = 256  # documents or prompts in a request
Zero = Annotated[float, Field(ge=0, le=0, allow_inf_nan=False)]
One = Annotated[float, Field(ge=1, le=1, allow_inf_nan=False)]
OnlyOne = Annotated[int, Field(ge=1, le=1)]
Count = Annotated[int, Field(ge=1)]
# What to do about a field that is refused, by its name; others are unknown or of the wrong type.
HELP = {
    "temperature": "answers are greedy, as judged: leave it out, or send 0",
    "top_p": "answers are greedy, as judged: leave it out, or send 1",
    "n": "there is one greedy answer: leave it out, or send 1",
    "best_of": "there is one greedy answer: leave it out, or send 1",
    "tools": "this model does not read tools; leave it out",
    "tool_choice": "this model does not read tools; leave it out",
    "functions": "this model does not read tools; leave it out",
    "logprobs": "log probabilities are not given; leave it out",
    "top_logprobs": "log probabilities are not given; leave it out",
    "stop": "what ends an answer is as judged; leave it out",
    "response_format": "answers are plain text; leave it out",
    "role": "write system, user or assistant",
}


class Strict(BaseModel):
    """No unknown fields, and no number for a text."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(Strict):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One message; clients send an answer back with fields of theirs that are null."""

    role: Literal["system", "user", "assistant"]
    content: str | list[TextPart]
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None
    tool_calls: None = None
    name: None = None

    def as_dict(self) -> dict[str, str]:
        """Role and text, as packages read messages; parts are joined as their chat template does."""
        parts = self.content
        text = parts if isinstance(parts, str) else "\n".join(part.text for part in parts)
        return {"role": self.role, "content": text}


class StreamOptions(Strict):
    """Whether the last event counts tokens."""

    include_usage: bool = False


class Asked(Strict):
    """What both of OpenAI's endpoints take."""

    model: str | None = None
    max_tokens: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Zero | None = None
    top_p: One | None = None
    n: OnlyOne | None = None
    frequency_penalty: Zero | None = None
    presence_penalty: Zero | None = None
    seed: int | None = None  # changes nothing: there is one answer
    user: str | None = None
    stop: None = None
    logit_bias: None = None


class ChatRequest(Asked):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_ITEMS)]
    max_completion_tokens: Count | None = None
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    tools: None = None
    tool_choice: None = None
    functions: None = None
    response_format: None = None

    def limit(self) -> tuple[str, int | None]:
        """The longest answer in tokens, and the field that says so."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens", self.max_completion_tokens
        return "max_tokens", self.max_tokens

    def question(self) -> tuple[Kind, list[Any]]:
        """What the engine is asked: kind and items."""
        return "chat", [message.as_dict() for message in self.messages]


class CompletionRequest(Asked):
    """POST /v1/completions: prompts as they are."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=MOST_ITEMS)]
    best_of: OnlyOne | None = None
    echo: Literal[False] | None = None
    logprobs: None = None
    suffix: None = None

    def limit(self) -> tuple[str, int | None]:
        """The longest answer in tokens, and the field that says so."""
        return "max_tokens", self.max_tokens

    def question(self) -> tuple[Kind, list[Any]]:
        """What the engine is asked: kind and items."""
        return "prompts", [self.prompt] if isinstance(self.prompt, str) else self.prompt


Named = dict[str, str | None]
Document = str | Named | list[Message]


class SummarizeRequest(Strict):
    """POST /summarize: one document or several, each cut as judged where it is too long."""

    document: Document | None = None
    documents: Annotated[list[Document], Field(min_length=1, max_length=MOST_ITEMS)] | None = None
    max_tokens: Count | None = None
    stream: Literal[False] | None = None
    model: str | None = None

    def limit(self) -> tuple[str, int | None]:
        """The longest summary in tokens, and the field that says so."""
        return "max_tokens", self.max_tokens

    def question(self) -> tuple[Kind, list[Any]]:
        """What the engine is asked: kind and items."""
        items = self.documents if self.documents is not None else [self.document]
        plain = [
            [message.as_dict() for message in item] if isinstance(item, list) else item
            for item in items
        ]
        return "documents", plain


T = TypeVar("T", bound=Strict)


class BadRequest(Exception):
    """A request that is refused: status, message, and the field that it is about."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field = status, field


def read(kind: type[T], body: bytes) -> T:
    """The request that a body is. Raises BadRequest with every field that is refused; echoes no text."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        faults: dict[str, str] = {}
        for each in error.errors(include_input=False, include_url=False, include_context=False):
            place = [str(part) for part in each["loc"]]
            path = ".".join(part for part in place if part.isidentifier() or part.isdigit())
            name = next((part for part in reversed(place) if part in HELP), None)
            faults.setdefault(path, HELP[name] if name and name in path else each["msg"])
        listed = "; ".join(f"{path}: {why}" if path else why for path, why in faults.items())
        field = next(iter(faults), "").partition(".")[0]
        raise BadRequest(400, listed[:2000], field or None) from None
