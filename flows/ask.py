"""Asking a model: one question, a document, or a chat at the terminal. Answers go to standard output.

What is asked is the registered package, by its own code: prompt, truncation, stop rules and decoding
are those it was judged with.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.errors import PrecisError, RegistryError
from tasks.models.chat import Asked
from tasks.register.task import package_of
from tasks.serving.summarizer import SETTINGS_FILE, Document, Message
from tasks.tracking import connection

HELP = "/new: a new conversation   Ctrl-C: end this answer   /exit or Ctrl-D: leave"


@dataclass(frozen=True)
class Question:
    """What `precis ask` was told. `text`: None when no question was given."""

    model: str
    text: str | None = None
    document: str | None = None  # a file; -: standard input
    device: str | None = None
    max_new_tokens: int | None = None


def ask(question: Question) -> int:
    """Answer one question, or chat until the user leaves; returns the exit status.

    Raises PrecisError when there is nothing to ask or no such model.
    """
    text = _text(question)
    folder, shown = find(question.model)
    asked = Asked(folder, question.device, question.max_new_tokens)
    if text is None:
        _chat(asked, shown)
    else:
        _say(asked, text)
    return 0


def find(model: str) -> tuple[Path, str]:
    """The package that a name, a `models:/` URI or a folder means, and how to call it.

    Raises RegistryError when there is none.
    """
    folder = Path(model).expanduser()
    # A bare word is a registered name, whatever folder stands here.
    if model.startswith((".", "/", "~")) or ("/" in model and (folder / SETTINGS_FILE).is_file()):
        return folder, model
    if connection.nothing_yet():
        raise RegistryError(
            f"no model {model!r}: nothing was ever registered in {connection.shown_uri()}; go to the "
            "folder where the runs were made, or set MLFLOW_TRACKING_URI"
        )
    return package_of(connection.connect(), model)


def _text(question: Question) -> str | None:
    """The one text to answer; None: a chat at the terminal."""
    given = question.text
    if question.document is not None:
        document = _read(question.document)
        # The question first: a document too long is cut at its end, unless the recipe says otherwise.
        given = document if given is None else f"{_filled(given, 'the question')}\n\n{document}"
    elif given is None:
        if sys.stdin.isatty():
            return None
        given = _read("-")
    return _filled(given, "the question")


def _read(file: str) -> str:
    where = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return _filled(content.decode(), where).replace("\r\n", "\n")
    except OSError as error:
        raise PrecisError(
            f"--document {file}: cannot be read ({error}); correct the path"
        ) from error
    except UnicodeDecodeError as error:
        raise PrecisError(f"{where} is not UTF-8 ({error}); save it as UTF-8") from error


def _filled(text: str, what: str) -> str:
    if not text.strip():
        raise PrecisError(
            f"{what} is empty; ask as in: precis ask NAME 'your question', or name a --document"
        )
    return text


def _chat(asked: Asked, shown: str) -> None:
    """Questions from the terminal until its end; a chat model knows what was said before."""
    with contextlib.suppress(ImportError):  # only some platforms have it: editing, and lines before
        import readline  # noqa: F401
    kind = "chat" if asked.chat else "every text by itself: this model's prompt takes one document"
    print(f"{shown} on {asked.generator.device} ({kind})\n{HELP}", file=sys.stderr)
    history: list[Message] = []
    while (line := _line()) is not None:
        if line == "/new":
            history = []
            print("a new conversation", file=sys.stderr)
            continue
        said: list[Message] = [*history, {"role": "user", "content": line}]
        answer = _interruptible(asked, said if asked.chat else line)
        if answer:  # a question that got no answer is forgotten: turns must alternate
            history = [*said, {"role": "assistant", "content": answer}]


def _line() -> str | None:
    """The next line that says something; None: the user leaves."""
    while True:
        try:
            line = input("> ").strip()
        except KeyboardInterrupt:  # as in a shell: gives up this line
            print()
            continue
        except EOFError:
            print()
            return None
        if line == "/exit":
            return None
        if line:
            return line


def _interruptible(asked: Asked, document: Document) -> str:
    """The answer as far as it was written."""
    said: list[str] = []
    try:
        _say(asked, document, said)
    except KeyboardInterrupt:
        print(" ...")
    return "".join(said).strip()


def _say(asked: Asked, document: Document, said: list[str] | None = None) -> None:
    """Print an answer as it comes; its pieces are added to `said`."""
    with contextlib.closing(asked.answer(document)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            if said is not None:
                said.append(piece)
    print()
