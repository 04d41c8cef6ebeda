"""Ask a package: it is loaded by its own code, and answers in pieces."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.contracts.errors import EvaluationError, PrecisError
from tasks.models import package_code
from tasks.serving.summarizer import SETTINGS_FILE, Document


class ChatSession:
    """A loaded package; `chat`: it answers conversations, not only single documents; `inputs`: it takes
    several texts by these names.
    """

    def __init__(
        self, folder: Path, device: str | None = None, max_new_tokens: int | None = None
    ) -> None:
        """`device`: cpu or cuda, None: a GPU if there is one. `max_new_tokens`: None: the package's own.

        Raises PrecisError when the folder is no package, the device does not exist, or the longest
        answer leaves no room for a question.
        """
        if not (folder / SETTINGS_FILE).is_file():
            raise PrecisError(
                f"{folder} is no package: it has no {SETTINGS_FILE}; name the folder that precis "
                "wrote (artifacts/package of a version), or a registered model"
            )
        self.code, self.generator = _loaded(folder, device)
        settings = self.generator.settings  # of packages made before there were such settings, too
        self.inputs: tuple[str, ...] = getattr(settings, "inputs", ())
        self.chat = getattr(settings, "format", "template") == "chat" and not self.inputs
        if max_new_tokens:
            self._limit(max_new_tokens)

    def answer(self, document: Document) -> Generator[str, None, None]:
        """The answer in pieces; the generator may be closed early. Raises EvaluationError when it fails.

        A conversation (a list of messages) is for chat packages only.
        """
        # Packages made before streaming have no `stream`.
        stream = getattr(self.generator, "stream", None)
        with _as_evaluation_error("the answer could not be written"):
            if stream is None:
                yield self.generator.summarize([document])[0].text
                return
            with contextlib.closing(stream(document)) as pieces:
                yield from pieces

    def cut_tokens(self, document: Document) -> int:
        """How many tokens of a document, or of a conversation, do not fit the prompt and are left out.

        0 under map_reduce, which reads all of it in parts, and for a package whose code cannot tell.
        Raises EvaluationError for a document that makes no prompt.
        """
        fit = getattr(self.code, "fit", None)
        settings = self.generator.settings
        if fit is None or getattr(settings, "summarize", "direct") == "map_reduce":
            return 0
        with _as_evaluation_error("the prompt could not be written"):
            return int(fit(self.generator.tokenizer, document, settings)[1])

    def _limit(self, max_new_tokens: int) -> None:
        """Longer answers leave less of the context to the question."""
        settings = self.generator.settings
        context = getattr(self.generator.model.config, "max_position_embeddings", None)
        source = settings.max_source_tokens
        room = source if context is None else min(source, context - max_new_tokens)
        if room <= 0:
            raise PrecisError(
                f"--max-new-tokens {max_new_tokens} leaves no room for a question in the model's "
                f"context of {context} tokens; lower it"
            )
        self.generator.settings = replace(
            settings, max_new_tokens=max_new_tokens, max_source_tokens=room
        )


def _loaded(folder: Path, device: str | None) -> tuple[Any, Any]:
    """The package's code and its Generator."""
    import torch
    from transformers.utils import logging

    if device == "cuda" and not torch.cuda.is_available():
        raise PrecisError(
            "--device cuda: no GPU can be used on this machine; use cpu, or leave it out"
        )
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it warns of documents that are too long before they are cut
    with _as_evaluation_error(f"{folder} could not be loaded"):
        code = package_code.load_code(folder)
        return code, code.Generator(folder, device)


@contextlib.contextmanager
def _as_evaluation_error(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise EvaluationError(f"{what} ({type(error).__name__}: {error})") from error
