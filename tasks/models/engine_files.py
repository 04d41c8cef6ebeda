"""The files by which other engines answer as judged: chat template, decoding, length, model card.

Written into each merged package, before its digest is taken. precis's own code reads `summarizer.json` and
is not changed by them. What these files cannot say is named in the model card and by `precis check`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.models import chat_templates, engine_template, model_card
from tasks.models.json_files import read_object, write_object
from tasks.serving.summarizer import SummarizerSettings, answer_end

GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"
# Of a base's generation_config: what only sampling reads, and the limits that ours replace.
REPLACED = frozenset(
    {
        *("do_sample", "temperature", "top_k", "top_p", "top_h", "min_p", "typical_p"),
        *("epsilon_cutoff", "eta_cutoff", "num_beams", "early_stopping", "length_penalty"),
        *("max_length", "max_new_tokens", "stop_strings", "eos_token_id", "pad_token_id"),
        "_from_model_config",
    }
)
# What changes scores in transformers' generate, also when it is greedy, and what vLLM reads of it.
PROCESSORS = frozenset(
    {
        *("no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
        *("forced_bos_token_id", "forced_eos_token_id", "min_length", "min_new_tokens"),
        *("encoder_repetition_penalty", "exponential_decay_length_penalty", "sequence_bias"),
        *("guidance_scale", "remove_invalid_values", "watermarking_config"),
    }
)


def write(package: Path, settings: SummarizerSettings, made_from: model_card.MadeFrom) -> None:
    """Add the files to a package; it must hold its tokenizer, `summarizer.json` and the base's files."""
    tokenizer = _tokenizer(package)
    file = package / chat_templates.FILE
    base_template = chat_templates.of_base(package)
    template = engine_template.chosen(tokenizer, settings)
    missing = limits(package, settings, tokenizer, template)
    file.unlink(missing_ok=True)
    file.write_text(template or engine_template.refusing(), encoding="utf-8")
    if base_template is not None:  # for runs that take this package as their base
        (package / chat_templates.BASE_FILE).write_text(base_template, encoding="utf-8")
    _replace(package / GENERATION, generation_config(package, settings, tokenizer))
    config = read_object(package / TOKENIZER) if (package / TOKENIZER).is_file() else {}
    length = settings.max_source_tokens + settings.max_new_tokens
    _replace(package / TOKENIZER, config | {"model_max_length": length})
    card = model_card.text(settings, made_from, missing, spelled=template)
    (package / model_card.FILE).unlink(missing_ok=True)
    (package / model_card.FILE).write_text(card, encoding="utf-8")


def look(folder: Path, settings: SummarizerSettings) -> list[str]:
    """What other engines could not be told of a package made of this base; for `precis check`."""
    tokenizer = _tokenizer(folder)
    return limits(folder, settings, tokenizer, engine_template.chosen(tokenizer, settings))


def limits(
    folder: Path, settings: SummarizerSettings, tokenizer: Any, template: str | None
) -> list[str]:
    """What the files cannot say, each with what to do about it. `template`: None where none is exact."""
    end_text, stop = answer_end(tokenizer, settings)[0], list(settings.stop)
    config = read_object(folder / "config.json")
    scores = sorted(PROCESSORS & _set_in(folder))
    backend = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    found = [
        (
            template is None,
            "no chat template gives this model's prompts: the package's refuses every request; serve it with "
            "MLflow, or send token ids",
        ),
        (
            bool(stop or end_text),
            "strings that end an answer: send stop="
            f"{[*stop, *([end_text] if end_text else [])]!r} with each request (transformers: stop_strings "
            "and tokenizer), and cut the answer there",
        ),
        (
            settings.reasoning == "strip",
            "reasoning is left out of answers here: remove what stands up to its end mark",
        ),
        (
            settings.summarize == "map_reduce",
            "documents that do not fit a prompt are summarized in parts here, and nowhere else: send only "
            "documents that fit",
        ),
        (
            bool(settings.inputs),
            f"the prompt is made of several texts ({', '.join(settings.inputs)}): fill the template of the "
            "model card, and send what it gives as the user's message",
        ),
        (
            bool(scores),
            f"vLLM does not read {', '.join(scores)} of generation_config.json, which change what is written",
        ),
        (
            bool(config.get("attn_logit_softcapping")),
            'transformers leaves out the cap on attention scores: load with attn_implementation="eager"',
        ),
        (
            _rope(config) == "dynamic",
            "vLLM fixes dynamic RoPE for one length: its texts differ past the base's own context",
        ),
        (
            backend is not None and type(backend).__name__ != "BPE",
            "transformers' pipeline joins words and marks by itself: give it "
            "clean_up_tokenization_spaces=False",
        ),
    ]
    return [line for holds, line in found if holds]


def generation_config(
    package: Path, settings: SummarizerSettings, tokenizer: Any
) -> dict[str, Any]:
    """What `generate` does when precis calls it, as a file: the base's, under precis's own arguments.

    Raises ValueError when the chat template cannot be rendered.
    """
    file = package / GENERATION
    base = read_object(file) if file.is_file() else {}
    ends = (tokenizer.eos_token_id, answer_end(tokenizer, settings)[1])
    end_ids = [i for i in dict.fromkeys(ends) if i is not None]
    pad = tokenizer.pad_token_id
    kept = {name: value for name, value in base.items() if name not in REPLACED}
    return kept | {
        "do_sample": False,
        "temperature": 0.0,  # vLLM knows no do_sample; transformers remarks on it, and is greedy
        "max_new_tokens": settings.max_new_tokens,
        "eos_token_id": end_ids or base.get("eos_token_id"),
        "pad_token_id": tokenizer.eos_token_id if pad is None else pad,
    }


def _rope(config: dict[str, Any]) -> str | None:
    """The kind of RoPE, as transformers 5 or 4 names it."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return parameters.get("rope_type") or parameters.get("type")


def _set_in(folder: Path) -> set[str]:
    """Names in generation_config.json with a value that does something."""
    file = folder / GENERATION
    values = read_object(file) if file.is_file() else {}
    idle = {"encoder_repetition_penalty": 1.0}
    return {name for name, value in values.items() if value and value != idle.get(name)}


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _replace(file: Path, values: dict[str, Any]) -> None:
    file.unlink(missing_ok=True)  # it may be a link to the base's
    write_object(file, values)
