"""The base's tokenizer as training and serving load it, called with many texts at once.

Loaded by transformers and not from tokenizer.json alone, which is faster by seconds: which class is
named in tokenizer_config.json decides what a text becomes (a Llama class over GPT-2's file loses every
space), and rows must be counted by the tokenizer that reads them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.contracts.errors import BaseModelError

FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


class Tokenizer:
    """`loaded` is transformers' own object, for the served code."""

    def __init__(self, folder: Path) -> None:
        """Raises BaseModelError when the folder has no tokenizer that transformers can load."""
        require_tokenizer(folder)
        from transformers import AutoTokenizer

        try:
            # Without the False transformers asks at the terminal, and runs what a base brings.
            self.loaded: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # files of any kind: whatever they raise is about them
            if "trust_remote_code" in str(error):
                raise BaseModelError(
                    f"the tokenizer of {folder} is code of its own (auto_map in tokenizer_config.json), and "
                    "precis runs none that a base brings; name a base whose tokenizer transformers knows"
                ) from error
            raise BaseModelError(
                f"the tokenizer of {folder} cannot be loaded ({type(error).__name__}: "
                f"{' '.join(str(error).split())[:300]}); fetch its files again, or save it with "
                "save_pretrained of the transformers version in constraints.txt"
            ) from error
        self._many: Any = getattr(self.loaded, "backend_tokenizer", None)
        if self._many is not None:
            self._many.no_truncation()
            self._many.no_padding()
            self._many.encode_special_tokens = False

    def ids(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, with no special tokens around it."""
        if not texts:
            return []
        if self._many is not None:
            encodings = self._many.encode_batch_fast(texts, add_special_tokens=False)
            return [encoding.ids for encoding in encodings]
        ids: list[list[int]] = self.loaded(texts, add_special_tokens=False)["input_ids"]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids as the served model gives it out."""
        return str(self.loaded.decode(ids, skip_special_tokens=True))

    def normalized(self, text: str) -> str:
        """What the tokenizer's normalizer declares to make of a text before it is split."""
        if self._many is not None:
            normalizer = self._many.normalizer
            text = normalizer.normalize_str(text) if normalizer is not None else text
        else:
            model: Any = getattr(self.loaded, "sp_model", None)  # sentencepiece's own
            text = model.normalize(text) if hasattr(model, "normalize") else text
        return text.replace("\u2581", " ")  # sentencepiece's mark of a space


def require_tokenizer(folder: Path) -> None:
    """Raise BaseModelError when a model folder has no tokenizer."""
    if not any((folder / name).is_file() for name in FILES):
        raise BaseModelError(f"{folder} has no tokenizer.json; save the tokenizer beside the model")
