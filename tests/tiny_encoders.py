"""Tiny random encoders with a tokenizer of words and letters, made offline in a moment."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

WORDS = "[PAD] [UNK] [CLS] [SEP] anna ben has an old map new bike red tea the office works in she he . , ?"
LABELS = {0: "contradiction", 1: "ENTAILMENT", 2: "neutral"}


def tokenizer(folder: Path) -> None:
    """Save a lower-case WordPiece tokenizer of these words, and letters for all others."""
    from transformers import BertTokenizerFast

    letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*WORDS.split(), *letters]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)


def encoder(
    folder: Path, *, labels: dict[int, str] | None = None, positions: int = 64, kind: str = "Bert"
) -> Path:
    """Save a random model with its tokenizer; with `labels` a classifier of two texts."""
    import torch
    import transformers

    tokenizer(folder)
    more: dict[str, Any] = {} if labels is None else {"id2label": labels, "num_labels": len(labels)}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=80, hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=positions, pad_token_id=0, initializer_range=0.6, **more,
    )  # fmt: skip
    torch.manual_seed(3)
    head = "Model" if labels is None else "ForSequenceClassification"
    getattr(transformers, kind + head)(config).eval().save_pretrained(folder)
    return folder
