"""Tokenizers are tried, not trusted: on a probe before any row is read, and on the rows' own texts.

A tokenizer that loses text is found by decoding what it encodes. What its normalizer declares to change
(T5's makes a line break a space) is reported; anything else that is lost is refused.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tasks.contracts.errors import BaseModelError
from tasks.ingest.tokenizer import Tokenizer
from tasks.serving.summarizer import frame, require_plain, special_ids

# What texts are made of: words, spaces, line ends, figures; then what some tokenizers do not know.
PROBE = (
    'Ann: Did you bring the 12,345 lamps at 7.30?\nBob (quietly): it\'s "done"; see a_b-c/d & e@f!\n\n'
    "  Indented,  with two  spaces\tand a tab. "
    "Größe naïve Ελλάδα Привет שלום مرحبا नमस्ते 你好 日本語 한국어 — “quoted”… €5 🙂"
)
TRIED_DOCUMENTS = 100  # of which each is decoded again
SHOWN = 20  # characters before and after a difference


def check_tokenizer(tokenizer: Tokenizer, folder: Path, rows: int | None) -> list[str]:
    """What is worth knowing of a base's tokenizer. `rows`: of the embedding, where it is known.

    Raises BaseModelError with everything for which texts cannot be written in its tokens.
    """
    problems, notes = _end_problems(tokenizer, folder, rows), []
    lost, problem = _lost(tokenizer)
    if problem:
        problems.append(f"the tokenizer of {folder} {problem}")
    if problems:
        raise BaseModelError("\n".join(problems))
    if lost:
        notes.append(
            f"the tokenizer does not know the characters {''.join(lost)!r} of a probe, and loses them; rows "
            "whose summaries it cannot write are rejected"
        )
    if tokenizer.normalized(PROBE) != PROBE and _change(tokenizer, PROBE) == "normalized":
        notes.append(
            "the tokenizer's normalizer changes texts before the model reads them: "
            + difference(PROBE, tokenizer.normalized(PROBE))
        )
    if after := frame(tokenizer.loaded)[1]:
        tokens = tokenizer.loaded.convert_ids_to_tokens(list(after))
        notes.append(
            f"the tokenizer adds {' '.join(tokens)} after a text; prompts are made without it, in training, "
            "evaluation and serving (for other servers set add_eos_token: false in the package's "
            "tokenizer_config.json)"
        )
    return notes + _end_notes(tokenizer, folder)


def _end_problems(tokenizer: Tokenizer, folder: Path, rows: int | None) -> list[str]:
    loaded = tokenizer.loaded
    if loaded.eos_token is None or loaded.eos_token_id is None:
        return [
            f"the tokenizer of {folder} has no end token (eos_token), without which a model never "
            "stops; name it in tokenizer_config.json"
        ]
    problems = _random_problems(tokenizer, folder)
    if getattr(loaded, "split_special_tokens", False):
        problems.append(
            f"the tokenizer of {folder} reads special tokens as text, so that no prompt could have any; set "
            "split_special_tokens: false in tokenizer_config.json"
        )
    for name in ("eos", "bos", "pad"):
        id_ = getattr(loaded, f"{name}_token_id")
        if rows is not None and id_ is not None and id_ >= rows:
            token = getattr(loaded, f"{name}_token")
            problems.append(
                f"the tokenizer of {folder} has {name}_token {token} with id {id_}, and the base's "
                f"embedding has {rows} rows; name a token that it knows in tokenizer_config.json, or "
                "name the base that the token belongs to"
            )
    return problems


def _random_problems(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Dropout of BPE merges, or sampling: no evaluation could be repeated."""
    model = getattr(getattr(tokenizer.loaded, "backend_tokenizer", None), "model", None)
    texts = [PROBE] * 4
    if not getattr(model, "dropout", None) and len(set(map(tuple, tokenizer.ids(texts)))) == 1:
        return []
    return [
        f"the tokenizer of {folder} splits the same text otherwise each time (dropout or sampling), so that "
        "no evaluation could be repeated; set dropout to null in tokenizer.json, or enable_sampling to false "
        "in tokenizer_config.json"
    ]


def _end_notes(tokenizer: Tokenizer, folder: Path) -> list[str]:
    """Where other files end an answer with other tokens than the tokenizer."""
    ours, file = tokenizer.loaded.eos_token_id, folder / "generation_config.json"
    try:
        ends = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        return []
    listed = ends if isinstance(ends, list) else [ends]
    if ends is None or ours in listed:
        return []
    return [
        f"{file.name} of the base ends an answer at token {ends}, its tokenizer at {ours} "
        f"({tokenizer.loaded.eos_token}): the tokenizer's is learned, judged and served"
    ]


def _lost(tokenizer: Tokenizer) -> tuple[list[str], str | None]:
    """Characters of the probe that get lost, and the problem if more is lost than those."""
    characters = sorted(set(PROBE))
    lost = [c for c in characters if _change(tokenizer, f"a{c}a") == "lost"]
    blank = {" ": "spaces", "\n": "line ends"}
    if named := [blank[c] for c in lost if c in blank]:
        example = f"a{next(c for c in lost if c in blank)}a"
        return lost, f"loses {' and '.join(named)}: " + _advice(tokenizer, example)
    rest = "".join(c for c in PROBE if c not in lost)
    if _change(tokenizer, rest) == "lost":
        return lost, "does not give texts back: " + _advice(tokenizer, rest)
    return lost, None


def _advice(tokenizer: Tokenizer, text: str) -> str:
    [ids] = tokenizer.ids([text])
    return (
        f"{difference(text, tokenizer.decode(ids))}; tokenizer_config.json may name a class "
        f"({type(tokenizer.loaded).__name__} was loaded) that its tokenizer.json is not made for: "
        "correct tokenizer_class, or name another base"
    )


def _change(tokenizer: Tokenizer, text: str) -> str:
    """What encoding and decoding makes of a text: same, normalized (as declared) or lost."""
    [ids] = tokenizer.ids([text])
    return change(tokenizer, text, ids)


def change(tokenizer: Tokenizer, text: str, ids: list[int]) -> str:
    """What became of a text in these ids: same, normalized or lost; white space around it aside."""
    decoded = tokenizer.decode(ids).strip()
    if decoded == text.strip():
        return "same"
    return "normalized" if decoded == tokenizer.normalized(text).strip() else "lost"


def difference(text: str, other: str) -> str:
    """The first place where two texts differ, for an error."""
    text, other = text.strip(), other.strip()
    pairs = enumerate(zip(text, other, strict=False))
    place = next((i for i, (a, b) in pairs if a != b), min(len(text), len(other)))
    begin = max(0, place - SHOWN)
    return f"{text[begin : place + SHOWN]!r} becomes {other[begin : place + SHOWN]!r}"


class TextTrials:
    """Tries the texts of rows; counts what is lost of documents, which is reported and not refused."""

    def __init__(self, tokenizer: Tokenizer, rows: int | None) -> None:
        self.tokenizer, self.rows = tokenizer, rows
        self.tried = self.lossy = self.unknown_documents = self.unknown_tokens = 0
        self.first_loss = ""
        self.unknown = tokenizer.loaded.unk_token_id
        self.special = special_ids(tokenizer.loaded)

    def specials(self, ids: list[int]) -> int:
        """How many of these are special tokens."""
        return sum(map(self.special.__contains__, ids))

    def of_reference(self, text: str, ids: list[int]) -> str | None:
        """The problem with a reference that cannot be learned as it is."""
        problem = self._plain(text) if self.specials(ids) else None
        if problem := problem or self._beyond(ids):
            return f"has a reference that {problem}"
        if change(self.tokenizer, text, ids) == "lost":
            return (
                "has a reference that the tokenizer cannot write: "
                f"{difference(text, self.tokenizer.decode(ids))}; write it otherwise, remove the row, or "
                "name another base"
            )
        return None

    def of_document(
        self, texts: Sequence[str], prompt: list[int], may_spell: bool = True
    ) -> str | None:
        """The problem with a document: its texts, and the token ids of its whole prompt.

        `may_spell`: whether the prompt has more special tokens than its template, as far as is known.
        """
        unknown = self.tokenizer.loaded.unk_token
        for text in texts:
            spells_unknown = bool(unknown) and unknown in text
            if (may_spell or spells_unknown) and (problem := self._plain(text)):
                return problem
        self._count(texts, prompt)
        return self._beyond(prompt)

    def _plain(self, text: str) -> str | None:
        try:
            require_plain(self.tokenizer.loaded, text)
        except ValueError as error:
            return str(error)
        return None

    def _beyond(self, ids: list[int]) -> str | None:
        if self.rows is None or max(ids, default=0) < self.rows:
            return None
        token = self.tokenizer.loaded.convert_ids_to_tokens(max(ids))
        return (
            f"holds the token {token} (id {max(ids)}), and the base's embedding has {self.rows} rows; "
            "remove it, or name the base that the tokenizer belongs to"
        )

    def _count(self, texts: Sequence[str], prompt: list[int]) -> None:
        unknown = 0 if self.unknown in self.special else prompt.count(self.unknown)
        self.unknown_tokens += unknown
        self.unknown_documents += bool(unknown)
        if self.tried >= TRIED_DOCUMENTS:
            return
        self.tried += 1
        for text, ids in zip(texts, self.tokenizer.ids(list(texts)), strict=True):
            if change(self.tokenizer, text, ids) == "lost":
                self.lossy += 1
                lost = difference(text, self.tokenizer.decode(ids))
                self.first_loss = self.first_loss or lost
                return

    def notes(self) -> list[str]:
        """What was lost of documents, in sentences."""
        notes = []
        if self.unknown_tokens:
            notes.append(
                f"{self.unknown_documents} documents hold text that the tokenizer does not know: "
                f"{self.unknown_tokens} places become {self.tokenizer.loaded.unk_token}"
            )
        if self.lossy:
            notes.append(
                f"{self.lossy} of the first {self.tried} documents lose text in the tokenizer, for example "
                f"{self.first_loss}"
            )
        return notes
