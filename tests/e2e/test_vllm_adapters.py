"""vLLM adds a pulled adapter to its base and answers as judged; its plugin takes models by precis' names."""

from __future__ import annotations

import json
import tomllib
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import adapter_versions
import pytest
import tiny
import vllm_environment
from stack import stack_with_judged

from tasks.register.pull_adapter import pull_adapter
from tasks.register.task import package_of, stored_rows
from tasks.serving.summarizer import Generator
from tasks.tracking import artifacts, connection

# Its environment takes minutes to make.
pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
LEAST_SHARE = 0.99  # of greedy tokens


def posted(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def chat(url: str, document: str, model: str) -> tuple[int, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": document}]}
    status, answer = posted(f"{url}/chat/completions", body)
    return status, answer["choices"][0]["message"]["content"].strip() if status == 200 else answer


def greedy_tokens(package: Path, documents: list[str]) -> list[tuple[list[int], list[int]]]:
    """Of each document the prompt's ids, and those that the judged model writes, with its end."""
    import torch

    generator = Generator(package, "cpu")
    found = []
    for document in documents:
        message = [{"role": "user", "content": document}]
        ids = generator.tokenizer.apply_chat_template(message, return_dict=False)
        with torch.inference_mode():
            whole = generator.model.generate(
                torch.tensor([ids]), do_sample=False, eos_token_id=generator.end_ids,
                max_new_tokens=generator.settings.max_new_tokens,
            )[0].tolist()  # fmt: skip
        found.append((ids, whole[len(ids) :]))
    return found


def agreeing(url: str, prompt: list[int], answer: list[int], model: str) -> int:
    """How many of the answer's tokens vLLM writes too, each after the judged ones before it.

    It writes on from the judged tokens; where it writes another one, again from behind that place. (Asked for
    the prompt's own log-probabilities, vLLM 0.30.0 on a CPU ends with an error.)
    """
    agreed = done = 0
    while done < len(answer):
        left = answer[done:]
        body = {"model": model, "prompt": prompt + answer[:done], "max_tokens": len(left)}
        status, given = posted(f"{url}/completions", body | {"return_token_ids": True})
        assert status == 200, given
        pairs = zip(left, given["choices"][0]["token_ids"], strict=False)
        same = next((n for n, (ours, its) in enumerate(pairs) if ours != its), None)
        if same is None:
            return agreed + min(len(left), len(given["choices"][0]["token_ids"]))
        agreed += same
        done += same + 1
    return agreed


def plugin(folder: Path) -> Path:
    """A folder for PYTHONPATH that names precis' plugin, as its installation would."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    facts = folder / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (facts / "METADATA").write_text(metadata)
    named = project["entry-points"]["vllm.general_plugins"]
    lines = [f"{name} = {place}" for name, place in named.items()]
    (facts / "entry_points.txt").write_text("\n".join(["[vllm.general_plugins]", *lines, ""]))
    return folder


def test_vllm_adds_adapters_as_judged(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A static adapter and the resolver's names; what does not exist or has another base is refused."""
    stack_with_judged(tmp_path, tmp_path_factory).run(register__as="adapter")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    client = connection.connect()
    other = tiny.make_tiny_base(tmp_path / "other-base")
    adapter_versions.register(client, tmp_path / "mlruns/other", other, "other", 1, "adapter")
    artifacts._copies.clear()
    pulled = pull_adapter(client, "demo", tmp_path / "served")
    own, rows = pulled.adapter.folder, stored_rows(client, "demo", 1)
    documents = [str(row.document) for row in rows]
    tokens = greedy_tokens(package_of(client, "demo")[0], documents)
    options = [
        *("--enable-lora", "--max-lora-rank", "32", "--lora-modules", f"demo={own}"),
        *("--chat-template", str(own / "chat_template.jinja"), "--generation-config", str(own)),
    ]
    variables = {
        "PYTHONPATH": f"{plugin(tmp_path / 'plugin')}:{ROOT}",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "PRECIS_ADAPTERS": str(tmp_path / "adapters"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlruns/mlflow.db",
    }
    log = tmp_path / "vllm.log"
    with (
        vllm_environment.served(pulled.base.folder, 1024, log, options, variables) as url,
        ThreadPoolExecutor(8) as pool,
    ):
        answers = list(pool.map(lambda document: chat(url, document, "demo"), documents))
        assert [status for status, _ in answers] == [200] * len(rows)
        texts = sum(text == row.text for (_, text), row in zip(answers, rows, strict=True))
        first = sum(pool.map(lambda both: agreeing(url, *both, "demo"), tokens))
        total = sum(len(answer) for _, answer in tokens)
        print(f"as judged: {texts} of {len(rows)} texts, {first} of {total} greedy tokens")
        assert first >= LEAST_SHARE * total
        for name in ("demo@champion", "demo/1"):
            for document, (_, text) in list(zip(documents, answers, strict=True))[:4]:
                assert chat(url, document, name) == (200, text)
        for name, says in (
            ("other@champion", "belongs on precis-base-"),
            ("demo/7", "no version 7"),
        ):
            status, told = chat(url, documents[0], name)
            assert (status, says in told) == (400, True), (status, told)
        assert chat(url, documents[0], "demos")[0] == 404
