"""Tokenizers are tried: what they lose is refused or told, and what a text spells never becomes special.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ingest_files import jsonl

from tasks.contracts.recipe import Data, Prompt
from tasks.contracts.records import Row
from tasks.ingest.prepare import look
from tasks.ingest.tokenizer import Tokenizer
from tasks.models import chat_templates
from tasks.models.encoding import IGNORED, encode_rows
from tasks.serving.summarizer import (
    SummarizerSettings,
    encode,
    encode_completion,
    require_plain,
    special_ids,
)

TEMPLATE = SummarizerSettings("Summarize:\n{document}\nSummary: ", 10_000, "tail", 32, 4)
CHAT = replace(TEMPLATE, template="{document}", format="chat", chat_template=chat_templates.LLAMA_2)
END_AFTER = {
    "type": "TemplateProcessing",
    "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}},
        {"Sequence": {"id": "A", "type_id": 0}},
        {"SpecialToken": {"id": "</s>", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
    "special_tokens": {
        "<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]},
        "</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]},
    },
}


@pytest.fixture(scope="module")
def folder(byte_tokenizer: Path) -> Path:
    return byte_tokenizer


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return Tokenizer(folder).loaded


def edited(folder: Path, target: Path, config: dict[str, Any] | None = None, **parts: Any) -> Path:
    """A copy of a tokenizer with other settings, and parts of tokenizer.json replaced."""
    shutil.copytree(folder, target)
    values = json.loads((target / "tokenizer_config.json").read_text()) | (config or {})
    given_values = {name: value for name, value in values.items() if value is not None}
    (target / "tokenizer_config.json").write_text(json.dumps(given_values))
    tokenizer = json.loads((target / "tokenizer.json").read_text()) | parts
    (target / "tokenizer.json").write_text(json.dumps(tokenizer))
    return target


def added(folder: Path, *tokens: tuple[str, int, bool]) -> list[dict[str, Any]]:
    """The added tokens of a tokenizer, and more: content, id, whether it is special."""
    known = json.loads((folder / "tokenizer.json").read_text())["added_tokens"]
    return [*known, *(known[0] | {"content": c, "id": i, "special": s} for c, i, s in tokens)]


def rows(document: str = "Ann met Bob.", summary: str = "They met.") -> list[dict[str, str]]:
    """Sixty rows; the first has these texts added."""
    values = [
        {"document": f"Talk {n}: Ann asked Bob about lamp {n}.", "summary": f"He says lamp {n}."}
        for n in range(60)
    ]
    values[0]["document"] += " " + document
    values[0]["summary"] += " " + summary
    return values


def found(
    tokenizer: Path,
    path: Path,
    values: list[dict[str, str]] | None = None,
    served: SummarizerSettings = TEMPLATE,
    allowed: float = 0.0,
) -> tuple[list[str], dict[str, Any]]:
    train = jsonl(path / "t.jsonl", values or rows())
    data = Data(train=train, evaluation_share=0.5, max_rejected_share=allowed)
    built = look(data, Prompt(format=served.format), served, tokenizer)  # type: ignore[arg-type]
    return built.problems, built.report


# --- What is lost ---------------------------------------------------------------------------------


def test_a_tokenizer_that_keeps_texts_is_used(folder: Path, tmp_path: Path) -> None:
    problems, report = found(folder, tmp_path, rows("Größe 你好 🙂\tx  y", "日本語 🙂"))
    assert (problems, report["remarks"]) == ([], [])


LOSSY = {
    "another class than the file's": (
        {"tokenizer_class": "LlamaTokenizerFast"}, {}, "loses line ends and spaces",
    ),
    "words only": (
        {}, {"pre_tokenizer": {"type": "WhitespaceSplit"}, "decoder": None}, "loses line ends: ",
    ),
    "no decoder": ({}, {"decoder": None}, "loses line ends and spaces"),
    "stripped in the middle": (
        {}, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"String": "\n"}, "behavior": "Removed", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        ]}}, "loses line ends: 'a\\\\na' becomes 'aa'",
    ),
    "no end token": ({"eos_token": None}, {}, "has no end token"),
}  # fmt: skip


@pytest.mark.parametrize(("config", "parts", "says"), LOSSY.values(), ids=LOSSY)
@pytest.mark.parametrize("served", [TEMPLATE, CHAT], ids=["template", "chat"])
def test_a_tokenizer_that_loses_text_is_refused(
    config: dict[str, Any],
    parts: dict[str, Any],
    says: str,
    served: SummarizerSettings,
    folder: Path,
    tmp_path: Path,
) -> None:
    """Before any row is read, with an example and the fix."""
    other = edited(folder, tmp_path / "other", config, **parts)
    problems, _ = found(other, tmp_path, served=served)
    assert len(problems) == 1
    assert says.replace("\\\\", "\\") in problems[0]
    assert ";" in problems[0]


def test_what_the_normalizer_declares_is_told(folder: Path, tmp_path: Path) -> None:
    """Lower case is what the model reads and learns: every report of it says so."""
    lower = edited(folder, tmp_path / "lower", normalizer={"type": "Lowercase"})
    problems, report = found(lower, tmp_path)
    assert problems == []
    assert any("'Ann: Did you bring t' becomes 'ann: did you" in r for r in report["remarks"])


def few_letters(path: Path, unknown: bool) -> Path:
    """A tokenizer of printable ASCII, one token a character: others are unknown, or lost."""
    from tokenizers import Tokenizer as Made
    from tokenizers import decoders, pre_tokenizers
    from tokenizers.models import BPE

    names = ["<pad>", "<s>", "</s>", "<unk>", "\n", "\t", *map(chr, range(32, 127))]
    made = Made(
        BPE({c: n for n, c in enumerate(names)}, [], unk_token="<unk>" if unknown else None)
    )
    made.add_special_tokens(names[:4])
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    config |= {"unk_token": "<unk>"} if unknown else {}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("unknown", [True, False])
def test_characters_that_the_tokenizer_does_not_know(unknown: bool, tmp_path: Path) -> None:
    """Lost of a summary the row is rejected; of a document it is counted; the probe's are named."""
    made = few_letters(tmp_path / "ascii", unknown)
    problems, report = found(made, tmp_path, rows(document="Größe 🙂"))
    assert problems == []
    remarks = " ".join(report["remarks"])
    assert "does not know the characters" in remarks
    assert "1 of the first 60 documents lose text" in remarks
    assert ("3 places become <unk>" in remarks) == unknown
    problems, _ = found(made, tmp_path, rows(summary="Größe"))
    assert (
        "t.jsonl:1 has a reference that the tokenizer cannot write: 'He says lamp 0. Größe'"
        in problems[1]
    )
    spelled, _ = found(made, tmp_path, rows(document="an <unk> here"))
    assert "t.jsonl:1 holds <unk>" in " ".join(spelled)


# --- Ends -----------------------------------------------------------------------------------------


def test_no_prompt_ends_in_an_end_token(folder: Path, loaded: Any, tmp_path: Path) -> None:
    """The tokenizer adds one to every text: prompts and lengths are those of one that does not."""
    other = edited(folder, tmp_path / "other", post_processor=END_AFTER)
    ending = Tokenizer(other).loaded
    assert ending("a")["input_ids"][-1] == ending.eos_token_id
    assert encode(ending, "Ann met Bob.", TEMPLATE) == encode(loaded, "Ann met Bob.", TEMPLATE)
    assert encode_completion(ending, "They met.").count(ending.eos_token_id) == 1
    (problems, report), (_, plain) = found(other, tmp_path), found(folder, tmp_path)
    assert problems == []
    assert any("adds </s> after a text" in remark for remark in report["remarks"])
    for split in ("train", "evaluation"):
        assert report[split]["prompt_tokens"] == plain[split]["prompt_tokens"]


def test_a_template_that_ends_a_text_is_refused(folder: Path, tmp_path: Path) -> None:
    ending = replace(TEMPLATE, template="{document}\nSummary: </s>")
    problems, _ = found(folder, tmp_path, served=ending)
    assert "prompt.template ends in </s>" in problems[0]


def test_another_end_in_the_generation_config_is_told(folder: Path, tmp_path: Path) -> None:
    other = edited(folder, tmp_path / "other")
    for ends, told in (([7, 9], True), (7, True), ([9, 2], False), (2, False), (None, False)):
        (other / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        _, report = found(other, tmp_path)
        assert any("ends an answer at token" in r for r in report["remarks"]) == told, ends


# --- Ids that the base knows ----------------------------------------------------------------------


def with_embedding(folder: Path, rows_: int) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    tensors = {"model.embed_tokens.weight": np.zeros((rows_, 4), np.float16)}
    save_file(tensors, str(folder / "model.safetensors"))


def test_tokens_that_the_base_has_no_embedding_for(folder: Path, tmp_path: Path) -> None:
    """Of the tokenizer, a chat template or a row: each is refused or rejected, by name."""
    size = len(Tokenizer(folder).loaded)
    more = added(
        folder, ("<|end|>", size, True), ("<tool>", size + 1, False), ("[PAD]", size + 2, True)
    )
    beyond = edited(folder, tmp_path / "beyond", added_tokens=more)
    with_embedding(beyond, size)
    assert found(beyond, tmp_path)[0] == []
    problems, _ = found(beyond, tmp_path, rows(document="a <tool> b"))
    assert "t.jsonl:1 holds the token <tool>" in problems[1]
    assert f"embedding has {size} rows" in problems[1]
    ends = "{% for m in messages %}{{ m.content + '<|end|>' }}{% endfor %}"
    problems, _ = found(beyond, tmp_path, served=replace(CHAT, chat_template=ends))
    assert any("the chat template writes <|end|>" in problem for problem in problems)
    padded = edited(beyond, tmp_path / "padded", {"pad_token": "[PAD]"})
    problems, _ = found(padded, tmp_path)
    assert "pad_token [PAD] with id" in problems[0]
    with_embedding(padded, size + 3)
    assert found(padded, tmp_path)[0] == []


# --- Text that spells a special token -------------------------------------------------------------


@pytest.mark.parametrize("served", [TEMPLATE, CHAT], ids=["template", "chat"])
@pytest.mark.parametrize("token", ["<s>", "</s>", "<pad>", "<|im_end|>"])
@pytest.mark.parametrize("where", ["document", "summary"])
def test_text_that_spells_a_special_token_is_rejected_by_line(
    where: str, token: str, served: SummarizerSettings, folder: Path, tmp_path: Path
) -> None:
    """Also one that a user added, in a document as in a summary, wherever it stands."""
    size = len(Tokenizer(folder).loaded)
    other = edited(folder, tmp_path / "o", added_tokens=added(folder, ("<|im_end|>", size, True)))
    problems, _ = found(other, tmp_path, rows(**{where: f"one{token}two"}), served)
    assert len(problems) == 2
    assert "t.jsonl:1 " in problems[1]
    assert f"holds {token}" in problems[1]
    text = f"one {token} two"
    tokenizer = Tokenizer(other).loaded
    with pytest.raises(ValueError, match="special token of the tokenizer"):
        encode(tokenizer, text, served)
    with pytest.raises(ValueError, match="special token of the tokenizer"):
        encode_completion(tokenizer, text)


def test_added_tokens_that_are_not_special_are_text(folder: Path, tmp_path: Path) -> None:
    """They are written, learned and given out like any other."""
    size = len(Tokenizer(folder).loaded)
    other = edited(folder, tmp_path / "o", added_tokens=added(folder, ("<think>", size, False)))
    assert found(other, tmp_path, rows("a <think> b", "c <think> d"))[0] == []
    tokenizer = Tokenizer(other).loaded
    ids = encode_completion(tokenizer, "c <think> d")
    assert size in ids
    assert tokenizer.decode(ids[:-1], skip_special_tokens=True) == "c <think> d"


def test_special_tokens_of_normalized_text(folder: Path, tmp_path: Path) -> None:
    """One that is only found after the normalizer changed the text is found as well."""
    size = len(Tokenizer(folder).loaded)
    tokens = added(folder, ("<end>", size, True))
    tokens[-1]["normalized"] = True
    other = edited(folder, tmp_path / "o", added_tokens=tokens, normalizer={"type": "Lowercase"})
    problems, _ = found(other, tmp_path, rows(document="an <END> here"))
    assert "becomes <end>, a special token" in problems[1]


def test_turns_of_llama_2_s_format_in_a_prompt_template(folder: Path, tmp_path: Path) -> None:
    """Between turns its marks are meant; within one they are text, and rejected."""
    talk = "[INST] a [/INST] b </s><s>[INST] c [/INST]"
    values = [{"document": f"{talk[:-8]}{n} [/INST]", "summary": f"d {n}"} for n in range(40)]
    assert found(folder, tmp_path, values)[0] == []
    values[3]["document"] = "[INST] a </s> b [/INST]"
    assert "t.jsonl:4 holds </s>" in found(folder, tmp_path, values)[0][1]


PIECES = [
    "<s>",
    "</s>",
    "<pad>",
    "</",
    "s>",
    "<",
    ">",
    "/",
    "a",
    "Ann ",
    "\n",
    "  ",
    "🙂",
    "漢",
    "é",
    "\u2028",
]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join).filter(str.strip)


@settings(deadline=None, max_examples=150, suppress_health_check=list(HealthCheck))
@given(document=TEXTS, summary=TEXTS)
def test_what_is_learned_is_the_reference_and_the_end(
    document: str, summary: str, loaded: Any
) -> None:
    """Or the row is refused, if a text spells a special token; no text ever becomes one."""
    try:
        require_plain(loaded, document)
        require_plain(loaded, summary)
    except ValueError:
        assert any(token in document + summary for token in ("<s>", "</s>", "<pad>"))
        with pytest.raises(Exception, match="special token"):
            encode_rows([Row("r", "s", document, (summary,))], loaded, TEMPLATE, 10**6)
        return
    made = encode_rows([Row("r", "s", document, (summary,))], loaded, TEMPLATE, 10**6)
    [ids], [labels] = made.input_ids, made.labels
    learned = [label for label in labels if label != IGNORED]
    assert loaded.decode(learned, skip_special_tokens=False) == summary.strip() + loaded.eos_token
    assert [i for i in ids if i in special_ids(loaded)] == [
        loaded.bos_token_id,
        loaded.eos_token_id,
    ]
    prompt = ids[1 : len(ids) - len(learned)]
    assert loaded.decode(prompt) == TEMPLATE.template.replace("{document}", document)


# --- sentencepiece --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentencepiece_model() -> bytes:
    import sentencepiece

    texts = [row.document.replace("\n", " ") for row in tiny.make_rows(80)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=380, model_type="bpe",
        byte_fallback=True, unk_id=0, bos_id=1, eos_id=2, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("class_", ["LlamaTokenizer", None])
def test_a_base_with_only_a_sentencepiece_model(
    class_: str | None, ends: bool, sentencepiece_model: bytes, tmp_path: Path
) -> None:
    """As Llama 2 and Mistral came: used, with every text kept and special tokens refused."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "tokenizer.model").write_bytes(sentencepiece_model)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    config: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    config |= {"add_bos_token": True}
    config |= {"tokenizer_class": class_} if class_ else {}
    config |= {"add_eos_token": True} if ends else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    problems, report = found(folder, tmp_path, rows("Größe 🙂\tx  y", "日本語 🙂"))
    loaded = Tokenizer(folder).loaded
    adds = loaded("a")["input_ids"][-1] == loaded.eos_token_id  # transformers' versions differ
    assert (problems, len(report["remarks"])) == ([], int(adds))
    prompt = encode(loaded, "Ann met Bob.", TEMPLATE)
    assert prompt[0] == loaded.bos_token_id
    assert loaded.decode(prompt, skip_special_tokens=True) == "Summarize:\nAnn met Bob.\nSummary: "
    problems, _ = found(folder, tmp_path, rows(document="a </s> b"))
    assert "t.jsonl:1 holds </s>" in problems[1]
