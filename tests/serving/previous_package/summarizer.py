"""The served model: prompt, truncation, stop rules and decoding in one models-from-code file.

Training encodes rows with this file, evaluation generates with it, and MLflow serves it; a copy
travels inside every package, so what was judged is what is served. It imports torch, transformers
and MLflow's own loader, and nothing of this project.

A package is a folder in Hugging Face format with two files more: `summarizer.json` (the settings
below) and this file; with a third, `continuous.py`, where the settings may ask for that decoding.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import queue
import re
import sys
import threading
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

SETTINGS_FILE = "summarizer.json"
CODE_FILE = "summarizer.py"
DECODER_FILE = "continuous.py"  # beside it where decoding may be continuous
FILLED = 0.9  # of a GPU's memory, by weights alone; the rest is for keys and values
SLOTS = 256  # documents under way on a GPU, where decoding is auto and memory allows
# Where a part of a document may end, best first: a paragraph, a sentence, a word.
BREAKS = (r"\S(?=[^\S\n]*\n[^\S\n]*\n)", r"[.!?][\"'\u2019\u201d)\]]*(?=\s)", r"\S(?=\s)")
JOIN = "\n\n"  # between summaries of parts: paragraphs, at which they can be parted again
# A round of map_reduce has to leave at most this share of the tokens; a text that does not get
# shorter is cut instead, so that there are log(tokens / room) / log(1 / SHRINK) + 1 rounds at most.
SHRINK = 0.9

Message = dict[str, str]  # {"role": system, user or assistant, "content": text}
Document = str | list[Message]  # what a prompt is made of: a text, or a conversation


@dataclass(frozen=True)
class SummarizerSettings:
    """How documents become prompts and prompts become summaries."""

    template: str  # holds {document} once
    max_source_tokens: int  # of the whole prompt, special tokens included
    truncate: str  # which part of a long document is dropped: tail, head or middle
    max_new_tokens: int
    batch_size: int
    stop: tuple[str, ...] = ()
    kv_cache: str = "device"  # where keys and values rest on a GPU: device, or offloaded to the CPU
    summarize: str = "direct"  # what becomes of a long document: direct (it is cut) or map_reduce
    format: str = "template"  # chat: documents are user messages, written by chat_template
    system: str | None = None  # the system message of conversations without one of their own
    chat_template: str | None = None  # Jinja
    decoding: str = "generate"  # how batches are written: by generate, continuous, or auto

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
    """One generated summary; token counts exclude padding, and the end-of-text token.

    Under map_reduce text, finished and output_tokens are those of the last summary, the one that is
    given out; prompt_tokens is the length of the prompt with the whole document in it, though it was
    read in parts; and cut_tokens counts what was cut from the summaries of the parts, if they would
    not get short enough.
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
    cut_tokens: (
        int  # of the document, beyond what serving cuts, to keep the longest reference whole
    )


def fit(tokenizer: Any, document: Document, settings: SummarizerSettings) -> tuple[str, int]:
    """The prompt text for a document, cut to `max_source_tokens`, and how many tokens were cut.

    Cuts fall between tokens of the document, and the *text* is cut: any server that is sent this
    text sees the same tokens. Raises ValueError when not even an empty document fits.
    """
    if settings.format == "chat":
        messages, cut = fit_chat(tokenizer, document, settings)
        return render(tokenizer, messages, settings), cut
    assert isinstance(document, str)  # a template has one place, for one text
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


def encode(tokenizer: Any, document: Document, settings: SummarizerSettings) -> list[int]:
    """Token ids of the prompt, with the special tokens that the tokenizer adds by itself.

    A chat template writes all special tokens that it wants; there the tokenizer adds none.
    """
    text = fit(tokenizer, document, settings)[0]
    if settings.format == "chat":
        return _ids(tokenizer, text)
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


@functools.lru_cache(maxsize=2048)
def _known(tokenizer: Any, document: str, settings: SummarizerSettings) -> tuple[list[int], int]:
    """`encode`, and what `fit` cut. Asked three times of each document; a tenth of a GPU's time."""
    text, cut = fit(tokenizer, document, settings)
    if settings.format == "chat":
        return _ids(tokenizer, text), cut
    return tokenizer(text)["input_ids"], cut


def encode_completion(tokenizer: Any, summary: str) -> list[int]:
    """Token ids of a reference as the model shall write it, end-of-text included."""
    ids = tokenizer(summary.strip(), add_special_tokens=False)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def served_attention(package: Path) -> str | None:
    """The `attn_implementation` that computes this model's own function; None: transformers' choice.

    That is sdpa, which silently leaves out the cap that Gemma 2 puts on attention scores.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(package).get_text_config()
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def spread(need: int) -> bool:
    """Whether a model of `need` bytes is for several GPUs: the first one is too small for it.

    What others hold of it at the moment decides nothing. The model's layers are then put on all of
    them, one part after the other (accelerate's device_map auto).
    """
    import torch

    if torch.cuda.device_count() < 2:  # 0 without any
        return False
    _, total = torch.cuda.mem_get_info(0)
    share = float(torch.cuda.get_per_process_memory_fraction(0))
    return need > FILLED * share * int(total)


def weights(package: Path) -> int:
    """How many numbers a package's weights are."""
    from safetensors import safe_open

    found = 0
    for path in package.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:  # imports no torch
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        found += sum(map(prod, shapes))
    return found


def refuse_offloaded(model: Any) -> None:
    """Raise ValueError where a model that was to be spread found no room on the GPUs."""
    if {"cpu", "disk"} & set(map(str, getattr(model, "hf_device_map", {}).values())):
        raise ValueError(
            "the memory of all GPUs together does not hold the model; free some, or use more of them"
        )


def whole_length(tokenizer: Any, document: str, settings: SummarizerSettings) -> int:
    """Tokens of the prompt with nothing cut from the document."""
    return len(encode(tokenizer, document, replace(settings, max_source_tokens=sys.maxsize)))


def split(tokenizer: Any, document: str, settings: SummarizerSettings) -> list[str]:
    """A document in parts of about equal length, each of which fits a prompt whole.

    A part ends between two tokens, where a paragraph ends nearby, or else a sentence, or a word. No
    more than white space is lost between them. Raises ValueError when a prompt has no room for them.
    """
    spans = tokenizer(document, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in spans["offset_mapping"]]
    parts, first = [], 0
    while first < len(ends):
        begin = ends[first - 1] if first else 0
        first += _part(tokenizer, document, ends, first, settings)
        parts.append(document[begin : ends[first - 1]].strip())
    return [part for part in parts if part]


def _part(
    tokenizer: Any, document: str, ends: list[int], first: int, settings: SummarizerSettings
) -> int:
    """How many tokens, from token `first` on, are the next part: at least one."""
    left, begin = len(ends) - first, ends[first - 1] if first else 0
    room = settings.max_source_tokens - len(encode(tokenizer, "", settings))
    while room > 0:
        size = left
        if left > room:
            size = _to_break(document, ends, first, -(-left // -(-left // room)), room)
        part = document[begin : ends[first + size - 1]].strip()
        excess = whole_length(tokenizer, part, settings) - settings.max_source_tokens
        if excess <= 0:
            return size
        room = size - excess  # tokens may join differently at a cut
    raise ValueError(
        f"a prompt of {settings.max_source_tokens} tokens leaves no room beside the template for a "
        "part of a document; shorten prompt.template, or raise prompt.max_source_tokens"
    )


def _to_break(document: str, ends: list[int], first: int, even: int, most: int) -> int:
    """About `even` tokens from `first` on, half as many more or less and at most `most`: to a break.

    To the paragraph's end nearest to the middle; if there is none, the sentence's; or else the word's.
    """
    low = first + even - even // 2 - 1
    high = first + min(even + even // 2, most) - 1
    for pattern in BREAKS:
        places = []
        for found in re.compile(pattern).finditer(document, max(ends[low] - 1, 0)):
            if found.end() > ends[high]:
                break
            places.append(found.end())
        if places:
            place = min(places, key=lambda at: abs(at - ends[first + even - 1]))
            return bisect_left(ends, place, low, high) - first + 1
    return even


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


# --- Chat: documents as conversations, in the model's own chat template ---------------------------

OPEN, CLOSE = "[INST]", "[/INST]"
SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
END_MARKS = re.compile(r"(\s*</?s>)*\s*$")


def messages_of(document: Document, system: str | None = None) -> list[Message]:
    """The conversation that a document is, up to a question without its answer.

    A text in Llama 2's chat format (`[INST] question [/INST] answer </s><s>[INST] question [/INST]`,
    perhaps with a `<<SYS>>` part) is taken apart; any other text is one question. Messages are
    without white space around them. A conversation with no system message gets `system`. Raises
    ValueError for a conversation in which something is missing.
    """
    messages = _taken_apart(document) if isinstance(document, str) else list(document)
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("the conversation ends without a question; add one")
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _taken_apart(text: str) -> list[Message]:
    inner = text.strip().removeprefix("<s>").strip()
    if not (inner.startswith(OPEN) and inner.endswith(CLOSE)):
        return [{"role": "user", "content": text.strip()}]
    messages: list[Message] = []
    turns = inner.split(OPEN)[1:]
    for number, turn in enumerate(turns, 1):
        question, mark, answer = turn.partition(CLOSE)
        answer = END_MARKS.sub("", answer).strip()
        if number == 1 and (system := SYSTEM.match(question)):
            messages.append({"role": "system", "content": system.group(1).strip()})
            question = question[system.end() :]
        if not question.strip():
            raise ValueError(f"turn {number} has a blank question; write it, or remove the turn")
        if number < len(turns) and not answer:
            raise ValueError(f"turn {number} has no answer; write it, or remove the turn")
        if not mark or CLOSE in answer or "</s>" in answer:
            raise ValueError(f"turn {number} is not {OPEN} question {CLOSE} answer; mend its marks")
        messages.append({"role": "user", "content": question.strip()})
        if answer:
            messages.append({"role": "assistant", "content": answer})
    return messages


def render(tokenizer: Any, messages: list[Message], settings: SummarizerSettings) -> str:
    """The conversation as the tokenizer writes it: ready for an answer when it ends in a question."""
    text: str = tokenizer.apply_chat_template(
        messages,
        chat_template=settings.chat_template,
        tokenize=False,
        add_generation_prompt=messages[-1]["role"] == "user",
    )
    return text


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def fit_chat(
    tokenizer: Any, document: Document, settings: SummarizerSettings
) -> tuple[list[Message], int]:
    """A document's conversation, cut to a prompt of `max_source_tokens`, and how many tokens went.

    The oldest turns go first, each question with its answer; the system message stays. Only a last
    question that is too long by itself is cut, as `settings.truncate` says. Raises ValueError when
    not even an empty one fits.
    """
    messages, most = messages_of(document, settings.system), settings.max_source_tokens
    whole = length = len(_ids(tokenizer, render(tokenizer, messages, settings)))
    first = int(messages[0]["role"] == "system")
    while length > most and len(messages) > first + 1:
        messages = messages[:first] + messages[first + 2 :]
        length = len(_ids(tokenizer, render(tokenizer, messages, settings)))
    if length > most:
        messages, length = _cut_question(tokenizer, messages, length - most, settings)
    return messages, whole - length


def _cut_question(
    tokenizer: Any, messages: list[Message], excess: int, settings: SummarizerSettings
) -> tuple[list[Message], int]:
    """The messages with the last one's text cut, and the prompt's length then."""
    *before, question = messages
    text = question["content"]
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in spans["offset_mapping"]]
    keep = len(ends) - excess
    while keep >= 0:  # as in `fit`
        cut = [*before, question | {"content": _cut(text, ends, keep, settings.truncate)}]
        length = len(_ids(tokenizer, render(tokenizer, cut, settings)))
        if length <= settings.max_source_tokens:
            return cut, length
        keep -= max(1, length - settings.max_source_tokens)
    raise ValueError(
        f"the chat template alone is longer than {settings.max_source_tokens} tokens; shorten "
        "prompt.system, or raise prompt.max_source_tokens or lower evaluation.max_new_tokens"
    )


def encode_answer(
    tokenizer: Any, document: Document, answer: str, settings: SummarizerSettings
) -> tuple[list[int], list[int], list[int]]:
    """Prompt ids, the answer's ids with the end that the model shall write, and what follows that.

    The prompt ids are those of `encode`: the text before an answer is tokenized by itself, as a
    server does it. Where question and answer tokenized together begin otherwise (a token across the
    border), the answer is tokenized by itself too. What follows the end is what the chat template
    writes there (ChatML: a line break); it belongs to the next turn's prompt. Raises ValueError when
    the template's prompt is not how it begins an answered question.
    """
    if settings.format != "chat":
        return encode(tokenizer, document, settings), encode_completion(tokenizer, answer), []
    messages, _ = fit_chat(tokenizer, document, settings)
    before = render(tokenizer, messages, settings)
    said = {"role": "assistant", "content": answer.strip()}
    whole = render(tokenizer, [*messages, said], settings)
    if not whole.startswith(before):
        raise ValueError(
            "the chat template begins an answer otherwise than it asks for one; name another in "
            "prompt.chat_template"
        )
    prompt, ids = _ids(tokenizer, before), _ids(tokenizer, whole)
    after = ids[len(prompt) :]
    if ids[: len(prompt)] != prompt:
        after = _ids(tokenizer, whole[len(before) :])
    end = turn_end(tokenizer, settings)
    if end not in after:
        return prompt, [*after, tokenizer.eos_token_id], []
    at = after.index(end) + 1
    return prompt, after[:at], after[at:]


@functools.lru_cache(maxsize=8)
def turn_end(tokenizer: Any, settings: SummarizerSettings) -> int | None:
    """The special token that the chat template writes after an answer; None: it writes none."""
    if settings.format != "chat":
        return None
    question = {"role": "user", "content": "Well?"}
    whole = render(tokenizer, [question, {"role": "assistant", "content": "Yes."}], settings)
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return next((i for i in _ids(tokenizer, whole.rpartition("Yes.")[2]) if i in special), None)


class Generator:
    """A loaded package: documents in, summaries out, greedy, in the order given."""

    # What `losses` computes; under another definition it is another metric (sealed, evaluate/seal.py).
    loss_definition = "nats a completion token with end-of-text, mean over a document's references"

    def __init__(self, package: Path, device: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.settings = SummarizerSettings.load(package)
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = AutoTokenizer.from_pretrained(package)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        ends = (self.tokenizer.eos_token_id, turn_end(self.tokenizer, self.settings))
        self.ends = [i for i in dict.fromkeys(ends) if i is not None]
        self.spread = device is None and spread(2 * weights(package))
        model = AutoModelForCausalLM.from_pretrained(
            package,
            dtype=self._dtype(),
            attn_implementation=served_attention(package),
            device_map="auto" if self.spread else None,
        )
        if self.spread:
            refuse_offloaded(model)
            self.device = str(model.device)  # the first layer's
        self.model = (model if self.spread else model.to(self.device)).eval()
        forget_lengths(self.model)
        self.package = package
        self.refusal: str | None = None  # why continuous decoding is not used though it is wanted
        self._decoder: tuple[SummarizerSettings, Any] | None = None

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
        """Indices of documents by prompt length (`prompt_tokens`), longest first, in batches."""
        lengths = [self._prompt_tokens(text) for text in documents]
        order = sorted(range(len(documents)), key=lambda i: (-lengths[i], i))
        size = self.settings.batch_size
        return [order[i : i + size] for i in range(0, len(order), size)]

    def summarize(self, documents: list[str]) -> list[Summary]:
        """Summaries of the documents, in their order."""
        found: dict[int, Summary] = {}
        plan = dict(enumerate(self.batches(documents)))
        written = self.summarize_batches(documents, plan)
        for batch, summaries in zip(plan.values(), written, strict=True):
            found |= dict(zip(batch, summaries, strict=True))
        return [found[i] for i in range(len(documents))]

    def _prompt_tokens(self, document: str) -> int:
        if self.settings.summarize == "map_reduce":
            return whole_length(self.tokenizer, document, self.settings)
        return len(self._prompt(document)[0])

    def _prompt(self, document: Document) -> tuple[list[int], int]:
        """A document's prompt ids, and how many of its tokens were cut."""
        if isinstance(document, str):
            return _known(self.tokenizer, document, self.settings)
        return encode(self.tokenizer, document, self.settings), fit(
            self.tokenizer, document, self.settings
        )[1]

    def summarize_batch(self, documents: list[str], batch: int = 0) -> list[Summary]:
        """Summaries of one batch, which depend on no other batch: writing it again is a replay."""
        [written] = self.summarize_batches(documents, {batch: list(range(len(documents)))})
        return written

    def summarize_batches(
        self, documents: list[str], batches: dict[int, list[int]]
    ) -> Iterator[list[Summary]]:
        """Summaries of each batch in turn: a batch's number, and which of the documents are in it.

        Under continuous decoding later batches are begun while the last of an earlier one are still
        being written; what is written is the same (see `continuous.py`).
        """
        if (decoder := self.decoder()) is None:
            yield from self._batch_by_batch(documents, batches)
            return
        texts = [documents[i] for batch in batches.values() for i in batch]
        condensed = self.condense(texts)
        prompts = [self._prompt(text)[0] for text, _ in condensed]
        longest = max(map(len, prompts), default=0)
        if self.settings.decoding == "auto" and not decoder.fits(longest):
            self.refusal = f"memory has no room beside it for a prompt of {longest} tokens"
            self._decoder = self.settings, None
            yield from self._batch_by_batch(documents, batches)
            return
        ending, ids, first = decoder.write(prompts), dict[int, list[int]](), 0
        for number, batch in batches.items():
            mine = range(first, first + len(batch))
            first += len(batch)
            while any(i not in ids for i in mine):
                ids |= [next(ending)]
            yield self._completed(
                [texts[i] for i in mine],
                [condensed[i] for i in mine],
                [self._summary(ids[i], len(prompts[i]), number) for i in mine],
            )

    def _batch_by_batch(
        self, documents: list[str], batches: dict[int, list[int]]
    ) -> Iterator[list[Summary]]:
        """Summaries of each batch in turn, by `generate`."""
        for number, batch in batches.items():
            texts = [documents[i] for i in batch]
            condensed = self.condense(texts)
            written = self._write([text for text, _ in condensed], number)
            yield self._completed(texts, condensed, written)

    def decoder(self) -> Any:
        """The continuous decoder, where settings want it and the model is one that it knows.

        None means `generate`; where the decoder was wanted, `refusal` then says why.
        """
        asked = self.settings.decoding
        if asked == "generate" or (asked == "auto" and self.device == "cpu"):
            return None
        if self._decoder is None or self._decoder[0] != self.settings:
            path = self.package / DECODER_FILE
            spec = importlib.util.spec_from_file_location("precis_continuous", path)
            assert spec is not None  # its name ends in .py
            assert spec.loader is not None
            code = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(code)
            # As `generate` does: what ours leaves open is the base's.
            ours = self._decoding()["generation_config"]
            config, _ = self.model._prepare_generation_config(ours)
            self.refusal = code.refusal(self.model, config)
            made = None
            if not self.refusal:
                longest, slots = self.settings.max_source_tokens, self.settings.batch_size
                slots = max(slots, SLOTS) if asked == "auto" else slots
                made = code.Decoder(
                    self.model, self.tokenizer, config, slots=slots, longest=longest
                )
            self._decoder = self.settings, made
        return self._decoder[1]

    def _completed(
        self, documents: list[str], condensed: list[tuple[str, int]], written: list[Summary]
    ) -> list[Summary]:
        """What was written of the documents' condensed texts, with what is said of the documents."""
        found = []
        for document, (text, parts), summary in zip(documents, condensed, written, strict=True):
            cut = self._prompt(text)[1]
            one = replace(summary, cut_tokens=cut, parts=parts)
            if parts > 1:
                one = replace(one, prompt_tokens=self._prompt_tokens(document))
                if not text:  # no part had a summary, so there is nothing to summarize
                    one = replace(one, text="", finished=True, output_tokens=0)
            found.append(one)
        return found

    def condense(self, documents: list[str]) -> list[tuple[str, int]]:
        """For each document a text for one prompt, and from how many parts it was made.

        A document stands for itself (1), unless map_reduce is set and it does not fit. Then its parts
        are summarized, and their summaries together are a document again: round by round until it
        fits, or gets no shorter (see SHRINK; such a text is cut, like any document without map_reduce).
        """
        texts, parts = list(documents), [1] * len(documents)
        most, waiting = self.settings.max_source_tokens, list(range(len(documents)))
        if self.settings.summarize != "map_reduce":
            waiting = []
        lengths = {i: self._prompt_tokens(texts[i]) for i in waiting}
        while waiting := [i for i in waiting if lengths[i] > most]:
            groups = {i: split(self.tokenizer, texts[i], self.settings) for i in waiting}
            for i, said in self._summaries_of(groups).items():
                parts[i] += len(said) - (parts[i] == 1)
                texts[i] = JOIN.join(text for text in said if text)
                before, lengths[i] = lengths[i], self._prompt_tokens(texts[i])
                if lengths[i] > SHRINK * before:
                    waiting.remove(i)
        return [(text, max(count, 1)) for text, count in zip(texts, parts, strict=True)]

    def _summaries_of(self, groups: dict[int, list[str]]) -> dict[int, list[str]]:
        """What is written for each part. All of them fit, so this goes no deeper.

        A single part stands for itself: only white space kept the document from fitting.
        """
        several = [part for group in groups.values() if len(group) > 1 for part in group]
        written = iter(self.summarize(several))
        return {
            i: [next(written).text for _ in group] if len(group) > 1 else group
            for i, group in groups.items()
        }

    def _write(self, documents: list[str], batch: int) -> list[Summary]:
        """Summaries of one batch, each from one prompt, left-padded to the longest."""
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
            eos_token_id=self.ends or None,
            pad_token_id=self.tokenizer.pad_token_id,
            stop_strings=list(self.settings.stop) or None,
            # The same numbers, wherever they rest between two layers.
            cache_implementation="offloaded"
            if self.settings.kv_cache == "offloaded" and self.device != "cpu"
            else None,
        )
        return {
            "generation_config": config,
            "tokenizer": self.tokenizer if self.settings.stop else None,
        }

    def _summary(self, ids: list[int], prompt_tokens: int, batch: int) -> Summary:
        length = next((n for n, i in enumerate(ids) if i in self.ends), len(ids))
        ended, ids = length < len(ids), ids[:length]
        # Padding: a stop string ended this summary while others of its batch ran on.
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        for stop in self.settings.stop:
            if stop in text:
                text, ended = text[: text.index(stop)], True
        return Summary(text.strip(), ended, prompt_tokens, len(ids), batch)

    def losses(self, documents: Sequence[str], references: Sequence[Sequence[str]]) -> list[Loss]:
        """Held-out loss of each document's references: mean negative log-likelihood a token, in nats.

        Of a reference as the model should write it, end-of-text included, given the prompt that the
        document makes (cut to fit, under map_reduce too: as in training). A document with several
        references has the mean of theirs, each counting the same however long it is. A reference is
        never cut: where prompt and reference exceed the context together, more is cut from the
        document (`cut_tokens`). Raises ValueError when even the bare prompt leaves it no room.
        """
        made = [
            [self._example(document, reference) for reference in several]
            for document, several in zip(documents, references, strict=True)
        ]
        flat = [(prompt, completion) for several in made for prompt, completion, _ in several]
        values = iter(self._mean_nats(flat))
        return [
            Loss(
                sum(next(values) for _ in several) / len(several),
                sum(len(completion) for _, completion, _ in several),
                max(cut for _, _, cut in several),
            )
            for several in made
        ]

    def _example(self, document: str, reference: str) -> tuple[list[int], list[int], int]:
        """Prompt ids, completion ids, and how much more than in serving was cut from the document."""
        tight = served = self.settings
        prompt, completion, _ = encode_answer(self.tokenizer, document, reference, served)
        try:
            if (room := self._context() - len(completion)) < served.max_source_tokens:
                tight = replace(served, max_source_tokens=room)
                prompt, completion, _ = encode_answer(self.tokenizer, document, reference, tight)
            cut = fit(self.tokenizer, document, tight)[1] - fit(self.tokenizer, document, served)[1]
        except ValueError as error:
            raise ValueError(
                f"a reference of {len(completion)} tokens ({reference[:60]!r}) and its prompt do not "
                f"fit a context of {self._context()} together: {error}"
            ) from error
        if not prompt:
            raise ValueError("an empty prompt foretells nothing: give prompt.template some text")
        return prompt, completion, cut

    def _context(self) -> int:
        """Tokens that the model reads and writes together: what it says, and all that is served."""
        said = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 0
        return max(int(said), self.settings.max_source_tokens + self.settings.max_new_tokens)

    def _mean_nats(self, examples: list[tuple[list[int], list[int]]]) -> list[float]:
        """Mean negative log-likelihood of each completion after its prompt, in the order given."""
        order = sorted(range(len(examples)), key=lambda i: (-len(examples[i][0]), i))
        size = self.settings.batch_size
        found: dict[int, float] = {}
        for start in range(0, len(order), size):
            batch = order[start : start + size]
            found |= dict(zip(batch, self._nats([examples[i] for i in batch]), strict=True))
        return [found[i] for i in range(len(examples))]

    def _nats(self, examples: list[tuple[list[int], list[int]]]) -> list[float]:
        """`_mean_nats` of one batch, padded on the right, where no real token can see it."""
        import torch

        width = max(len(prompt) + len(completion) for prompt, completion in examples)
        rows = [[*prompt, *completion] for prompt, completion in examples]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=self.device)
        mask = torch.tensor(
            [[1] * len(r) + [0] * (width - len(r)) for r in rows], device=self.device
        )
        # A token is foretold at the position before it. Logits are kept only where some row of the
        # batch needs them: all of 16 x 4,096 by a vocabulary of 32,000 would be 4 GiB in 16 bits.
        spans = [
            (len(prompt) - 1, len(row) - 1) for (prompt, _), row in zip(examples, rows, strict=True)
        ]
        kept = sorted({position for begin, end in spans for position in range(begin, end)})
        with torch.inference_mode():
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                # No tensor: of a model that is spread, the head is on another GPU than the first layer.
                logits_to_keep=kept,
                use_cache=False,
            ).logits
        if logits.shape[1] != len(kept):  # an architecture that does not know it gives all
            logits = logits[:, kept]
        found = []
        for row, (begin, end), (_, completion) in zip(logits, spans, examples, strict=True):
            at = bisect_left(kept, begin)
            likely = row[at : at + end - begin].float().log_softmax(-1)
            wanted = torch.tensor(completion, device=self.device)[:, None]
            found.append(-float(likely.gather(-1, wanted).double().mean()))
        return found

    # --- Streaming: one document, token by token ---------------------------------------------------

    def stream(self, document: Document) -> Iterator[str]:
        """One document's summary in pieces, as it is written; joined, what `summarize_batch` gives.

        (By `generate`: where batches are written continuously and in 16 bits, ties may fall otherwise.)
        The greedy `generate` call runs beside the reader. A piece is given out once nothing can
        change it: no part of a stop string, no white space at the end, no half character. Closing
        the iterator ends the generation.
        """
        tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        halt = threading.Event()
        ids: list[int] = []
        sent = ""
        with ThreadPoolExecutor(1) as beside:
            writing = beside.submit(self._write_into, document, tokens, halt)
            try:
                while (token := tokens.get()) is not None:
                    ids.append(token)
                    certain = self._certain(ids)
                    if len(certain) > len(sent):
                        yield certain[len(sent) :]
                        sent = certain
                writing.result()
                if rest := self._summary(ids, 0, 0).text[len(sent) :]:
                    yield rest
            finally:
                halt.set()

    def _write_into(
        self, document: Document, tokens: queue.SimpleQueue[int | None], halt: threading.Event
    ) -> None:
        """Put each new token into the queue, then None, whatever happened."""
        import torch
        from transformers import StoppingCriteriaList

        try:
            if isinstance(document, str):
                document, parts = self.condense([document])[0]
                if parts > 1 and not document:  # as in `summarize_batch`
                    return
            prompt = torch.tensor(
                [encode(self.tokenizer, document, self.settings)], device=self.device
            )
            with torch.inference_mode():
                self.model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    streamer=_Streamer(tokens),
                    stopping_criteria=StoppingCriteriaList(
                        [lambda ids, *_, **__: ids.new_full((len(ids),), halt.is_set()).bool()]
                    ),
                    **self._decoding(),
                )
        finally:
            tokens.put(None)

    def _certain(self, ids: list[int]) -> str:
        """The part of a summary under way that no further token can change."""
        length = next((n for n, i in enumerate(ids) if i in self.ends), len(ids))
        text = str(self.tokenizer.decode(ids[:length], skip_special_tokens=True))
        found = [text.index(stop) for stop in self.settings.stop if stop in text]
        if found:
            return text[: min(found)].strip()
        text = text.rstrip("\ufffd")  # first: half a character may be a stop string's next
        begun = [
            n for stop in self.settings.stop for n in range(1, len(stop)) if text.endswith(stop[:n])
        ]
        return text[: len(text) - max(begun, default=0)].strip()


class _Streamer:
    """What `generate` hands its tokens to, the prompt first."""

    def __init__(self, tokens: queue.SimpleQueue[int | None]) -> None:
        self.tokens, self.prompt = tokens, True

    def put(self, value: Any) -> None:
        """`value`: the prompt [1, tokens], then one new token [1] at a time."""
        if not self.prompt:
            self.tokens.put(int(value[0]))
        self.prompt = False

    def end(self) -> None:
        """`generate` is done; the queue's end is put by who called it."""


# MLflow runs this file under a name of its own; imported as part of the project it only defines, and
# does without MLflow (its import takes two seconds, in every step's process).
if not __package__:
    import mlflow

    class Summarizer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
        """`mlflow.pyfunc` around a Generator: a list of documents in, a list of summaries out."""

        def load_context(self, context: Any) -> None:
            """Load the package from the model's artifacts."""
            self.generator = Generator(Path(context.artifacts["package"]))

        def predict(self, context: Any, model_input: list[str], params: Any = None) -> list[str]:
            """Summaries of the documents, in their order."""
            return [summary.text for summary in self.generator.summarize(list(model_input))]

    mlflow.models.set_model(Summarizer())
