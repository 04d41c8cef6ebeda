"""The README.md of a package: what it was made of, how it is served, and what an engine is not told.

It says nothing that differs between two runs which make the same model: its digest is the model's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from tasks.serving.summarizer import ONLY_DOCUMENT, SummarizerSettings

FILE = "README.md"
CUT = {
    "tail": "their end is cut",
    "head": "their beginning is cut",
    "middle": "their middle is cut",
}


@dataclass(frozen=True)
class MadeFrom:
    """Where a package is from. Digests are as in MLflow and in `precis history`; empty: not known."""

    base: str  # as the recipe names it; of a folder only its name is shown
    revision: str | None
    base_digest: str
    train_digest: str = ""


def text(
    settings: SummarizerSettings, made_from: MadeFrom, limits: Sequence[str], spelled: str | None
) -> str:
    """The page, in Markdown. `limits`: what the files cannot say; `spelled`: the chat template, if any."""
    base = made_from.base if _is_hub_name(made_from.base) else PurePath(made_from.base).name
    of = f"{base} at {made_from.revision}" if made_from.revision else base
    source, new = settings.max_source_tokens, settings.max_new_tokens
    asked = "conversations" if settings.format == "chat" else "one document, as the user's message"
    if settings.inputs:
        asked = f"the filled template below, of {', '.join(settings.inputs)}, as the user's message"
    front = "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [precis]\n---\n"
    facts = {
        "base": f"{of} (digest `{made_from.base_digest or 'not known'}`)",
        "training data": f"digest `{made_from.train_digest}`" if made_from.train_digest else "",
        "decision": "of the gate: the version's description in MLflow, and `precis history NAME`",
        "reads": asked,
        "prompt": f"at most {source} tokens, special tokens included",
        "answer": f"at most {new} tokens, the likeliest token each time (greedy)",
    }
    table = "\n".join(f"| {name} | {fact} |" for name, fact in facts.items() if fact)
    return f"""{front}# A model made by precis

| | |
|---|---|
{table}

## Serve it

In this folder. With MLflow it answers exactly as it was judged, whatever it is sent:

```
mlflow models serve -m models:/NAME@champion --env-manager local
TRITON_F32_DEFAULT=ieee vllm serve . --served-model-name model --dtype float32 --max-model-len {source + new}
curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
  -d '{{"model": "model", "messages": [{{"role": "user", "content": "THE DOCUMENT"}}]}}'
```

With transformers:

```python
from transformers import pipeline

pipe = pipeline("text-generation", model=".", dtype="float32")
messages = [{{"role": "user", "content": "THE DOCUMENT"}}]
print(pipe(messages, return_full_text=False)[0]["generated_text"].strip())
```

These read `chat_template.jinja` (the prompt), `generation_config.json` (greedy, {new} new tokens, what ends
an answer) and `tokenizer_config.json` (the longest text): give no parameters. Only white space around an
answer is left to you. In 16 bits, vLLM's default, and on a GPU without `TRITON_F32_DEFAULT=ieee` (vLLM's
attention then multiplies in TF32), two nearly equal tokens may be decided otherwise than when it was judged.
Before `save_pretrained` set `model.generation_config.temperature = None`: vLLM needs the 0 there, and
transformers refuses to save it.

## Long documents

Of longer documents than {source} tokens (with the prompt) {CUT[settings.truncate]} when precis or MLflow
answers. Engines do not cut them:

- vLLM refuses a prompt of more than its `--max-model-len` (status 400). One of more than {source} tokens is
  read whole and answered in fewer than {new} tokens; send `max_tokens: {new}` to have it refused too.
- transformers reads it whole, and warns from {source + new} tokens on.

## What these files cannot say

{_listed(limits, spelled)}
{_template(settings)}"""


def _is_hub_name(name: str) -> bool:
    """`owner/name`; a folder may look the same, and shows nothing of the machine then."""
    return not name.startswith((".", "/", "~")) and name.count("/") == 1 and "\\" not in name


def _listed(limits: Sequence[str], spelled: str | None) -> str:
    refused = (
        "" if spelled is None else " What precis refuses (a special token in a text) is refused."
    )
    if not limits:
        return f"Nothing is left out.{refused}"
    return "\n".join(f"- {line}" for line in limits) + (f"\n\n{refused.strip()}" if refused else "")


def _template(settings: SummarizerSettings) -> str:
    if not settings.inputs or settings.template == ONLY_DOCUMENT:
        return ""
    fence = "```"
    while fence in settings.template:
        fence += "`"
    return f"\n## The template of its texts\n\n{fence}\n{settings.template}\n{fence}\n"
