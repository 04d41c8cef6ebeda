"""A model that reads outputs for a metric: its folder checked, loaded offline, texts split to fit it.

Only safetensors are loaded, no code of a folder is run, and nothing is fetched. No text is truncated: one
that is longer than the model reads is split.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError, EvaluationError
from tasks.models import weight_files
from tasks.models.json_files import read_object
from tasks.models.safetensors_headers import read_whole

BATCH_TOKENS = (
    4096  # read at once, padding included: with bert-large's shape under 1 GiB in float32
)
MOST_TOKENS = 4096  # of one text, also where a model reads more
NO_LIMIT = 10**6  # tokenizers that know no limit say 10^30
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "spm.model"),
    "sentencepiece.bpe.model",
)
# What says that the premise entails the hypothesis; fact checkers say that it supports it.
ENTAILS = re.compile(r"entail(s|ed|ment)?|support(s|ed)?")


@dataclass(frozen=True)
class MetricModel:
    """A loaded model. `limit`: the most tokens that it reads, special ones included."""

    model: Any
    tokenizer: Any
    device: str
    limit: int

    def room(self, pair: bool) -> int:
        """Tokens of a text, or of two together, that fit beside the special ones."""
        return self.limit - int(self.tokenizer.num_special_tokens_to_add(pair=pair))

    def counts(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        if not texts:
            return []
        found = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [len(ids) for ids in found["input_ids"]]

    def pieces(self, text: str, most: int) -> list[str]:
        """The text in pieces of at most `most` tokens, halved where there is a space near the middle."""
        return _halved(text, most, lambda one: self.counts([one])[0])

    def read(self, *texts: Sequence[str]) -> Any:
        """Tensors of texts, or of pairs of them. Raises EvaluationError where one is over the limit."""
        found = self.tokenizer(
            *map(list, texts),
            padding=True,
            truncation=False,
            return_tensors="pt",
            return_special_tokens_mask=True,
            verbose=False,
        )
        if found["input_ids"].shape[1] > self.limit:
            raise EvaluationError(
                f"{self.model.config.name_or_path}: a text of {found['input_ids'].shape[1]} tokens could not "
                f"be split into parts of {self.limit}, which the model reads; use another model"
            )
        return found.to(self.device)


def problems(setting: str, folder: str, labels: bool, layer: int | None = None) -> list[str]:
    """What keeps the folder that a setting names from being used, each with its fix. Loads no weights.

    `labels`: whether it must have a label that says entail. `layer`: that is asked for.
    """
    path = Path(folder)
    if not path.is_dir():
        return [
            f"{setting} {folder!r} is no folder on this machine; name the folder of a model in Hugging "
            "Face format (nothing is downloaded)"
        ]
    try:
        for file in weight_files.weight_files(path):
            read_whole(file)
        config = read_object(path / "config.json")
    except BaseModelError as error:
        return [str(error).replace("base.model", setting)]
    found = []
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        found.append(f"{setting}: {path} has no tokenizer; save it beside the model")
    if "auto_map" in config:
        found.append(
            f"{setting}: {path} needs code of its own (auto_map in config.json), which precis never runs; "
            "choose a model that transformers knows"
        )
    if labels:
        found += _label_problems(setting, path, config)
        return found
    layers = config.get("num_hidden_layers")
    if layer is not None and isinstance(layers, int) and layer > layers:
        found.append(f"gate.bertscore_layer is {layer}, and {path} has {layers} layers; lower it")
    if config.get("is_encoder_decoder"):
        found.append(f"{setting}: {path} is an encoder with a decoder; choose an encoder alone")
    return found


def _label_problems(setting: str, path: Path, config: dict[str, Any]) -> list[str]:
    labels = config.get("id2label")
    try:
        entailment(labels if isinstance(labels, dict) else {})
    except EvaluationError as error:
        return [f"{setting}: {path / 'config.json'}: {error}"]
    return []


def entailment(labels: dict[Any, Any]) -> int:
    """The number of the label that says entail. Raises EvaluationError that names the labels."""
    found = [
        key for key, label in labels.items() if ENTAILS.fullmatch(str(label).strip().casefold())
    ]
    if len(found) == 1 and str(found[0]).isdigit():
        return int(found[0])
    names = ", ".join(map(repr, labels.values())) or "none"
    which = "more than one of its" if found else "none of its"
    raise EvaluationError(
        f"{which} labels says entailment ({names}); choose a model of natural language inference, or name "
        "its labels in id2label of config.json"
    )


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) of a model folder's files, weights of other formats left out."""
    return digest.of_files(folder, weight_files.model_files(folder))


def load(folder: Path, kind: str, may_lack: str | None = None, **options: Any) -> MetricModel:
    """Load a model in float32, on the GPU if there is one.

    `kind`: the class of transformers, such as AutoModel. `may_lack`: part of the names of weights that
    are not needed. `options`: of the tokenizer. Raises EvaluationError where the folder lacks other weights,
    or holds one that is no number.
    """
    import torch
    import transformers

    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    offline = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **offline, **options)
        model, told = getattr(transformers, kind).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **offline
        )
    except Exception as error:
        raise EvaluationError(f"{folder} could not be loaded as a {kind}: {error}") from error
    lacking = {*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])}
    lacking = {name for name in lacking if may_lack is None or may_lack not in name}
    if lacking:
        raise EvaluationError(
            f"{folder} has no weights for {', '.join(sorted(lacking)[:3])}, which would be random; choose a "
            f"model that was saved as a {kind}"
        )
    if broken := [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]:
        raise EvaluationError(f"{folder} holds weights that are not finite: {broken[0]}")
    if tokenizer.pad_token is None:
        raise EvaluationError(
            f"{folder}: its tokenizer has no padding token; add pad_token to tokenizer_config.json"
        )
    return MetricModel(model.eval().to(device), tokenizer, device, _limit(model, tokenizer))


def _limit(model: Any, tokenizer: Any) -> int:
    limits = [MOST_TOKENS]
    if isinstance(most := getattr(model.config, "max_position_embeddings", None), int) and most > 0:
        limits.append(most)
    if tokenizer.model_max_length < NO_LIMIT:
        limits.append(int(tokenizer.model_max_length))
    for name, module in model.named_modules():
        # RoBERTa's positions begin after that of padding.
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            limits.append(module.num_embeddings - padding - 1)
    return min(limits)


def batches(lengths: Sequence[int], most: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """Indices by length, longest first, in batches of at most `most` tokens with padding."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    while order:
        count = max(1, most // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def _halved(text: str, most: int, count: Callable[[str], int]) -> list[str]:
    text = text.strip()
    if len(text) < 2 or count(text) <= most:
        return [text]
    middle = len(text) // 2
    spaces = [match.start() for match in re.finditer(r"\s", text)]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle) or middle
    return [piece for half in (text[:cut], text[cut:]) for piece in _halved(half, most, count)]
