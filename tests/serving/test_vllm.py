"""vLLM and transformers answer as judged, told nothing, in float32: every stored text of trained models.

The demo as its recipe trains it (200 texts), and a chat recipe on conversations (100). Prints what was
compared: docs/serving.md has the figures.
"""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trained_models
import vllm_environment
from trained_models import ROOT, Trained
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tasks.contracts.records import Prediction
from tasks.models import chat_templates, engine_files
from tasks.models.model_card import MadeFrom
from tasks.models.package import add_summarizer
from tasks.serving.summarizer import SummarizerSettings, messages_of

# Its environment takes minutes to make, the models as many to train.
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(2400),
    pytest.mark.usefixtures("one_thread"),
]
DEMO = ROOT / "deployments/demo/base"
SETTINGS = SummarizerSettings(
    "Summarize the following conversation.\n\n{document}\n\nSummary: ", 400, "tail", 40, 8
)
CHAT = replace(
    SETTINGS,
    template="{document}",
    format="chat",
    chat_template=chat_templates.LLAMA_2,
    system="Be it.",
)
ROWS = {"demo": 200, "chat": 100}  # of which nothing was cut


@pytest.fixture(scope="module", params=ROWS)
def trained(request: pytest.FixtureRequest, shared: Path) -> tuple[Trained, list[Prediction]]:
    """A model, and as many of its rows as are told above."""
    if request.param == "demo":
        made = trained_models.demo()
    else:
        data = shared / "data/guanaco/train.jsonl"
        made = trained_models.chat(data, shared / "models/dialog-7m")
    rows = [row for row in made.rows if not row.cut_tokens][: ROWS[request.param]]
    assert len(rows) == ROWS[request.param]
    return made, rows


def all_equal(engine: str, rows: list[Prediction], written: list[str]) -> None:
    """Every text; those that differ are shown with the stored ones."""
    pairs = [(row, text.strip()) for row, text in zip(rows, written, strict=True)]
    equal = sum(row.text == text for row, text in pairs)
    print(
        f"{engine}: {equal} of {len(rows)} stored texts, and {within_a_character(pairs)} but for a mark"
    )
    differ = [(row.id, row.text, text) for row, text in pairs if row.text != text]
    assert len(differ) == within_a_character(pairs), differ


def within_a_character(pairs: list[tuple[Prediction, str]]) -> int:
    """How many texts lack no more than the mark for a character of which the limit left a part.

    The tokens are the same: vLLM leaves half a character out, precis and transformers write U+FFFD.
    """
    return sum(row.text == f"{text}\ufffd" and not row.finished for row, text in pairs)


def talk_of(row: Prediction, settings: SummarizerSettings) -> list[dict[str, Any]]:
    """A row as a request: its conversation, or its document as the user's message."""
    if settings.format == "chat":
        return [dict(message) for message in messages_of(row.document)]
    return as_user(str(row.document))


def asked(url: str, messages: list[dict[str, Any]], **more: Any) -> tuple[int, Any]:
    """Status, and the answer or the error's text."""
    body = {"model": "model", "messages": messages, **more}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def as_user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_vllm_writes_every_stored_text(
    trained: tuple[Trained, list[Prediction]], tmp_path: Path
) -> None:
    """Eight requests at once, with no parameters, to `vllm serve` as the model card has it.

    Rows that precis cut are refused where they are longer than that, and else are seen to be read whole.
    """
    model, rows = trained
    source = model.settings.max_source_tokens
    cut = [row for row in model.rows if row.cut_tokens]
    limit = source + model.settings.max_new_tokens
    with (
        vllm_environment.served(model.folder, limit, tmp_path / "vllm.log") as url,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda row: asked(url, talk_of(row, model.settings)), rows))
        longer = [asked(url, talk_of(row, model.settings)) for row in cut]
    assert {status for status, _ in answers} == {200}, [a for s, a in answers if s != 200]
    all_equal("vLLM", rows, [answer["choices"][0]["message"]["content"] for _, answer in answers])
    ended = [answer["choices"][0]["finish_reason"] == "stop" for _, answer in answers]
    assert ended == [row.finished for row in rows]
    for row, (status, answer) in zip(cut, longer, strict=True):
        tokens = row.prompt_tokens + (row.cut_tokens or 0)
        if status == 400:
            assert "maximum context length" in answer
            assert tokens > source
        else:
            assert source < answer["usage"]["prompt_tokens"] <= limit
    print(f"{len(cut)} longer ones: {sum(status == 400 for status, _ in longer)} refused")


def test_transformers_writes_every_stored_text(
    trained: tuple[Trained, list[Prediction]],
) -> None:
    """`pipeline` and `generate()` with no parameters but the type."""
    package, settings, rows = trained[0].folder, trained[0].settings, trained[1]
    pipe = pipeline("text-generation", model=str(package), dtype="float32", device="cpu")
    talks = [talk_of(row, settings) for row in rows]
    texts = [pipe(talk, return_full_text=False)[0]["generated_text"] for talk in talks]
    all_equal("pipeline", rows, texts)
    tokenizer = AutoTokenizer.from_pretrained(package)
    model = AutoModelForCausalLM.from_pretrained(package, dtype="float32")
    texts = []
    for talk in talks:
        inputs = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        [ids] = model.generate(**inputs)
        new = ids[inputs["input_ids"].shape[1] :]
        texts.append(tokenizer.decode(new, skip_special_tokens=True))
    all_equal("generate()", rows, texts)


@pytest.mark.parametrize("settings", [SETTINGS, CHAT], ids=["template", "chat"])
def test_vllm_refuses_what_cannot_be_answered_as_judged(
    settings: SummarizerSettings, tmp_path: Path
) -> None:
    """Too long, or a special token: 400 with a reason. Between both limits: read whole, unless told."""
    folder = shutil.copytree(DEMO, tmp_path / "package")
    add_summarizer(folder, settings)
    engine_files.write(folder, settings, MadeFrom("demo", None, ""))
    source, new = settings.max_source_tokens, settings.max_new_tokens
    count = counter(folder)
    with vllm_environment.served(folder, source + new, tmp_path / "vllm.log") as url:
        status, reason = asked(url, as_user("a b " * 1000))
        assert status == 400, reason
        assert f"maximum context length is {source + new} tokens" in reason
        # The last that is read as judged, and the first that is not.
        longest = max(n for n in range(1, source) if count("lamp " * n) <= source)
        fits, longer = "lamp " * longest, "lamp " * (longest + 1)
        for text in (fits, longer):
            status, answer = asked(url, as_user(text))
            assert status == 200, answer
            assert answer["choices"][0]["finish_reason"] in {"length", "stop"}
        status, reason = asked(url, as_user(fits), max_tokens=new)
        assert status == 200, reason
        status, reason = asked(url, as_user(longer), max_tokens=new)
        assert status == 400, reason
        status, reason = asked(url, as_user("Ann: </s>"))
        assert (status, "holds </s>, a special token" in reason) == (400, True)


def counter(folder: Path) -> Callable[[str], int]:
    """Tokens of a prompt of one user's message."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return lambda text: len(tokenizer.apply_chat_template(as_user(text), return_dict=False))
