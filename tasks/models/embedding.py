"""How many tokens a base knows: the rows of its input embedding, from file headers. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from tasks.contracts.errors import BaseModelError
from tasks.models.safetensors_headers import tensor_shapes

# Llama and most others, GPT-2, GPT-NeoX, BLOOM and Falcon, OPT, MPT.
NAMES = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")


def embedding_rows(folder: Path) -> int | None:
    """Token ids from 0 up to this, not included, have an embedding; None: no header says."""
    try:
        shapes = tensor_shapes(folder)
    except BaseModelError:
        return None  # the check of the weights reports it
    rows = [shape[0] for name, shape in shapes.items() if name.endswith(NAMES) and len(shape) == 2]
    return min(rows, default=None)
