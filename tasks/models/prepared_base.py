"""A base on this machine as the steps see it: read once by find_base, passed to every step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tasks.models.json_files import read_object
from tasks.models.rope import Config
from tasks.models.safetensors_headers import Shapes, StoredTensor, stored_tensors
from tasks.serving.summarizer import SummarizerSettings


def read_config(folder: Path) -> Config:
    """A model folder's config.json. Raises BaseModelError when it cannot be read."""
    return read_object(folder / "config.json")


@dataclass(frozen=True)
class BaseFolder:
    """A base model's folder, with what its config.json and the headers of its weights say."""

    path: Path
    config: Config

    @classmethod
    def read(cls, path: Path) -> BaseFolder:
        """The folder with its config.json; the headers are read when they are needed."""
        return cls(path, read_config(path))

    @cached_property
    def stored(self) -> list[StoredTensor]:
        """Every tensor with its type. Raises BaseModelError for a file that cannot be read."""
        return stored_tensors(self.path)

    @cached_property
    def tensors(self) -> Shapes:
        """Name and shape of every tensor. Raises as `stored`."""
        return {tensor.name: tensor.shape for tensor in self.stored}


@dataclass(frozen=True)
class PreparedBase(BaseFolder):
    """The base of a recipe, its RoPE scaled as the recipe says, and what both together decide.

    Made by tasks.models.find_base. It travels to other processes as JSON.
    """

    digest: str  # of the files' contents; empty for precis check, which reads no weights
    model: str  # as the recipe names it
    revision: str | None
    settings: SummarizerSettings  # of the packages that are made from it
    max_row_tokens: int  # of prompt and completion together
    context_limits: dict[str, Any]  # base.context_tokens and base.rope, where the recipe sets them

    def as_json(self) -> dict[str, Any]:
        """JSON-able, for a child process; `from_json` gives an equal one back."""
        values: dict[str, Any] = TypeAdapter(PreparedBase).dump_python(self, mode="json")
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> PreparedBase:
        """The prepared base that `as_json` was called on."""
        return TypeAdapter(PreparedBase).validate_python(values)
