"""A package's own prompts and output rules, apart from whatever writes the tokens between them.

vLLM's own reading of a package cannot cut documents, nor leave out reasoning (docs/serving.md). So prompts
are made here, by the package's code, and engines are given token ids.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts.errors import PrecisError
from tasks.models import package_code


class Refused(ValueError):
    """A request that the package does not take; `faults`: the place of each item, and why."""

    def __init__(self, faults: Sequence[tuple[int, str]]) -> None:
        super().__init__("; ".join(fault for _, fault in faults))
        self.faults = list(faults)


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt, and how many tokens of the document were cut to make it fit."""

    ids: list[int]
    cut_tokens: int
    is_empty: bool = False  # under map_reduce no part had a summary: there is nothing to write


@dataclass(frozen=True)
class Written:
    """An answer: its text, whether it ended by itself, and its tokens without the one that ends it."""

    text: str
    finished: bool
    output_tokens: int


class JudgedPackage:
    """What was judged beside the weights: prompt, truncation, what ends an answer and is left out of it."""

    def __init__(self, folder: Path, code: Any = None, tokenizer: Any = None) -> None:
        """`code`, `tokenizer`: of a package that is loaded already. Raises PrecisError for one of before."""
        from transformers import AutoTokenizer

        self.folder = folder
        self.code = code or package_code.load_code(folder)
        try:
            parts = [importlib.import_module(f"{self.code.__name__}.{n}") for n in _PARTS]
            self.prompt, self.output, self.map_reduce, self.special = parts
            self.documents_of = self.code.documents_of
            self.settings = self.code.SummarizerSettings.load(folder)
        except (ImportError, AttributeError) as error:
            raise PrecisError(
                f"{folder} carries code of before `precis serve` ({error}); serve it with MLflow, or train "
                "and promote a newer version"
            ) from error
        self.tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        end_text, turn_end = self.code.answer_end(self.tokenizer, self.settings)
        end_ids = (self.tokenizer.eos_token_id, turn_end)
        self.end_ids = [i for i in dict.fromkeys(end_ids) if i is not None]
        stop = (*self.settings.stop, *((end_text,) if end_text else ()))
        strip = self.settings.reasoning == "strip"
        self.rules = self.output.OutputRules(self.tokenizer, self.end_ids, stop, strip)

    @property
    def is_chat(self) -> bool:
        """Whether it takes conversations."""
        return bool(self.settings.format == "chat" and not self.settings.inputs)

    def documents(self, items: Sequence[Any]) -> list[Any]:
        """The documents that these items of a request are. Raises Refused with every item that is none."""
        return self._each(items, lambda item: self.documents_of([item], self.settings)[0])

    def conversation(self, messages: list[dict[str, str]]) -> list[Any]:
        """The one document that a chat request is. Raises Refused where the package does not take it."""
        if self.settings.inputs:
            names = ", ".join(self.settings.inputs)
            raise Refused(
                [(0, f"this model takes several texts ({names}): send them to /summarize")]
            )
        if self.is_chat:
            return self.documents([messages])
        if len(messages) != 1 or messages[0]["role"] != "user":
            reason = "this model reads one document: send it as the only message, from the user"
            raise Refused([(0, reason)])
        return self.documents([messages[0]["content"]])

    def prompts(
        self, documents: Sequence[Any], summarize: Callable[[list[str]], list[str]]
    ) -> list[Prompt]:
        """Their prompts, cut as judged. `summarize` writes summaries of parts, under map_reduce.

        Raises Refused for documents that spell a special token, or cannot be rendered.
        """
        return self._each(documents, lambda document: self._prompt(document, summarize))

    def raw_prompts(self, texts: Sequence[str]) -> list[Prompt]:
        """Texts as prompts, as they are. Raises Refused for one too long or with a special token."""
        return self._each(texts, self._raw_prompt)

    def written(self, ids: list[int], limit: int) -> Written:
        """The answer that these new token ids are."""
        summary = self.rules.summary(ids[:limit], 0, 0)
        return Written(summary.text, summary.finished, summary.output_tokens)

    def _prompt(self, document: Any, summarize: Callable[[list[str]], list[str]]) -> Prompt:
        parts = 1
        if self.settings.summarize == "map_reduce" and isinstance(document, str):
            [(document, parts)] = self.map_reduce.condense(
                [document], self.tokenizer, self.settings, summarize
            )
        ids, cut_tokens = self.prompt.encode_and_count(self.tokenizer, document, self.settings)
        return Prompt(ids, cut_tokens, parts > 1 and not document)

    def _raw_prompt(self, text: str) -> Prompt:
        if not text.strip():
            raise ValueError("is blank")
        self.special.require_plain(self.tokenizer, text)
        ids = self.special.prompt_ids(self.tokenizer, text)
        most = self.settings.max_source_tokens
        if len(ids) > most:
            raise ValueError(
                f"has {len(ids)} tokens, and this model was judged with prompts of up to {most}; shorten it, "
                "or send the document to /summarize, which cuts it as judged"
            )
        return Prompt(ids, 0)

    @staticmethod
    def _each(items: Sequence[Any], make: Callable[[Any], Any]) -> list[Any]:
        made, faults = [], []
        for index, item in enumerate(items):
            try:
                made.append(make(item))
            except ValueError as error:
                faults.append(
                    (index, str(error).removeprefix("1 of 1 rows cannot be used: row 1: "))
                )
        if faults:
            raise Refused(faults)
        return made


_PARTS = ("prompt", "output", "map_reduce", "special_tokens")
