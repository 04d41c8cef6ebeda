"""A package's settings (`summarizer.json`), what it gives out, and figures that cost estimates share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

SETTINGS_FILE = "summarizer.json"

Message = dict[str, str]  # {"role": system, user or assistant, "content": text}
# What a prompt is made of: a text, several texts by name, or a conversation.
Document = str | dict[str, str] | list[Message]

LATER_SETTINGS = frozenset({"reasoning", "inputs", "optional", "columns"})
# The figures below are here, and not where they are used, because importing this file imports no torch.
WEIGHTS_SHARE = 0.9  # of a GPU's memory that weights may fill; the rest is for keys and values
AUTO_SLOTS = 256  # sequences decoded at once on a GPU where decoding is auto and memory allows
RESERVED_BYTES = 2 << 30  # of a GPU's free memory, for what a packed prefill computes
# Model types that continuous decoding is tested with (tests/evaluate/test_evaluate_continuous.py).
CONTINUOUS_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3", "phi", "phi3"})


@dataclass(frozen=True)
class SummarizerSettings:
    """How documents become prompts and prompts become summaries."""

    template: str  # holds {document} once, or each of `inputs`; chat without a template: {document}
    max_source_tokens: int  # of the whole prompt, special tokens included
    truncate: str  # which part of a long document is dropped: tail, head or middle
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()
    kv_cache: str = (
        "device"  # where a GPU's keys and values are kept: device, or offloaded to the CPU
    )
    summarize: str = "direct"  # what happens to a long document: direct (it is cut) or map_reduce
    format: str = "template"  # chat: documents are user messages, written by chat_template
    system: str | None = None  # the system message of conversations without one of their own
    chat_template: str | None = None  # Jinja
    decoding: str = "generate"  # generate (transformers, batch by batch), continuous, or auto
    reasoning: str | None = None  # strip: reasoning that an answer begins with is left out
    # Several texts in place of one document, by their names in the template; a document is then a dict.
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()  # those of them that may be blank
    # What the training data call each of `inputs`, or the document: names that a request may use too.
    columns: tuple[str, ...] = ()

    def save(self, package: Path) -> None:
        """Write `summarizer.json` into a package.

        Later settings are left out at their defaults: code of before them reads such a package too.
        """
        unset = {
            field.name
            for field in fields(self)
            if field.name in LATER_SETTINGS and getattr(self, field.name) == field.default
        }
        written = {name: value for name, value in asdict(self).items() if name not in unset}
        (package / SETTINGS_FILE).write_text(json.dumps(written, indent=2, sort_keys=True))

    @classmethod
    def load(cls, package: Path) -> SummarizerSettings:
        """Read `summarizer.json` of a package."""
        values = json.loads((package / SETTINGS_FILE).read_text())
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values | lists)


@dataclass(frozen=True)
class Summary:
    """One generated summary; token counts exclude padding, and the end-of-text token.

    Under map_reduce text, finished and output_tokens are those of the last summary, the one that is
    returned; prompt_tokens is the length of the prompt with the whole document in it, though the
    document was read in parts; cut_tokens counts what was cut from the summaries of the parts, if they
    did not get short enough.
    """

    text: str
    finished: bool  # ended by itself, not at max_new_tokens
    prompt_tokens: int
    output_tokens: int
    batch: int
    cut_tokens: int = 0  # of the document, to make it fit
    parts: int = 1  # texts it was summarized from: more under map_reduce, all rounds together


@dataclass(frozen=True)
class Loss:
    """Held-out loss of one document's references."""

    value: float  # nats a token; of several references the mean of theirs
    tokens: int  # of all references, each with its end-of-text
    # Of the document, beyond what serving cuts, to keep the longest reference whole.
    cut_tokens: int
