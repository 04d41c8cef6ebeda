"""vLLM answers as judged: the OpenAI endpoint, no parameters, in float32, against precis's own texts."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import vllm_environment

from tasks.models import chat_templates, engine_files, package
from tasks.models.model_card import MadeFrom
from tasks.serving.summarizer import Generator, SummarizerSettings

# Its environment takes minutes to make.
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
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
TEXTS = 20


def asked(url: str, document: str, **more: Any) -> tuple[int, Any]:
    body = {"model": "model", "messages": [{"role": "user", "content": document}], **more}
    request = urllib.request.Request(
        f"{url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.loads(answer.read())["choices"][0]
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def documents() -> list[str]:
    rows = (ROOT / "deployments/demo/data/evaluation.jsonl").read_text().splitlines()[:TEXTS]
    return [json.loads(row)["dialogue"] for row in rows]


@pytest.mark.parametrize("settings", [SETTINGS, CHAT], ids=["template", "chat"])
def test_vllm_answers_as_judged(settings: SummarizerSettings, tmp_path: Path) -> None:
    """Every text, told nothing; what is too long or spells a special token is refused, with a reason."""
    folder = shutil.copytree(DEMO, tmp_path / "package")
    package.add_summarizer(folder, settings)
    engine_files.write(folder, settings, MadeFrom("demo", None, ""))
    texts = documents()
    judged = [summary.text for summary in Generator(folder, "cpu").summarize(texts)]
    with vllm_environment.served(folder, 440, tmp_path / "vllm.log") as url:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda text: asked(url, text), texts))
        assert [status for status, _ in answers] == [200] * TEXTS
        written = [answer["message"]["content"].strip() for _, answer in answers]
        assert sum(a == b for a, b in zip(written, judged, strict=True)) == TEXTS
        # Too long: see the model card. One "a b " is two tokens.
        status, reason = asked(url, "a b " * 1000)
        assert status == 400, reason
        assert "maximum context length is 440 tokens" in reason
        longer = next(
            text for n in range(1, 400) if (text := "lamp " * n) and _tokens(folder, text) > 401
        )
        status, answer = asked(url, longer)
        assert (status, answer["finish_reason"] in {"length", "stop"}) == (200, True)
        status, reason = asked(url, longer, max_tokens=settings.max_new_tokens)
        assert status == 400, reason
        status, reason = asked(url, "Ann: </s>")
        assert (status, "holds </s>, a special token" in reason) == (400, True)


def _tokens(folder: Path, text: str) -> int:
    from transformers import AutoTokenizer

    tokenizer = _loaded.setdefault(folder, AutoTokenizer.from_pretrained(folder))
    ids = tokenizer.apply_chat_template([{"role": "user", "content": text}], return_dict=False)
    return len(ids)


_loaded: dict[Path, Any] = {}
