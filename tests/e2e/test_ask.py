"""`precis ask`: a question, a document, standard input, or a chat at a real terminal.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny
from stack import PRECIS, ROOT

from flows.cli.entry import main
from tasks.models import chat_templates, package
from tasks.register import claims, log_model
from tasks.serving.summarizer import Generator, SummarizerSettings
from tasks.tracking import connection

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]
DEMO = ROOT / "deployments/demo/base"  # untrained in this, but it writes words
DIALOGUE = "Ann: Shall we meet at noon?\nBob: I have a class then. At two?\nAnn: Two it is."
SUMMARIZER = SummarizerSettings("Summarize:\n{document}\nSummary: ", 900, "tail", 20, 4)
CHAT = SummarizerSettings(
    "{document}", 900, "tail", 20, 4, format="chat", chat_template=chat_templates.LLAMA_2
)


def packaged(settings: SummarizerSettings, folder: Path) -> Any:
    return package.package_base(tiny.prepared(DEMO), settings, folder)


def register(client: Any, model: Any, name: str, folder: Path) -> None:
    """As the pipeline registers a winner, without the training."""
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    run = client.create_run(experiment).info.run_id
    uri = log_model.log_model(
        client, model, experiment_id=experiment, run_id=run, name=name, scratch=folder / "scratch"
    )
    tags = {claims.DIGEST: model.digest, claims.RUN_ID: run}
    expected = claims.find_champion(client, name)
    claims.succeed(client, name, expected, source=uri, tags=tags, description="a model")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a store: `talk` v1 and v2 (champion; chat), `sums` v1, and the packages."""
    folder = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        client = connection.connect()
        first = packaged(
            SummarizerSettings(**{**vars(CHAT), "max_new_tokens": 7}), folder / "made/first"
        )
        register(client, first, "talk", folder)
        register(client, packaged(CHAT, folder / "made/chat"), "talk", folder)
        register(client, packaged(SUMMARIZER, folder / "made/sums"), "sums", folder)
        client.set_registered_model_alias("talk", "old", "1")
        yield folder


@pytest.fixture
def here(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return place


@pytest.fixture(scope="module")
def chatting(place: Path) -> Generator:
    return Generator(place / "made/chat", "cpu")


@pytest.fixture(scope="module")
def summing(place: Path) -> Generator:
    return Generator(place / "made/sums", "cpu")


def precis(folder: Path, *words: str, given: bytes = b"", **env: str) -> Any:
    own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
    return subprocess.run(
        [PRECIS, "ask", *words],
        cwd=folder,
        env=own | env,
        input=given,
        capture_output=True,
        check=False,
    )


def printed(done: Any) -> str:
    assert done.returncode == 0, done.stderr.decode()
    return str(done.stdout.decode())


def test_a_question_to_the_champion(place: Path, chatting: Generator) -> None:
    """Standard output holds the answer and nothing else, as it is judged."""
    expected = chatting.summarize(["Where is Ben?"])[0].text
    assert len(expected) > 20
    assert printed(precis(place, "talk@champion", "Where", "is", "Ben?")) == f"{expected}\n"


def test_standard_input_is_the_document(place: Path, summing: Generator) -> None:
    """Piped text, CRLF and all, to a summarizer."""
    expected = summing.summarize([DIALOGUE])[0].text
    dialogue = DIALOGUE.replace("\n", "\r\n").encode()
    assert printed(precis(place, "sums", given=dialogue)) == f"{expected}\n"


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """The same command in this process: only what it prints, and the exit status."""
    status = main(["ask", *words, "--device", "cpu"])
    out, err = capsys.readouterr()
    return status, out, err


def test_all_names_of_a_model(
    here: Path, chatting: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """NAME, NAME@ALIAS, NAME/VERSION, MLflow's URIs, a folder: each is asked by its own settings."""
    long = chatting.summarize(["Where is Ben?"])[0].text
    short = Generator(here / "made/first", "cpu").summarize(["Where is Ben?"])[0].text
    assert long.startswith(short[:8])
    assert long != short
    source = connection.connect().get_model_version("talk", "1").source
    names = {
        long: [
            "talk",
            "talk@champion",
            "talk/2",
            "models:/talk@champion",
            "models:/talk/2",
            "made/chat",
        ],
        short: [
            "talk@old",
            "talk/1",
            "models:/talk/1",
            source,
            "./made/first",
            str(here / "made/first"),
        ],
    }
    for expected, references in names.items():
        for reference in references:
            assert ask(capsys, reference, "Where is Ben?")[:2] == (0, f"{expected}\n"), reference


def test_a_document_and_a_question_about_it(
    here: Path, chatting: Generator, summing: Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone it is what is summarized; with a question, what the question is about."""
    (here / "talk.txt").write_bytes(DIALOGUE.replace("\n", "\r\n").encode())
    alone = summing.summarize([DIALOGUE])[0].text
    assert ask(capsys, "sums", "--document", "talk.txt")[1] == f"{alone}\n"
    both = chatting.summarize([f"When do they meet?\n\n{DIALOGUE}"])[0].text
    asked = ask(capsys, "talk", "When do they meet?", "--document", "talk.txt")
    assert asked[1] == f"{both}\n"


def test_the_longest_answer_can_be_set(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ask(capsys, "talk", "Where is Ben?", "--max-new-tokens", "3")
    assert (status, out.strip() != "") == (0, True)
    assert len(out) < 30


NOTHING = [
    (["nobody", "Why?"], r"no model 'nobody' is registered \(there are: sums, talk\)"),
    (["tulk", "Why?"], "nearest: 'talk'"),
    (["talk@best", "Why?"], r"no alias 'best' \(it has: .*champion \(v2\).*a version: talk/1"),
    (["talk/9", "Why?"], "no version 9; it has: 1, 2"),
    (["talk/last", "Why?"], "a version is a number.*talk@champion"),
    (["models:/m-0123456789abcdef", "Why?"], "no such model"),
    (["./none", "Why?"], r"is no package: it has no summarizer\.json"),
    (["talk", " "], "the question is empty; ask as in: precis ask NAME"),
    (["talk", "--document", "none.txt"], "--document none.txt: cannot be read.*correct the path"),
    (["talk", "--max-new-tokens", "1024", "Why?"], "leaves no room"),
]


@pytest.mark.parametrize(("words", "says"), NOTHING, ids=lambda value: str(value)[:40])
def test_what_cannot_be_asked_says_why(
    words: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What, where and how to fix it; exit status 1, nothing on standard output."""
    status, out, err = ask(capsys, *words)
    assert (status, out) == (1, "")
    assert re.search(says, err.replace("\n", " ")), err


def test_a_store_without_models(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another folder, and a server that is not there: the store is named."""
    assert re.search(
        "nothing was ever registered in sqlite.*set MLFLOW", ask(capsys, "talk", "a")[2]
    )
    assert not (home / "mlruns").exists()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        status, _, err = ask(capsys, "talk", "Why?")
    mlflow.set_tracking_uri(None)
    assert (status, "MLflow at http://127.0.0.1:9 does not answer" in err) == (1, True)


def test_a_version_that_precis_did_not_make(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client = connection.connect()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", client.get_model_version("talk", "1").source)
    assert "foreign v1 was not made by precis" in ask(capsys, "foreign/1", "Why?")[2]
    client.delete_registered_model("foreign")


def test_files_that_were_changed_are_not_asked(
    place: Path, here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The registered bytes are those that were judged, or there is no answer."""
    from tasks.tracking import artifacts

    source = connection.connect().get_model_version("sums", "1").source
    settings = artifacts.fetch(source) / "artifacts/package/summarizer.json"
    shutil.copy(settings, tmp_path / "kept")
    try:
        settings.unlink()  # linked to other copies
        settings.write_text((tmp_path / "kept").read_text().replace("Summary: ", "Summary:"))
        assert "is not what was judged" in ask(capsys, "sums", "Why?")[2]
    finally:
        shutil.copy(tmp_path / "kept", settings)


def test_empty_standard_input(place: Path) -> None:
    """Exit status 1 and what to type, without loading a model."""
    done = precis(place, "talk", given=b" \n")
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"standard input is empty; ask as in: precis ask NAME" in done.stderr


@pytest.mark.parametrize(
    "words", [[], ["talk", "--max-new-tokens", "0"], ["talk", "--device", "tpu"]]
)
def test_bad_usage_is_status_2(words: list[str]) -> None:
    assert main(["ask", *words]) == 2


# --- At the terminal ------------------------------------------------------------------------------


# Standard input becomes the controlling terminal: Ctrl-C comes from there.
OWN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


class Terminal:
    """`precis ask` at a pseudo-terminal, as a person has it."""

    def __init__(self, folder: Path, *words: str, kind: str = "dumb") -> None:
        ours, theirs = pty.openpty()
        own = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", OWN_TERMINAL, PRECIS, "ask", *words],
            cwd=folder,
            env=own | {"TERM": kind},
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(theirs)
        self.ours, self.text = ours, ""

    def until(self, end: str, seconds: float = 120) -> str:
        """What came on the screen up to `end`; the echo of what was typed included."""
        limit = time.monotonic() + seconds
        while end not in self.text:
            assert time.monotonic() < limit, f"no {end!r} in {self.text!r}, {self.process.poll()}"
            if select.select([self.ours], [], [], 1)[0]:
                self.text += (
                    os.read(self.ours, 65536).decode(errors="replace").replace("\r\n", "\n")
                )
        found, _, self.text = self.text.partition(end)
        return found

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def ask(self, question: str) -> str:
        """The answer to a question typed at the prompt, which has been awaited."""
        self.type(f"{question}\n")
        return self.until("\n> ").removeprefix(f"{question}\n")

    def end(self) -> int:
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
            os.close(self.ours)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_a_chat_knows_what_was_said(place: Path, chatting: Generator) -> None:
    """Answers stand on the screen as they are judged, with the history; /new forgets it."""
    terminal = Terminal(place, "talk", "--device", "cpu")
    assert "talk v2 on cpu (chat)" in terminal.until("> ")
    first = chatting.summarize(["Where is Ben?"])[0].text
    assert terminal.ask("Where is Ben?") == first
    turns = [message("user", "Where is Ben?"), message("assistant", first), message("user", "Why?")]
    second = "".join(chatting.stream(turns))
    assert second != chatting.summarize(["Why?"])[0].text, "history changes nothing: no test"
    assert terminal.ask("Why?") == second
    assert "a new conversation" in terminal.ask("/new")
    assert terminal.ask("Why?") == chatting.summarize(["Why?"])[0].text
    terminal.type("   \n")
    terminal.until("> ")
    terminal.type("/exit\n")
    assert terminal.end() == 0


READS, SENT = "\x1b[?2004h> ", "\x1b[?2004l"  # what readline writes before it reads, and after


def test_a_pasted_document_is_one_text(place: Path, summing: Generator) -> None:
    """Several lines, as a terminal marks a paste; one that is too long is cut, which is told; /help."""
    terminal = Terminal(place, "sums", "--device", "cpu", kind="xterm")
    terminal.until(READS)
    long = "Ann: Shall we meet at noon? " * 200
    for text in (DIALOGUE, long):
        pasted = text.replace("\n", "\r")  # as terminals send it
        terminal.type(f"\x1b[200~{pasted}\x1b[201~\n")
        shown = terminal.until(READS).rpartition(SENT)[2].strip()
        told = re.search(
            r"^(\d+) tokens are not read, the prompt holds 900: its end is cut\n", shown
        )
        assert bool(told) == (text == long)
        answer = shown[told.end() :] if told else shown  # nothing else: no warning of transformers
        assert answer == summing.summarize([text.strip()])[0].text
    for word, says in (
        ("/help", "/new: a new conversation"),
        ("/halp", "there is no command /halp"),
    ):
        terminal.type(f"{word}\n")
        assert terminal.until(READS).rpartition(SENT)[2].strip().startswith(says)
    terminal.type("\x04")
    assert terminal.end() == 0


def test_control_c_ends_an_answer_and_control_d_the_chat(place: Path) -> None:
    """The chat goes on after an answer that was cut short; Ctrl-C at the prompt gives up the line."""
    terminal = Terminal(place, "sums", "--device", "cpu", "--max-new-tokens", "900")
    assert "each text by itself" in terminal.until("> ")
    terminal.type("never sent")
    terminal.until("never sent")
    time.sleep(0.5)  # Python hears of a Ctrl-C once it waits for keys, not in the moment before
    terminal.type("\x03")
    terminal.until("> ")
    terminal.type("Ann: Shall we meet?\n")
    terminal.until("Ann: Shall we meet?\n")
    while len(terminal.text) < 20:
        if select.select([terminal.ours], [], [], 60)[0]:
            terminal.text += os.read(terminal.ours, 65536).decode(errors="replace")
    started = time.monotonic()
    terminal.type("\x03")
    shown = terminal.until(" ...\n")
    terminal.until("> ")
    assert time.monotonic() - started < 20
    assert len(shown) < 1500, "it was not cut short"
    terminal.type("\x04")
    assert terminal.end() == 0


def test_control_c_ends_a_single_question(place: Path) -> None:
    """As a shell expects it: exit status 130, no traceback."""
    terminal = Terminal(place, "sums", "--device", "cpu", "--max-new-tokens", "900", "Ann: hello")
    while len(terminal.text) < 5:
        if select.select([terminal.ours], [], [], 60)[0]:
            terminal.text += os.read(terminal.ours, 65536).decode(errors="replace")
    terminal.type("\x03")
    terminal.until("\n")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.text
