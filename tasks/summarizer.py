"""The served model: prompt, truncation, stop rules and decoding in one models-from-code file.

Training encodes rows with this file, evaluation generates with it, and MLflow serves it; a copy
travels inside every package, so what was judged is what is served. It imports torch, transformers
and MLflow's own loader, and nothing of this project.

A package is a folder in Hugging Face format with two files more: `summarizer.json` (the settings
below) and this file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlflow

SETTINGS_FILE = "summarizer.json"
CODE_FILE = "summarizer.py"


@dataclass(frozen=True)
class SummarizerSettings:
    """How documents become prompts and prompts become summaries."""

    template: str  # holds {document} once
    max_source_tokens: int  # of the whole prompt, special tokens included
    truncate: str  # which part of a long document is dropped: tail, head or middle
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()

    def save(self, package: Path) -> None:
        """Write `summarizer.json` into a package."""
        (package / SETTINGS_FILE).write_text(json.dumps(asdict(self), indent=2, sort_keys=True))

    @classmethod
    def load(cls, package: Path) -> SummarizerSettings:
        """Read `summarizer.json` of a package."""
        values = json.loads((package / SETTINGS_FILE).read_text())
        return cls(**{**values, "stop": tuple(values["stop"])})


@dataclass(frozen=True)
class Summary:
    """One generated summary; token counts exclude padding, and the end-of-text token."""

    text: str
    finished: bool  # ended by itself, not at max_new_tokens
    prompt_tokens: int
    output_tokens: int
    batch: int


def fit(tokenizer: Any, document: str, settings: SummarizerSettings) -> tuple[str, int]:
    """The prompt text for a document, cut to `max_source_tokens`, and how many tokens were cut.

    Cuts fall between tokens of the document, and the *text* is cut: any server that is sent this
    text sees the same tokens. Raises ValueError when not even an empty document fits.
    """
    before, after = settings.template.split("{document}")
    prompt = before + document + after
    length = len(tokenizer(prompt)["input_ids"])
    excess = length - settings.max_source_tokens
    if excess <= 0:
        return prompt, 0
    spans = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in spans["offset_mapping"]]
    keep = len(ends) - excess
    while keep >= 0:  # tokens may join differently at a cut: drop a few more until it fits
        prompt = before + _cut(document, ends, keep, settings.truncate) + after
        now = len(tokenizer(prompt)["input_ids"])
        if now <= settings.max_source_tokens:
            return prompt, len(ends) - keep
        keep -= max(1, now - settings.max_source_tokens)
    raise ValueError(
        f"the prompt template alone is longer than {settings.max_source_tokens} tokens; shorten "
        "prompt.template, or raise prompt.max_source_tokens or lower evaluation.max_new_tokens"
    )


def _cut(document: str, ends: list[int], keep: int, truncate: str) -> str:
    """The document with only `keep` of its tokens; `ends` are its tokens' end offsets."""
    starts = [0, *ends]  # a token starts where the one before ends, so no character is lost
    head = {"tail": keep, "head": 0, "middle": (keep + 1) // 2}[truncate]
    tail = keep - head
    return document[: starts[head]] + (document[starts[len(ends) - tail] :] if tail else "")


def encode(tokenizer: Any, document: str, settings: SummarizerSettings) -> list[int]:
    """Token ids of the prompt, with the special tokens that the tokenizer adds by itself."""
    ids: list[int] = tokenizer(fit(tokenizer, document, settings)[0])["input_ids"]
    return ids


def encode_completion(tokenizer: Any, summary: str) -> list[int]:
    """Token ids of a reference as the model shall write it, end-of-text included."""
    ids = tokenizer(summary.strip(), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def forget_lengths(model: Any) -> None:
    """Under dynamic RoPE, let angles follow the text under way alone, not the longest one so far.

    transformers keeps the angles of the longest text a process has seen until one comes that needs no
    scaling: what a model writes, or learns, would depend on what it read before.
    """

    def forget(rotary: Any, *_: Any) -> None:
        rotary.inv_freq = rotary.original_inv_freq
        rotary.max_seq_len_cached = rotary.original_max_seq_len

    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.register_forward_pre_hook(forget)


class Generator:
    """A loaded package: documents in, summaries out, greedy, in the order given."""

    def __init__(self, package: Path, device: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.settings = SummarizerSettings.load(package)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(package)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(package, dtype=self._dtype())
        self.model = model.to(self.device).eval()
        forget_lengths(self.model)

    def _dtype(self) -> Any:
        import torch

        if self.device == "cpu":
            # In float32 a document's summary does not depend on its batch; in bf16 it does.
            return torch.float32
        return (
            torch.bfloat16
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else torch.float16
        )

    def batches(self, documents: list[str]) -> list[list[int]]:
        """Indices of documents by prompt length, longest first, in batches."""
        lengths = [len(encode(self.tokenizer, text, self.settings)) for text in documents]
        order = sorted(range(len(documents)), key=lambda i: (-lengths[i], i))
        size = self.settings.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def summarize(self, documents: list[str]) -> list[Summary]:
        """Summaries of the documents, in their order."""
        found: dict[int, Summary] = {}
        for number, batch in enumerate(self.batches(documents)):
            texts = [documents[i] for i in batch]
            found |= dict(zip(batch, self.summarize_batch(texts, number), strict=True))
        return [found[i] for i in range(len(documents))]

    def summarize_batch(self, documents: list[str], batch: int = 0) -> list[Summary]:
        """Summaries of one batch, left-padded to its longest prompt."""
        import torch

        prompts = [encode(self.tokenizer, text, self.settings) for text in documents]
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device
        )
        with torch.inference_mode():
            out = self.model.generate(input_ids=ids, attention_mask=mask, **self._decoding())
        return [
            self._summary(row[width:].tolist(), len(prompt), batch)
            for row, prompt in zip(out, prompts, strict=True)
        ]

    def _decoding(self) -> dict[str, Any]:
        from transformers import GenerationConfig

        # A config of our own: a base's generation_config may sample, or penalize repetition.
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=self.settings.max_new_tokens,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            stop_strings=list(self.settings.stop) or None,
        )
        return {
            "generation_config": config,
            "tokenizer": self.tokenizer if self.settings.stop else None,
        }

    def _summary(self, ids: list[int], prompt_tokens: int, batch: int) -> Summary:
        eos = self.tokenizer.eos_token_id
        ended = eos in ids
        ids = ids[: ids.index(eos)] if ended else ids
        # Padding: a stop string ended this summary while others of its batch ran on.
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.settings.stop:
            if stop in text:
                text, ended = text[: text.index(stop)], True
        return Summary(text.strip(), ended, prompt_tokens, len(ids), batch)


class Summarizer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """`mlflow.pyfunc` around a Generator: a list of documents in, a list of summaries out."""

    def load_context(self, context: Any) -> None:
        """Load the package from the model's artifacts."""
        self.generator = Generator(Path(context.artifacts["package"]))

    def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
        """Summaries of the documents, in their order."""
        return [summary.text for summary in self.generator.summarize(list(model_input))]


# MLflow runs this file under a name of its own; imported as part of the project it only defines.
if not __package__:
    mlflow.models.set_model(Summarizer())
