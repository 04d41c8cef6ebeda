"""Conversations in their usual shapes, measured and refused as the chat template will write them.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from ingest_files import LENIENT, Ingest, jsonl

from tasks.contracts.documents import plain_text
from tasks.contracts.errors import DataError, RecipeError
from tasks.contracts.recipe import Data, Fields, Prompt
from tasks.contracts.records import Row, read_rows
from tasks.ingest.prepare import prepare, problems
from tasks.models import chat_templates
from tasks.serving.summarizer import SummarizerSettings, encode, messages_of

CHAT = Prompt(format="chat", chat_template="llama-2")
SYSTEM = "You answer briefly."


def talk(number: int, *, system: str = "", turns: int = 2) -> list[tuple[str, str]]:
    """A conversation unlike every other one: (role, text), the last an answer."""
    spoken = [("system", system)] if system else []
    for turn in range(turns):
        spoken += [
            ("user", f"Question {number} {turn}: " + " ".join(f"q{number}x{n}" for n in range(9))),
            ("assistant", f"Answer {number} {turn}."),
        ]
    return spoken


def as_text(spoken: list[tuple[str, str]]) -> str:
    parts, head = [], ""
    for role, text in spoken:
        if role == "system":
            head = f"<<SYS>>\n{text}\n<</SYS>>\n\n"
        elif role == "user":
            parts.append(f"<s>[INST] {head}{text} [/INST]")
            head = ""
        else:
            parts.append(f" {text} </s>")
    return "".join(parts)


def as_messages(spoken: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in spoken]


def as_sharegpt(spoken: list[tuple[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[role], "value": text} for role, text in spoken]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer(folder)
    return folder


def settings(most: int = 2000, **changes: Any) -> SummarizerSettings:
    chat = {"format": "chat", "chat_template": chat_templates.LLAMA_2} | changes
    return SummarizerSettings("{document}", most, "tail", 32, 4, (), **chat)


class Chat:
    """`prepare` in chat format, and its output read back."""

    def __init__(self, tokenizer: Path, folder: Path) -> None:
        self.tokenizer, self.folder = tokenizer, folder

    def __call__(self, prompt: Prompt = CHAT, most: int = 2000, **data: Any) -> dict[str, Any]:
        limits = settings(most, system=prompt.system)
        prepare(Data(**data), prompt, limits, self.tokenizer, self.folder)
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def rows(self) -> list[Row]:
        return [r for s in ("train", "evaluation") for r in read_rows(self.folder / f"{s}.jsonl")]

    def rejects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rejects.jsonl").open()]


@pytest.fixture
def chat(tokenizer: Path, tmp_path: Path) -> Chat:
    return Chat(tokenizer, tmp_path / "dataset")


def test_all_shapes_give_the_same_rows(tmp_path: Path, chat: Chat) -> None:
    """[INST] text, role and content, from and value; guessed from their names, and shown."""
    talks = [talk(n, system=SYSTEM if n % 3 else "", turns=1 + n % 3) for n in range(40)]
    found = []
    shapes: list[tuple[str, Any]] = [
        ("text", as_text), ("messages", as_messages), ("conversations", as_sharegpt),
    ]  # fmt: skip
    for column, shape in shapes:
        train = jsonl(tmp_path / f"{column}.jsonl", [{column: shape(spoken)} for spoken in talks])
        report = chat(train=train)
        used = report["inputs"]["data.train"]["files"][0]["fields"]
        assert (used["text"], used["guessed"]) == (column, ["text"])
        found.append([(row.source, row.document, row.references) for row in chat.rows()])
    assert found[1] == found[2]
    expected = {json.dumps(as_messages(spoken)) for spoken in talks}
    for rows in found:
        whole = [[*messages_of(d), *as_messages([("assistant", a)])] for _, d, (a,) in rows]
        assert len(whole) == 40
        assert {json.dumps(messages) for messages in whole} == expected
    assert all(isinstance(document, str) for _, document, _ in found[0])
    assert all(isinstance(document, list) for _, document, _ in found[1])


def test_messages_in_parquet(tmp_path: Path, chat: Chat) -> None:
    """Lists of structs, as the hub's data sets keep them; a column named by the recipe."""
    import pyarrow
    import pyarrow.parquet

    talks = [talk(n) for n in range(30)]
    table = pyarrow.table(
        {"id": list(range(30)), "turns": [as_messages(spoken) for spoken in talks]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    chat(train=str(tmp_path / "t.parquet"), fields=Fields(text="turns", id="id"))
    assert {(row.id, row.references[0]) for row in chat.rows()} == {
        (str(n), f"Answer {n} 1.") for n in range(30)
    }


def test_pairs_of_columns_come_first(tmp_path: Path, chat: Chat) -> None:
    """Where a file has question and answer too, they are used, as before messages were read."""
    values = [
        {"question": f"Why {n}?", "answer": "So.", "messages": as_messages(talk(n))}
        for n in range(30)
    ]
    chat(train=jsonl(tmp_path / "t.jsonl", values))
    assert all(row.document.startswith("Why ") for row in chat.rows())


BROKEN = [
    ([], '"messages" is an empty list'),
    ([*as_messages(talk(1)), {"role": "user", "content": "And?"}], "ends in a question without"),
    ([{"role": "user", "content": "a"}] * 2, "(message 2) is from the user"),
    (as_messages(talk(1))[1:], "(message 1) is from the assistant"),
    ([{"role": "system", "content": "s"}, *as_messages(talk(1))[1:]], "(message 2) is from the assistant"),
    ([{"role": "system", "content": "s"}], "ends in a question without"),
    ([{"role": "tool", "content": "a"}], "(message 1) has the role 'tool'"),
    ([{"role": "user", "content": " "}, {"role": "assistant", "content": "b"}], "(message 1) is blank"),
    ([{"role": "user", "content": {"a": 1}}, *as_messages(talk(1))[1:]], "(message 1) is an object"),
    ([{"role": "user"}], "(message 1) has no role and content"),
    (["a", "b"], "(message 1) has no role and content"),
    (as_messages([("user", "a [INST]"), ("assistant", "b")]), "holds [INST] within a message, a mark"),
    (as_messages([("user", "a"), ("assistant", "b</s>")]), "holds </s>, a special token"),
    (None, '"messages" is null'),
]  # fmt: skip


def test_each_broken_row_says_what_is_wrong(tmp_path: Path, chat: Chat) -> None:
    """File, line, message and fix, for every row at once; the good ones are used."""
    good = [{"messages": as_messages(talk(n))} for n in range(30)]
    bad = [{"messages": value} for value, _ in BROKEN]
    chat(train=jsonl(tmp_path / "t.jsonl", [*good, *bad]), max_rejected_share=LENIENT)
    rejects = chat.rejects()
    assert [reject["line"] for reject in rejects] == list(range(31, 31 + len(BROKEN)))
    for reject, (_, says) in zip(rejects, BROKEN, strict=True):
        assert says in reject["problem"]
        assert ";" in reject["problem"], "no fix"
    assert len(chat.rows()) == 30
    with pytest.raises(DataError, match=r't\.jsonl:32 "messages" ends in a question'):
        chat(train=jsonl(tmp_path / "t.jsonl", [*good, *bad]))


def test_crlf_within_messages(tmp_path: Path, chat: Chat) -> None:
    """As everywhere, line ends become LF."""
    spoken = [("user", "one\r\ntwo"), ("assistant", "three\r\nfour")]
    values = [{"messages": as_messages(talk(n))} for n in range(30)]
    chat(train=jsonl(tmp_path / "t.jsonl", [{"messages": as_messages(spoken)}, *values]))
    (row,) = [row for row in chat.rows() if "two" in plain_text(row.document)]
    assert row.document == [{"role": "user", "content": "one\ntwo"}]
    assert row.references == ("three\nfour",)


def test_rows_that_differ_in_who_speaks_or_what_weighs_are_no_duplicates(
    tmp_path: Path, chat: Chat
) -> None:
    """The same words under another system message, or with another weight."""
    plain = as_messages(talk(0, turns=2))
    weighed = [*plain[:1], plain[1] | {"weight": 0}, *plain[2:]]
    led = [{"role": "system", "content": "Rhyme."}, *plain]
    also = [{"role": "system", "content": "Shout."}, *plain]
    spaced = [message | {"content": f" {message['content']}\n"} for message in plain]
    variants = [plain, weighed, led, also, spaced]
    values = [
        {"messages": talk_} for talk_ in [*variants, *(as_messages(talk(n)) for n in range(1, 30))]
    ]
    report = chat(train=jsonl(tmp_path / "t.jsonl", values))
    assert report["train"]["duplicates_dropped"] + report["evaluation"]["duplicates_dropped"] == 1
    found = [row for row in chat.rows() if "Question 0 " in plain_text(row.document)]
    assert len(found) == 4
    assert len({row.source for row in found}) == 1, "one document, one cluster"


def test_a_long_system_message_that_all_rows_share_makes_no_documents_alike(
    tmp_path: Path, chat: Chat
) -> None:
    """Otherwise each training row would be a near copy of an evaluation row, and be dropped."""
    system = " ".join(f"rule{n}" for n in range(400))
    values = [{"messages": as_messages(talk(n, system=system))} for n in range(40)]
    report = chat(most=9000, train=jsonl(tmp_path / "t.jsonl", values), evaluation_share=0.3)
    assert report["train"]["rows"] + report["evaluation"]["rows"] == 40


# --- Measured as served ---------------------------------------------------------------------------


def test_lengths_are_those_of_the_served_prompt(
    tmp_path: Path, chat: Chat, tokenizer: Path
) -> None:
    """Template, system message and all earlier turns count; cuts are told."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    train = jsonl(
        tmp_path / "t.jsonl", [{"messages": as_messages(talk(n, turns=4))} for n in range(30)]
    )
    prompt = Prompt(format="chat", chat_template="llama-2", system=SYSTEM)
    report = chat(prompt, train=train, evaluation_share=0.5)
    for split in ("train", "evaluation"):
        rows = read_rows(chat.folder / f"{split}.jsonl")
        longest = max(len(encode(loaded, r.document, settings(system=SYSTEM))) for r in rows)
        assert report[split]["prompt_tokens"]["max"] == longest
        assert report[split]["truncated_prompts"]["count"] == 0
    cut = chat(prompt, most=300, train=train, evaluation_share=0.5)["train"]["truncated_prompts"]
    kept = read_rows(chat.folder / "train.jsonl")
    assert cut["count"] == len(kept)
    whole, now = (
        [len(encode(loaded, r.document, settings(most, system=SYSTEM))) for r in kept]
        for most in (2000, 300)
    )
    assert cut["tokens_cut"]["max"] == max(w - n for w, n in zip(whole, now, strict=True))


def test_nothing_is_cut_where_the_recipe_forbids_it(tmp_path: Path, chat: Chat) -> None:
    """truncate: error rejects a conversation that is too long, with its length."""
    strict = Prompt(format="chat", chat_template="llama-2", truncate="error")
    values = [{"messages": as_messages(talk(n))} for n in range(40)]
    values[7] = {"messages": as_messages(talk(7, turns=30))}
    chat(strict, most=400, train=jsonl(tmp_path / "t.jsonl", values), max_rejected_share=LENIENT)
    (reject,) = chat.rejects()
    assert reject["line"] == 8
    assert "over the 400 allowed" in reject["problem"]


@pytest.mark.parametrize(
    ("document", "answer", "says"),
    [
        ("What is <s> in HTML?", "A line.", "holds <s>"),
        ("What?", "So </s> it goes.", "holds </s>"),
        ("Read: [INST] a [/INST]", "b", "holds [/INST] within a message"),
        ("[INST] a [/INST] </s><s>[INST] b [/INST]", "c", "turn 1 has no answer"),
    ],
)
def test_marks_of_the_chat_in_a_text_are_refused(
    document: str, answer: str, says: str, tmp_path: Path, chat: Chat
) -> None:
    """The model would see the end of a turn there."""
    good = [{"question": f"Why {n}?", "answer": "So."} for n in range(40)]
    bad = {"question": document, "answer": answer}
    chat(train=jsonl(tmp_path / "t.jsonl", [bad, *good]), max_rejected_share=LENIENT)
    (reject,) = chat.rejects()
    assert (reject["line"], says in reject["problem"]) == (1, True)


def test_the_template_format_takes_all_of_it(tmp_path: Path, ingest: Ingest) -> None:
    """Rows in the template's format are what they always were: one text up to the last answer."""
    values = [{"text": as_text(talk(n))} for n in range(30)]
    values[0] = {"text": "<s>[INST] a [/INST]  </s><s>[INST] b [/INST] c </s>"}
    ingest(Prompt(template="{document}"), train=jsonl(tmp_path / "t.jsonl", values))
    assert not ingest.rejects()
    assert "[INST] a [/INST]  </s><s>[INST] b [/INST]" in {
        row.document for side in ("train", "evaluation") for row in ingest.rows(side)
    }


@pytest.mark.parametrize(
    ("template", "system", "says"),
    [
        ("{{ messages[0]['content'] }}{{ undefined_thing + 'x' }}", None, "cannot write two turns"),
        ("{{ raise_exception('System role not supported') }}", SYSTEM, "unset prompt.system"),
        ("{% for m in messages %}", None, "cannot write two turns"),
        ("{{ 'x' if add_generation_prompt else 'y' }}", None, "does not write the first question"),
        (
            "word " * 200 + chat_templates.LLAMA_2,
            None,
            "template alone is .* tokens, and a prompt may",
        ),
    ],
)
def test_check_finds_a_template_that_cannot_serve(
    template: str, system: str | None, says: str, tmp_path: Path, tokenizer: Path
) -> None:
    """Before any row is looked at, with the fix."""
    train = jsonl(
        tmp_path / "t.jsonl", [{"question": f"Why {n}?", "answer": "So."} for n in range(30)]
    )
    limits = settings(300, chat_template=template, system=system)
    prompt = Prompt(format="chat", chat_template=template, system=system)
    found, counts = problems(Data(train=train), prompt, limits, tokenizer)
    assert counts == {}
    with pytest.raises(RecipeError, match=says):
        prepare(Data(train=train), prompt, limits, tokenizer, tmp_path / "out")
    assert any(re.search(says, problem) for problem in found), found


DROPS_REASONING = chat_templates.LLAMA_2.replace(
    "' '  + content.strip()", "' '  + content.split('</think>')[-1].strip()"
)


@pytest.mark.parametrize("reasoning", ["learn", "strip"])
def test_a_template_that_drops_reasoning_cannot_have_it_learnt(
    reasoning: Any, tmp_path: Path, tokenizer: Path
) -> None:
    """The rows are rejected, as the rendering lacks what is to be learnt; without it the rows are fine."""
    thinking = [
        *as_messages(talk(0))[:1],
        {"role": "assistant", "content": "So.", "thinking": "Hm."},
    ]
    values = [{"messages": as_messages(talk(n))} for n in range(1, 40)]
    train = jsonl(tmp_path / "t.jsonl", [{"messages": thinking}, *values])
    prompt = Prompt(format="chat", chat_template=DROPS_REASONING, reasoning=reasoning)
    limits = settings(chat_template=DROPS_REASONING)
    found, counts = problems(Data(train=train), prompt, limits, tokenizer)
    assert counts["rejected"] == (reasoning == "learn")
    assert any("is not written by the chat template" in problem for problem in found) == bool(
        counts["rejected"]
    )


# --- Real rows ------------------------------------------------------------------------------------


def real_rows(shared: Path, folder: Path, **data: Any) -> list[dict[str, Any]]:
    prepare(Data(**data), CHAT, settings(900), shared / "models/dialog-7m", folder)
    return [json.loads(line) for line in (folder / "rejects.jsonl").open()]


def test_guanaco_in_chat_format(shared: Path, tmp_path: Path) -> None:
    """Both forms of the file; three rows in a thousand have a turn that says nothing."""
    for form in ("jsonl", "parquet"):
        rejects = real_rows(shared, tmp_path, train=str(shared / f"data/guanaco/train.{form}"))
        assert [(r["line"], r["problem"].split(";")[0]) for r in rejects] == [
            (435, '"text" has a blank question before its last [/INST]'),
            (511, "turn 2 has a blank question"),
            (900, "turn 2 has no answer"),
        ]
    rows = [r for s in ("train", "evaluation") for r in read_rows(tmp_path / f"{s}.jsonl")]
    assert len(rows) == 997


def test_medquad_in_chat_format(shared: Path, tmp_path: Path) -> None:
    """Question and answer columns just work: repeated questions are one source, blanks stay."""
    rejects = real_rows(shared, tmp_path, train=str(shared / "data/medquad/medquad_3k.jsonl"))
    assert rejects == []
    sides = [read_rows(tmp_path / f"{side}.jsonl") for side in ("train", "evaluation")]
    rows = [row for side in sides for row in side]
    assert all(len(messages_of(row.document)) == 1 for row in rows)
    by_source: dict[str, set[str]] = {}
    for row in rows:
        by_source.setdefault(row.source, set()).add(" ".join(row.document.split()))
    assert all(len(questions) == 1 for questions in by_source.values())
    assert len(by_source) < len(rows)
    assert not {row.source for row in sides[0]} & {row.source for row in sides[1]}
    assert any("   " in row.references[0] for row in rows)
