"""Ask a model: one question, a document, or a chat at the terminal. Answers go to standard output.

The registered package answers, by its own code: prompt, truncation, stop rules and decoding are those
that it was judged with.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from tasks.contracts.errors import PrecisError, RegistryError
from tasks.models.chat_session import ChatSession
from tasks.register.task import package_of
from tasks.serving.summarizer import SETTINGS_FILE, Document, Message, clean, documents_of
from tasks.tracking import connection

HELP = """\
/new: a new conversation   /help: this   /exit or Ctrl-D: leave   Ctrl-C: end this answer
A text of several lines can be pasted; Return sends it."""
CUT = {"tail": "its end", "head": "its beginning", "middle": "its middle"}


@dataclass(frozen=True)
class Question:
    """The arguments of `precis ask`. `text`: None when no question was given."""

    model: str
    text: str | None = None
    document: str | None = None  # a file; -: standard input
    device: str | None = None
    max_new_tokens: int | None = None
    inputs: tuple[str, ...] = ()  # NAME=TEXT or NAME=@FILE, of a model that takes several texts


def ask(question: Question) -> int:
    """Answer one question, or chat until the user leaves; returns the exit status.

    Raises PrecisError when there is nothing to ask or no such model.
    """
    text = _text(question)
    folder, title = find(question.model)
    session = ChatSession(folder, question.device, question.max_new_tokens)
    if session.inputs or question.inputs:
        _print_answer(session, _texts(question, text, session))
    elif text is None:
        _chat(session, title)
    else:
        _print_answer(session, text)
    return 0


def _texts(question: Question, text: str | None, session: ChatSession) -> dict[str, str]:
    """The texts of a model that takes several, by name; the question is the one that is left over.

    Raises PrecisError for names that the model does not have, and for texts that are missing or blank.
    """
    names = session.inputs
    if not names:
        raise PrecisError(
            "--input: this model takes one document; give it as QUESTION or --document"
        )
    given: dict[str, str] = {}
    for item in question.inputs:
        name, equals, value = item.partition("=")
        if not equals or name not in names or name in given:
            raise PrecisError(
                f"--input {item}: write NAME=TEXT or NAME=@FILE, once each of {', '.join(names)}"
            )
        given[name] = _read(value[1:], "--input") if value.startswith("@") else value
    settings = session.generator.settings
    left = [name for name in names if name not in given]
    if text is not None:
        required = [name for name in left if name not in settings.optional] or left
        if len(required) != 1:
            raise PrecisError(
                f"QUESTION could be any of {', '.join(left) or 'none'}: name each text, as in "
                f"--input {names[0]}='...' --input {names[-1]}=@FILE"
            )
        given[required[0]] = text
    try:
        [document] = documents_of([given], settings)
    except ValueError as error:
        raise PrecisError(
            f"the model takes {', '.join(names)}: {error}; give each as --input NAME=TEXT or NAME=@FILE"
        ) from error
    assert isinstance(document, dict)
    return document


def find(model: str) -> tuple[Path, str]:
    """The package of a name, a `models:/` URI or a folder, and a title for it.

    Raises RegistryError when there is none.
    """
    folder = Path(model).expanduser()
    # A bare word is a registered name, even if there is a folder of that name.
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
    text = question.text
    if text is None and question.document is None and question.inputs:
        return None
    if question.document is not None:
        document = _read(question.document)
        # The question first: a document that is too long is truncated at its end by default.
        text = document if text is None else f"{_not_empty(text, 'the question')}\n\n{document}"
    elif text is None:
        if sys.stdin.isatty():
            return None
        text = _read("-")
    return _not_empty(text, "the question")


def _read(file: str, option: str = "--document") -> str:
    source = "standard input" if file == "-" else file
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return clean(_not_empty(content.decode(), source))
    except OSError as error:
        raise PrecisError(f"{option} {file}: cannot be read ({error}); correct the path") from error
    except UnicodeDecodeError as error:
        raise PrecisError(f"{source} is not UTF-8 ({error}); save it as UTF-8") from error


def _not_empty(text: str, what: str) -> str:
    if not text.strip():
        raise PrecisError(
            f"{what} is empty; ask as in: precis ask NAME 'your question', or name a --document"
        )
    return text


def _chat(session: ChatSession, title: str) -> None:
    """Answer questions from the terminal until the user leaves; a chat model gets the turns before."""
    with contextlib.suppress(ImportError):  # line editing and history, where the platform has it
        import readline

        # A pasted text arrives whole, line ends and all; on by itself only from readline 8.1.
        if os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
    kind = "chat" if session.chat else "each text by itself: this model's prompt takes one document"
    print(f"{title} on {session.generator.device} ({kind})\n{HELP}", file=sys.stderr)
    history: list[Message] = []
    while (line := _line()) is not None:
        if line.startswith("/") and len(line.split()) == 1 and "/" not in line[1:]:
            history = [] if line == "/new" else history
            print(_answer_to_command(line), file=sys.stderr)
            continue
        turns: list[Message] = [*history, {"role": "user", "content": line}]
        answer = _interruptible(session, turns if session.chat else line)
        if answer:  # a question without an answer is dropped: turns must alternate
            history = [*turns, {"role": "assistant", "content": answer}]


def _answer_to_command(line: str) -> str:
    if line == "/new":
        return "a new conversation"
    return HELP if line == "/help" else f"there is no command {line}\n{HELP}"


def _line() -> str | None:
    """The next text that is not blank, of several lines where it was pasted; None when the user leaves."""
    while True:
        try:
            line = clean(input("> ")).strip()
        except KeyboardInterrupt:  # as in a shell: drops this line
            print()
            continue
        except EOFError:
            print()
            return None
        if line == "/exit":
            return None
        if line:
            return line


def _interruptible(session: ChatSession, document: Document) -> str:
    """Print an answer that Ctrl-C may end; returns what was printed of it."""
    printed: list[str] = []
    try:
        _print_answer(session, document, printed)
    except KeyboardInterrupt:
        print(" ...")
    return "".join(printed).strip()


def _print_answer(
    session: ChatSession, document: Document, printed: list[str] | None = None
) -> None:
    """Print an answer as it is generated; its pieces are added to `printed`. What was cut is told first."""
    if cut := session.cut_tokens(document):
        settings = session.generator.settings
        what = CUT[settings.truncate]
        if isinstance(document, list) and len(document) > 1:
            what = f"the oldest turns, and of a question that is too long by itself {what}"
        print(
            f"{cut} tokens are not read, the prompt holds {settings.max_source_tokens}: {what} is cut",
            file=sys.stderr,
        )
    with contextlib.closing(session.answer(document)) as pieces:
        for piece in pieces:
            print(piece, end="", flush=True)
            if printed is not None:
                printed.append(piece)
    print()
