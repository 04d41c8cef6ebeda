"""Conversations as training sequences: loss on every answer, and on nothing else, exactly.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import itertools
import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_chat_templates import CHATML, SYSTEM, messages, settings

from tasks.contracts.records import Row
from tasks.ingest.chat import split_chat
from tasks.models.encoding import IGNORED, encode_rows
from tasks.serving.summarizer import encode, encode_answer, fit_chat, messages_of, render

EVERYTHING = 10**6
CONVERSATION = (
    "[INST] <<SYS>>\nYou answer briefly.\n<</SYS>>\n\nWhere is Ben? [/INST] At the market. </s><s>"
    "[INST] Why? [/INST]  For tea.  </s><s>[INST] And Anna? [/INST]"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


def spans(ids: list[int], labels: list[int], tokenizer: Any) -> list[tuple[bool, str]]:
    """Runs of learnt and of ignored tokens, decoded, special tokens shown."""
    learnt = [label != IGNORED for label in labels]
    assert [i for i, keep in zip(ids, learnt, strict=True) if keep] == [
        label for label in labels if label != IGNORED
    ]
    learned_texts = []
    for keep, run in itertools.groupby(zip(learnt, ids, strict=True), key=lambda pair: pair[0]):
        text = tokenizer.decode([i for _, i in run], clean_up_tokenization_spaces=False)
        learned_texts.append((keep, text))
    return learned_texts


def sequences(row: Row, tokenizer: Any, **changes: Any) -> list[list[tuple[bool, str]]]:
    limit = changes.pop("limit", EVERYTHING)
    made = encode_rows(
        [row], tokenizer, settings(**{"max_source_tokens": EVERYTHING} | changes), limit
    )
    return [
        spans(ids, labels, tokenizer)
        for ids, labels in zip(made.input_ids, made.labels, strict=True)
    ]


def row_of(document: str, *references: str) -> Row:
    return Row("row", "source", document, references)


EXPECTED = [
    (False, "<s>[INST] <<SYS>>\nYou answer briefly.\n<</SYS>>\n\nWhere is Ben? [/INST]"),
    (True, " At the market. </s>"),
    (False, "<s>[INST] Why? [/INST]"),
    (True, " For tea. </s>"),
    (False, "<s>[INST] And Anna? [/INST]"),
    (True, " Home. </s>"),
]


def test_every_answer_is_learnt_with_its_end(tokenizer: Any) -> None:
    """From the blank before an answer to the </s> after it; questions, marks and <s> are not."""
    assert sequences(row_of(CONVERSATION, " Home.\n"), tokenizer) == [EXPECTED]


@pytest.mark.parametrize("by", [-1, 1])
def test_this_would_see_a_mask_that_is_off_by_one(by: int, tokenizer: Any) -> None:
    """The comparison above is sharp: the same labels one place further on fail it."""
    made = encode_rows(
        [row_of(CONVERSATION, "Home.")], tokenizer, settings(max_source_tokens=999), EVERYTHING
    )
    (ids,), (labels,) = made.input_ids, made.labels
    moved = [labels[(place - by) % len(labels)] != IGNORED for place in range(len(labels))]
    shifted = [i if keep else IGNORED for i, keep in zip(ids, moved, strict=True)]
    assert spans(ids, labels, tokenizer) == EXPECTED
    assert spans(ids, shifted, tokenizer) != EXPECTED


def test_a_plain_row_is_one_question(tokenizer: Any) -> None:
    """Question and answer columns need no marks; the recipe's system message stands before them."""
    learned = sequences(row_of("Where is Ben?", "At  the  market."), tokenizer, system=SYSTEM)
    assert learned == [[EXPECTED[0], (True, " At  the  market. </s>")]]


def test_several_references_are_several_answers(tokenizer: Any) -> None:
    """Earlier turns are learned once, with the first."""
    first, second = sequences(row_of(CONVERSATION, "Home.", "Out."), tokenizer)
    assert first == EXPECTED
    before = "".join(text for _, text in EXPECTED[:5])
    assert second == [(False, before), (True, " Out. </s>")]


def test_each_answer_follows_the_ids_that_are_served(tokenizer: Any) -> None:
    """Dropped turns and all: a long conversation becomes the prompts that a server would make."""
    turns = messages([("system", SYSTEM)])
    texts = [f"<<SYS>>{SYSTEM}<</SYS>>"]
    for number in range(8):
        turns += messages([("user", f"{number}, why?"), ("assistant", f"Thing {number}.")])
        texts.append(f" {number}, why? [/INST] Thing {number}. </s><s>[INST]")
    document = "[INST] " + "".join(texts)[: -len(" Thing 7. </s><s>[INST]")]
    limited = settings(max_source_tokens=130)
    made = encode_rows([row_of(document, "Thing 7.")], tokenizer, limited, 160)
    learnt = {}
    for ids, labels in zip(made.input_ids, made.labels, strict=True):
        marked = [label != IGNORED for label in labels]
        for start in (n for n in range(1, len(ids)) if marked[n] and not marked[n - 1]):
            end = next((n for n in range(start, len(ids)) if not marked[n]), len(ids))
            learnt[tuple(ids[:start])] = tokenizer.decode(ids[start:end])
    served = [tuple(encode(tokenizer, turns[:place], limited)) for place in range(2, len(turns), 2)]
    assert learnt == {ids: f" Thing {number}. </s>" for number, ids in enumerate(served)}
    assert 2 < len(made.input_ids) < 8, "nothing was dropped, or nothing joined"


def test_a_cut_answer_has_no_end(tokenizer: Any) -> None:
    """The model must not learn to stop in mid-sentence."""
    uncut = encode_rows([row_of("Why?", "So, " * 50)], tokenizer, settings(), EVERYTHING)
    cut = encode_rows([row_of("Why?", "So, " * 50)], tokenizer, settings(), 60)
    assert (uncut.truncated, cut.truncated) == (0, 1)
    assert uncut.labels[0][-1] == tokenizer.eos_token_id
    assert cut.labels[0] == uncut.labels[0][:60]
    assert tokenizer.eos_token_id not in cut.labels[0]


# --- Other templates and tokenizers ---------------------------------------------------------------


def test_what_follows_the_end_is_not_learnt(tokenizer: Any) -> None:
    """ChatML writes a line break after <|im_end|>: it belongs to the next turn's prompt."""
    chatml = deepcopy(tokenizer)
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    (sequence,) = sequences(row_of(CONVERSATION, "Home."), chatml, template=CHATML)
    system = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"
    ask = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    assert sequence == [
        (False, system + ask.format("Where is Ben?")),
        (True, "At the market.<|im_end|>"),
        (False, "\n" + ask.format("Why?")),
        (True, "For tea.<|im_end|>"),
        (False, "\n" + ask.format("And Anna?")),
        (True, "Home.<|im_end|>"),
    ]


def test_a_template_without_an_end_gets_the_tokenizer_s(tokenizer: Any) -> None:
    """Else the model would never stop. The end is in no later prompt: each answer stands alone."""
    template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    )
    first, second = sequences(
        row_of("[INST] a [/INST] b </s><s>[INST] c [/INST]", "d"), tokenizer, template=template
    )
    assert first == [(False, "user: a\nassistant:"), (True, " b\n</s>")]
    assert second == [(False, "user: a\nassistant: b\nuser: c\nassistant:"), (True, " d\n</s>")]


def test_a_template_that_forgets_is_trained_as_it_is_served(tokenizer: Any) -> None:
    """One that writes past answers otherwise than the last (thinking models do): a prompt each."""
    thinking = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[' + m['content'] + ']' }}"
        "{% else %}{{ ('<think>' if loop.last else '') + m['content'] + eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<think>' }}{% endif %}"
    )
    first, second = sequences(
        row_of("[INST] a [/INST] b </s><s>[INST] c [/INST]", "d"), tokenizer, template=thinking
    )
    assert first == [(False, "[a]<think>"), (True, "b</s>")]
    assert second == [(False, "[a]b</s>[c]<think>"), (True, "d</s>")]
    learned_too = thinking.partition("{% if add_generation_prompt")[0]
    with pytest.raises(ValueError, match="'<think>' between generation's prompt and the answer"):
        encode_answer(tokenizer, "a", "b", settings(learned_too))


def test_a_template_that_asks_otherwise_than_it_answers_is_refused(tokenizer: Any) -> None:
    """Its prompt would be served, and something else learnt."""
    torn = (
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Answer:' }}{% endif %}"
    )
    with pytest.raises(ValueError, match="begins an answer otherwise than it asks for one"):
        encode_answer(tokenizer, "a", "b", settings(torn))


def crossing() -> Any:
    """A byte-level tokenizer with merges over every border: `]` + blank, and blank + letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("]", "Ġ"), ("Ġ", "A"), ("Ġ", "F"), (".", "Ġ")]
    names = ["<pad>", "<s>", "</s>", *alphabet, *("".join(pair) for pair in merges)]
    loaded = Tokenizer(models.BPE({name: n for n, name in enumerate(names)}, merges))
    loaded.add_special_tokens(["<pad>", "<s>", "</s>"])
    loaded.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    loaded.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=loaded, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def test_a_token_over_the_border_of_an_answer_is_never_trained(tokenizer: Any) -> None:
    """Where `]` and the blank after it are one token, a server's prompt ends in `]` all the same."""
    joining = crossing()
    text = render(joining, messages([("user", "Why?"), ("assistant", "So.")]), settings())
    assert "]Ġ" in joining.convert_ids_to_tokens(
        joining(text, add_special_tokens=False)["input_ids"]
    )
    row = row_of(CONVERSATION, "Home.")
    learned = sequences(row, joining)
    assert learned != [EXPECTED], "the border is not crossed: this test shows nothing"
    answers = []
    for sequence in learned:
        assert [keep for keep, _ in sequence] == [False, True]
        answers.append(sequence[-1][1])
    assert answers == [" At the market. </s>", " For tea. </s>", " Home. </s>"]
    turns = messages_of(CONVERSATION)
    made = encode_rows([row], joining, settings(max_source_tokens=999), EVERYTHING)
    for ids, labels, place in zip(made.input_ids, made.labels, (2, 4, 6), strict=True):
        served = encode(joining, turns[:place], settings(max_source_tokens=999))
        assert labels[: len(served)] == [IGNORED] * len(served)
        assert (ids[: len(served)], labels[len(served)]) == (served, ids[len(served)])


def sentencepiece() -> Any:
    """A tokenizer built as Llama 2's is: blanks are part of words, a text gets one before it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    learning = Tokenizer(models.BPE())
    learning.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=600, show_progress=False)
    texts = [f"[INST] {row.document} [/INST] {row.references[0]}" for row in tiny.make_rows(200)]
    learning.train_from_iterator([*texts, CONVERSATION], trainer)
    learnt = json.loads(learning.to_str())["model"]
    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += [name for name in learnt["vocab"] if name not in names]
    merges = [tuple(pair) for pair in learnt["merges"]]
    vocabulary = {name: number for number, name in enumerate(names)}
    loaded = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    loaded.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    loaded.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    loaded.add_special_tokens(["<pad>", "<s>", "</s>", "<unk>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=loaded,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def test_a_tokenizer_as_llama_2_s() -> None:
    """An answer encoded by itself would begin with two blanks; the mask holds, and no blank is added."""
    llama = sentencepiece()
    made = encode_rows(
        [row_of(CONVERSATION, "Home, caf\u00e9.")],
        llama,
        settings(max_source_tokens=999),
        EVERYTHING,
    )
    (ids,), (labels,) = made.input_ids, made.labels
    learnt = [i for i in labels if i != IGNORED]
    assert [i for i, label in zip(ids, labels, strict=True) if label != IGNORED] == learnt
    tokens = llama.convert_ids_to_tokens(learnt)
    joined = "".join(tokens).replace("<0xC3><0xA9>", "\u00e9").replace("\u2581", " ")
    assert joined == " At the market. </s> For tea. </s> Home, caf\u00e9. </s>"
    rendered = render(
        llama,
        [*messages_of(CONVERSATION), *messages([("assistant", "Home, caf\u00e9.")])],
        settings(),
    )
    assert ids == llama(rendered, add_special_tokens=False)["input_ids"]
    assert ids.count(llama.bos_token_id) == 3


# --- Real conversations ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guanaco(shared: Path) -> list[tuple[Row, list[tuple[str, str]]]]:
    """Every well-formed row with several turns, and 60 others: the row, and its turns as they stand."""
    conversations: list[tuple[Row, list[tuple[str, str]]]] = []
    single = 0
    for number, line in enumerate((shared / "data/guanaco/train.jsonl").open(encoding="utf-8")):
        text = json.loads(line)["text"]
        # Taken apart here by other means than the code's: guanaco's own joints, nothing more.
        inner = text.removeprefix("<s>[INST] ").removesuffix(" </s>")
        turns = [turn.partition(" [/INST] ")[::2] for turn in inner.split(" </s><s>[INST] ")]
        single += len(turns) == 1
        broken = any(not q.strip() or not a.strip() or "[/INST]" in a for q, a in turns)
        if not broken and (len(turns) > 1 or single <= 60):
            document, answer = split_chat(text)
            conversations.append((Row(str(number), str(number), document, (answer,)), turns))
    return conversations


@pytest.fixture(scope="module")
def real(shared: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(shared / "models/dialog-7m")
    loaded.model_max_length = EVERYTHING
    return loaded


def test_guanaco_s_answers_are_learnt_and_nothing_else(
    guanaco: list[tuple[Row, list[tuple[str, str]]]], real: Any
) -> None:
    """All rows of several turns, in a dozen languages: spans decode to their turns, whole to whole."""
    for row, turns in guanaco:
        expected = []
        for question, answer in turns:
            expected.append((False, f"<s>[INST] {question.strip()} [/INST]"))
            expected.append((True, f" {answer.strip()} </s>"))
        assert sequences(row, real) == [expected], row.id
    assert sum(len(turns) > 1 for _, turns in guanaco) > 345


def test_encoding_prefix_by_prefix_equals_encoding_whole(
    guanaco: list[tuple[Row, list[tuple[str, str]]]], real: Any
) -> None:
    """What is served before each answer is how the whole conversation's ids begin."""
    wide = settings(max_source_tokens=EVERYTHING)
    for row, turns in guanaco[::4]:
        made = encode_rows([row], real, wide, EVERYTHING)
        conversation = messages_of(row.document) + messages([("assistant", row.references[0])])
        text = render(real, conversation, wide)
        assert made.input_ids == [real(text, add_special_tokens=False)["input_ids"]]
        for place in range(1, 2 * len(turns), 2):
            served = encode(real, conversation[:place], wide)
            assert made.input_ids[0][: len(served)] == served
            assert made.labels[0][len(served) - 1] == IGNORED != made.labels[0][len(served)]


def test_long_guanaco_rows_never_break_the_template(
    guanaco: list[tuple[Row, list[tuple[str, str]]]], real: Any
) -> None:
    """Cut to a small context, every prompt still begins and ends as the template writes it."""
    limited, cuts = settings(max_source_tokens=200), 0
    for row, _ in guanaco[::4]:
        kept, cut = fit_chat(real, row.document, limited)
        ids = encode(real, row.document, limited)
        cuts += cut > 0
        assert len(ids) <= 200
        assert ids == real(render(real, kept, limited), add_special_tokens=False)["input_ids"]
        made = encode_rows([row], real, limited, 260)
        for sequence_ids, labels in zip(made.input_ids, made.labels, strict=True):
            prompt = sequence_ids[: next(n for n, label in enumerate(labels) if label != IGNORED)]
            assert real.decode(prompt).startswith("<s>[INST] ")
            assert real.decode(prompt).endswith(" [/INST]")
            assert len(prompt) <= 200
            assert len(sequence_ids) <= 260
    assert cuts > 20
