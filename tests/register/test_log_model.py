"""A logged model gives what was judged, in a clean process: of texts, several texts, conversations."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from tasks.contracts import digest
from tasks.contracts.documents import Document
from tasks.contracts.errors import ServedModelDiffers
from tasks.contracts.records import ModelRef, Prediction
from tasks.models.chat_templates import LLAMA_2
from tasks.register import log_model
from tasks.serving.summarizer import Generator, SummarizerSettings
from tasks.tracking import connection

pytestmark = pytest.mark.full  # a clean process imports for ten seconds
TEXT = SummarizerSettings("{document}\nA: ", 200, "tail", 6, 2)
KINDS: dict[str, tuple[SummarizerSettings, list[Document]]] = {
    "several texts": (
        replace(TEXT, template="{question}\n{context}\nA: ", inputs=("question", "context")),
        [{"question": f"Where is lamp {n}?", "context": f"Lamp {n} is in room {n}."} for n in range(3)],
    ),
    "conversations": (
        replace(TEXT, template="{document}", format="chat", chat_template=LLAMA_2, system="Be brief."),
        [
            [{"role": "user", "content": "What is a lamp?"}],
            [
                {"role": "user", "content": "Hello."},
                {"role": "assistant", "content": "Hello, Ann."},
                {"role": "user", "content": "Where is Bob?"},
            ],
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "documents"), KINDS.values(), ids=KINDS)
def test_a_logged_model_gives_what_was_judged(
    settings: SummarizerSettings, documents: list[Document], home_with_store: Path
) -> None:
    """The stored texts pass; another text is refused, and nothing of its row is told."""
    base = tiny.make_tiny_base(home_with_store / "base")
    linked = tiny.packaged(base, home_with_store / "linked", settings)
    package = shutil.copytree(linked, home_with_store / "package")
    model = ModelRef(str(package), digest.of_folder(package), "b" * 64)
    client = connection.connect()
    experiment = client.create_experiment("lamps")
    uri = log_model.log_model(
        client,
        model,
        experiment_id=experiment,
        run_id=client.create_run(experiment).info.run_id,
        name="lamps",
        scratch=home_with_store / "served",
    )
    summaries = Generator(package, "cpu").summarize(documents)
    stored = [
        Prediction(f"row {n}", "s", document, ("r",), made.text, made.finished, 1, 1, made.batch, {})
        for n, (document, made) in enumerate(zip(documents, summaries, strict=True))
    ]  # fmt: skip
    log_model.reproduce(uri, stored, home_with_store / "work")
    edited = [replace(stored[0], text=f"{stored[0].text} And more."), *stored[1:]]
    with pytest.raises(ServedModelDiffers, match="some differ from the stored ones") as caught:
        log_model.reproduce(uri, edited, home_with_store / "work")
    assert "row 0" not in str(caught.value)
    assert "characters" not in str(caught.value)
