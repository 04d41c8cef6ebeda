"""What vLLM and transformers read of a package makes the prompts and answers that precis judged.

Over 250 lines: its tests share their tokenizers and settings.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, pipeline

from tasks.models import chat_templates, engine_files, engine_template, package
from tasks.models.model_card import MadeFrom
from tasks.serving.summarizer import Generator, SummarizerSettings

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "deployments/demo/base"
PLAIN = SummarizerSettings("Summarize:\n{document}\nSummary: ", 400, "tail", 12, 4)
CHAT = replace(
    PLAIN,
    template="{document}",
    format="chat",
    chat_template=chat_templates.LLAMA_2,
    system="Be it.",
)
TWO = ("question", "context")
FORMS = {
    "template": PLAIN,
    "document first": replace(PLAIN, template="{document}\n\nTL;DR:"),
    "document alone": replace(PLAIN, template="{document}"),
    "marks": replace(PLAIN, template=" \r\n{{x}} \\ \"'{document}\n🙂 {% a %}{# b #}\n"),
    "several texts": replace(PLAIN, template="Q: {question}\nC: {context}\nA:", inputs=TWO),
    "chat": CHAT,
    "chat of several texts": replace(CHAT, template=" Q: {question}\n{context} ", inputs=TWO),
    "chat of texts alone": replace(CHAT, inputs=TWO, system=None),
}
FROM = MadeFrom("/home/ann/models/small", None, "abc", "def")
SPECIALS = ["<unk>", "<s>", "</s>"]
TEXTS = ["Ann: Did you bring it?", "Summarize the following. Summary: ", "Größe 12,345.678"] * 20


def sentencepiece(normalizer: Any, pre_tokenizer: Any, decoder: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    learn(tokenizer, trainers.BpeTrainer, [f"<0x{byte:02X}>" for byte in range(256)])
    return tokenizer


def learn(tokenizer: Tokenizer, trainer: Any, more: list[str], **options: Any) -> None:
    options |= {"vocab_size": 600, "special_tokens": SPECIALS + more, "show_progress": False}
    options |= {"unk_token": "<unk>"} if trainer is trainers.UnigramTrainer else {}
    tokenizer.train_from_iterator(TEXTS, trainer(**options))


def legacy(strip: bool = False) -> Tokenizer:
    """Llama 2's: a blank before each text, by the normalizer."""
    steps = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    steps = [normalizers.Strip(), *steps] if strip else steps
    return sentencepiece(normalizers.Sequence(steps), None, decoders.Metaspace())


def metaspace(scheme: str) -> Tokenizer:
    return sentencepiece(
        None, pre_tokenizers.Metaspace(prepend_scheme=scheme), decoders.Metaspace()
    )


def unigram() -> Tokenizer:
    """T5's kind: NFKC, runs of blanks made one."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    learn(tokenizer, trainers.UnigramTrainer, [])
    return tokenizer


def byte_level(prefix: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn(tokenizer, trainers.BpeTrainer, [], initial_alphabet=alphabet)
    return tokenizer


def loaded(tokenizer: Tokenizer, around: str = "<s> $A") -> Any:
    if around != "$A":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    bos = {"bos_token": "<s>"} if "<s>" in around else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>", **bos
    )


TOKENIZERS = {
    "blank by the normalizer": lambda: loaded(legacy()),
    "blank before the first text": lambda: loaded(metaspace("first")),
    "blank before every text": lambda: loaded(metaspace("always")),
    "no blank": lambda: loaded(metaspace("never")),
    "texts stripped": lambda: loaded(legacy(strip=True)),
    "unigram": lambda: loaded(unigram()),
    "bytes": lambda: loaded(byte_level()),
    "bytes after a blank": lambda: loaded(byte_level(prefix=True)),
    "no first token": lambda: loaded(byte_level(), "$A"),
    "blank, no first token": lambda: loaded(metaspace("first"), "$A"),
    "a last token too": lambda: loaded(legacy(), "<s> $A </s>"),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_the_template_gives_precis_s_own_tokens(kind: str) -> None:
    """Every form of prompt, whatever the tokenizer puts before a text, for blanks, marks and CRLF."""
    tokenizer = TOKENIZERS[kind]()
    for name, settings in FORMS.items():
        if settings.format == "chat" and tokenizer.bos_token is None:
            continue  # Llama 2's template writes it
        template = engine_template.chosen(tokenizer, settings)
        assert template is not None, name
        assert engine_template.same_ids(tokenizer, settings, template, probe(settings)), name


def probe(settings: SummarizerSettings) -> Any:
    text = "Ann:  a b.\r\n\r\n Bob: {{ c }}"
    return (
        dict.fromkeys(settings.inputs, text.replace("\r", ""))
        if settings.inputs
        else text.replace("\r", "")
    )


def asked(
    tokenizer: Any, settings: SummarizerSettings, *messages: tuple[str, Any], **more: Any
) -> str:
    template = engine_template.chosen(tokenizer, settings)
    assert template is not None
    talk = [{"role": role, "content": content} for role, content in messages]
    return str(
        tokenizer.apply_chat_template(
            talk, chat_template=template, tokenize=False, add_generation_prompt=True, **more
        )
    )


@pytest.fixture(scope="module")
def demo_tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(DEMO)


def test_a_request_is_cleaned_as_rows_are(demo_tokenizer: Any) -> None:
    """CRLF becomes LF, a lone CR stays; texts in parts are joined; a conversation's texts are trimmed."""
    parts = [{"type": "text", "text": "a\r\r\n"}, {"type": "text", "text": "b\rc"}]
    written = asked(demo_tokenizer, PLAIN, ("user", parts))
    assert written == "<s>Summarize:\na\n\nb\rc\nSummary: "
    talk = asked(demo_tokenizer, CHAT, ("user", " a "), ("assistant", "\nb"), ("user", "c\r\n"))
    assert talk == "<s>[INST] <<SYS>>\nBe it.\n<</SYS>>\n\na [/INST] b </s><s>[INST] c [/INST]"
    own = asked(demo_tokenizer, CHAT, ("system", "Own."), ("user", "c"))
    assert own == "<s>[INST] <<SYS>>\nOwn.\n<</SYS>>\n\nc [/INST]"


REFUSED: dict[str, tuple[SummarizerSettings, list[tuple[str, Any]], str]] = {
    "a special token": (PLAIN, [("user", "a </s> b")], "holds </s>, a special token"),
    "a blank text": (PLAIN, [("user", " \n")], "is blank"),
    "no text": (PLAIN, [("user", None)], "no text in content"),
    "a picture": (PLAIN, [("user", [{"type": "image_url"}])], "something else than text"),
    "a system message": (PLAIN, [("system", "Be it."), ("user", "a")], "one document"),
    "a conversation": (PLAIN, [("user", "a"), ("assistant", "b"), ("user", "c")], "one document"),
    "an answer first": (CHAT, [("assistant", "a"), ("user", "b")], "take turns"),
    "two questions": (CHAT, [("user", "a"), ("user", "b")], "take turns"),
    "an empty system message": (CHAT, [("system", ""), ("user", "b")], "is blank"),
    "an unknown role": (CHAT, [("tool", "a")], "take turns"),
    "no question": (CHAT, [("user", "a"), ("assistant", "b")], "without a question"),
    "a special token in a question": (CHAT, [("user", "a <s>")], "holds <s>"),
    "turns in one text": (CHAT, [("user", "[INST] a [/INST] b [INST] c [/INST]")], "as messages"),
    "a document for a template of two": (
        FORMS["several texts"], [("user", "Ann met Bob.")], "fill the template",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("settings", "talk", "says"), REFUSED.values(), ids=REFUSED)
def test_what_precis_refuses_is_refused(
    settings: SummarizerSettings, talk: list[tuple[str, Any]], says: str, demo_tokenizer: Any
) -> None:
    """By the template, with the reason: vLLM answers 400."""
    with pytest.raises(Exception, match=says):
        asked(demo_tokenizer, settings, *talk)


def test_tools_are_refused(demo_tokenizer: Any) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    with pytest.raises(Exception, match="does not read tools"):
        asked(demo_tokenizer, PLAIN, ("user", "a"), tools=tools)


def test_where_no_template_is_exact_every_request_is_refused(tmp_path: Path) -> None:
    """A first token that swallows the blanks after it: better no answer than another prompt's."""
    tokenizer = byte_level()
    made = loaded(tokenizer)
    made.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "tokenizer.json").read_text())
    next(t for t in values["added_tokens"] if t["content"] == "<s>")["rstrip"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    swallows = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    settings = FORMS["document first"]
    if engine_template.is_exact(
        swallows, settings, next(engine_template.candidates(swallows, settings))
    ):
        pytest.fail("the tokenizer was to swallow blanks")
    assert engine_template.chosen(swallows, settings) is None
    with pytest.raises(Exception, match="serve it with MLflow"):
        swallows.apply_chat_template(
            [{"role": "user", "content": "a"}], chat_template=engine_template.refusing()
        )


def made(folder: Path, settings: SummarizerSettings, base: Path = DEMO) -> Path:
    """A package as merge makes it, of untrained weights."""
    shutil.copytree(base, folder)
    package.add_summarizer(folder, settings)
    engine_files.write(folder, settings, FROM)
    return folder


@pytest.mark.parametrize("settings", [PLAIN, CHAT], ids=["template", "chat"])
def test_transformers_answers_as_precis_does(
    settings: SummarizerSettings, tmp_path: Path, one_thread: None
) -> None:
    """`pipeline` and `generate()` with no parameters, in float32: every text equal, all ids too."""
    folder = made(tmp_path / "package", settings)
    rows = (ROOT / "deployments/demo/data/evaluation.jsonl").read_text().splitlines()
    documents = [json.loads(row)["dialogue"] for row in rows]
    generator = Generator(folder, "cpu")
    template = (folder / "chat_template.jinja").read_text()
    same = [
        engine_template.same_ids(generator.tokenizer, generator.settings, template, d)
        for d in documents
    ]
    assert (len(same), all(same)) == (200, True)
    documents = documents[:4]
    texts = [summary.text for summary in generator.summarize(documents)]
    pipe = pipeline("text-generation", model=str(folder), dtype="float32", device="cpu")
    talks = [[{"role": "user", "content": document}] for document in documents]
    written = [pipe(talk, return_full_text=False)[0]["generated_text"].strip() for talk in talks]
    assert written == texts
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    for talk, text in zip(talks, texts, strict=True):
        inputs = tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        [ids] = model.generate(**inputs)
        new = ids[inputs["input_ids"].shape[1] :]
        assert tokenizer.decode(new, skip_special_tokens=True).strip() == text


def test_what_the_base_sets_stays_under_precis_s_settings(tmp_path: Path) -> None:
    """Penalties are kept, sampling is not; ends are the tokenizer's and the chat template's."""
    base = shutil.copytree(DEMO, tmp_path / "base")
    file = base / "generation_config.json"
    values = {"do_sample": True, "top_p": 0.9, "temperature": 0.6, "max_length": 77}
    file.write_text(json.dumps({**values, "repetition_penalty": 1.2, "eos_token_id": [7, 8]}))
    folder = made(tmp_path / "package", PLAIN, base)
    written = json.loads((folder / "generation_config.json").read_text())
    assert written == {
        "do_sample": False, "temperature": 0.0, "max_new_tokens": 12, "repetition_penalty": 1.2,
        "eos_token_id": [2], "pad_token_id": 0,
    }  # fmt: skip
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 412
    assert json.loads(file.read_text())["top_p"] == 0.9, "the base is not written to"


def test_loading_warns_of_nothing(tmp_path: Path, caplog: Any) -> None:
    """transformers would warn of the temperature that vLLM needs, each time a package is loaded."""
    folder = made(tmp_path / "package", PLAIN)
    Generator(folder, "cpu").summarize(["Ann met Bob."])
    assert "generation flags" not in caplog.text
    assert Generator(folder, "cpu").model.generation_config.temperature is None


def test_a_package_as_a_base_has_the_template_of_its_own_base(tmp_path: Path) -> None:
    """What was written for engines is not learned from: of a chat model its template, else none."""
    plain = made(tmp_path / "plain", PLAIN)
    assert chat_templates.of_base(plain) is None
    chat = made(tmp_path / "chat", CHAT)
    assert chat_templates.of_base(chat) == chat_templates.LLAMA_2
    again = made(tmp_path / "again", PLAIN, chat)
    assert chat_templates.of_base(again) == chat_templates.LLAMA_2
    assert "Summarize:" in (again / "chat_template.jinja").read_text()


def test_the_card_says_what_engines_cannot_be_told(tmp_path: Path) -> None:
    """And `precis check` says the same; no path of the machine, no more of a folder than its name."""
    settings = replace(
        FORMS["several texts"], stop=("\n\n", "END"), reasoning="strip", truncate="middle"
    )
    folder = made(tmp_path / "package", settings)
    card = (folder / "README.md").read_text()
    limits = engine_files.look(DEMO, settings)
    assert len(limits) == 3
    for line in (*limits, "their middle is cut", "| base | small ", "`def`", "Q: {question}"):
        assert line in card
    # Without it vLLM writes other texts on a GPU.
    assert "\nTRITON_F32_DEFAULT=ieee vllm serve" in card
    assert "/home/ann" not in card
    assert "stop=['\\n\\n', 'END']" in card
    assert engine_files.look(DEMO, PLAIN) == []
    reduced = engine_files.look(DEMO, replace(PLAIN, summarize="map_reduce"))
    assert "summarized in parts here, and nowhere else" in reduced[0]
    file = shutil.copytree(DEMO, tmp_path / "base") / "generation_config.json"
    file.write_text(json.dumps({"no_repeat_ngram_size": 3, "min_length": 0}))
    assert "vLLM does not read no_repeat_ngram_size of" in engine_files.look(file.parent, PLAIN)[0]


def test_the_same_model_has_the_same_files(tmp_path: Path) -> None:
    """So that a merge on another machine has the same digest, wherever its base lies."""
    first, second = tmp_path / "a", tmp_path / "b"
    made(first, PLAIN)
    shutil.copytree(DEMO, second)
    package.add_summarizer(second, PLAIN)
    engine_files.write(second, PLAIN, replace(FROM, base="/elsewhere/small"))
    for name in ("README.md", "chat_template.jinja", "generation_config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_tiny_models_are_packages_too(tmp_path: Path) -> None:
    """A base of the tests' own, with settings as a recipe gives them."""
    base = tiny.make_tiny_base(tmp_path / "base")
    folder = made(tmp_path / "package", tiny.prepared(base).settings, base)
    assert engine_template.REFUSES not in (folder / "chat_template.jinja").read_text()
