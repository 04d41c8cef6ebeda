"""Every column is used, named as unused, or the run is refused with the lines that settle it.

Over 250 lines: each kind of column, with the refusal and the recipe that its lines make.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ingest_files import LENIENT, TEMPLATE, Ingest, document, jsonl, refused, rows

from tasks.contracts.recipe import Fields, Prompt
from tasks.contracts.template_places import problems_of
from tasks.ingest.column_roles import role_of

ALPACA = [
    {
        "instruction": f"Sum up {document(n)}",
        "input": "" if n % 3 else f"more {n}",
        "output": f"o {n}",
    }
    for n in range(40)
]
SQUAD = [
    {
        "id": f"s{n}",
        "title": "T",
        "context": document(n),
        "question": f"What is {n}?",
        "answers": {"text": [f"It is {n}.", "That."], "answer_start": [1, 2]},
    }
    for n in range(40)
]


def pasted(message: str) -> tuple[Fields, Prompt]:
    """The lines that a message says to write, as YAML reads them."""
    found = re.search(r"data\.fields: (\{.*?\}) and prompt\.template: (\".*?\")", message)
    assert found, message
    return Fields(**yaml.safe_load(found[1])), Prompt(template=yaml.safe_load(found[2]))


@pytest.mark.parametrize(
    ("values", "unused", "first"),
    [
        (ALPACA, "instruction", {"instruction": ALPACA[0]["instruction"], "input": "more 0"}),
        (SQUAD, "context", {"context": document(0), "question": "What is 0?"}),
    ],
)
def test_what_a_refusal_says_to_write_works(
    values: list[dict[str, Any]],
    unused: str,
    first: dict[str, str],
    tmp_path: Path,
    ingest: Ingest,
) -> None:
    """The column that carries the task is named, with lines to paste under which all rows are used."""
    train = jsonl(tmp_path / "t.jsonl", values)
    message = refused(ingest, train=train)
    assert f'"{unused}" may be a part of the prompt' in message
    assert f"data.fields.ignore: [{unused}]" in message
    fields, prompt = pasted(message)
    made = ingest(prompt, train=train, fields=fields)
    assert made.train_rows + made.evaluation_rows == len(values)
    every = {row.id: row for split in ("train", "evaluation") for row in ingest.rows(split)}
    assert every.get("t:1", every.get("s0")).document == first  # type: ignore[union-attr]


def test_a_text_that_repeats_the_others_is_left_out(tmp_path: Path, ingest: Ingest) -> None:
    """Alpaca's column `text` is its prompt and answer in one: the lines ignore it."""
    values = [row | {"text": f"{row['instruction']} {row['output']}"} for row in ALPACA]
    fields, _ = pasted(refused(ingest, train=jsonl(tmp_path / "t.jsonl", values)))
    assert (fields.inputs, fields.ignore) == (
        {"instruction": "instruction", "input": "input"},
        ("text",),
    )


def test_an_optional_column_by_a_wrong_name(tmp_path: Path, ingest: Ingest) -> None:
    """A column that is nearly called so is named; of one that no row has the report tells."""
    values = [{**row, "context": "c"} for row in rows(40)]
    train = jsonl(tmp_path / "t.jsonl", values)
    prompt = Prompt(template="{document} {more}")
    inputs = {"document": "document", "more": "contxt"}
    fields = Fields(inputs=inputs, optional=("more",), summary="summary")
    message = refused(ingest, prompt, train=train, fields=fields)
    assert 'no column "contxt" (data.fields.inputs.more)' in message
    assert 'nearest: "context"' in message
    absent = {"inputs": inputs | {"more": "extra"}, "ignore": ("context",)}
    ingest(prompt, train=train, fields=fields.model_copy(update=absent))
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert used["notes"] == ['no column "extra" in the first rows: more is blank there']


def test_a_question_without_answers(tmp_path: Path, ingest: Ingest) -> None:
    """SQuAD 2's unanswerable questions have no reference: rejected by line."""
    values = [*SQUAD, SQUAD[0] | {"answers": {"text": [], "answer_start": []}}]
    fields = Fields(
        inputs={"context": "context", "question": "question"}, summary="answers", id="id"
    )
    prompt = Prompt(template="{context} {question}")
    train = jsonl(tmp_path / "t.jsonl", values)
    ingest(prompt, train=train, fields=fields, max_rejected_share=LENIENT)
    assert [(r["line"], r["problem"].split(";")[0]) for r in ingest.rejects()] == [
        (41, '"answers" is an empty list')
    ]
    assert ingest.rows("train")[0].references[1] == "That."


def test_a_blank_optional_input(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """An optional input may be blank, null or absent; a row of blank inputs alone is rejected."""
    values = [
        {"q": "What?", "more": "", "a": "x"},
        {"q": "Why?", "more": None, "a": "x"},
        {"q": "How?", "a": "x"},
        {"q": " ", "more": "", "a": "x"},
        {"q": "", "more": "m", "a": "x"},
    ]
    prompt = Prompt(template="{q}|{more}|")
    fields = {"inputs": {"q": "q", "more": "more"}, "summary": "a"}
    train = jsonl(tmp_path / "t.jsonl", values)
    dev = jsonl(tmp_path / "e.jsonl", [{"q": "Where?", "more": "x", "a": "y"}])
    data = {"train": train, "evaluation": dev, "max_rejected_share": LENIENT}
    ingest(prompt, fields=Fields(**fields, optional=("more",)), **data)
    assert [row.document for row in ingest.rows("train")] == [
        {"q": word, "more": ""} for word in ("What?", "Why?", "How?")
    ]
    assert ['"q" is blank' in r["problem"] for r in ingest.rejects()] == [True, True]
    ingest(prompt, fields=Fields(**fields, optional=("q", "more")), **data)
    (reject,) = ingest.rejects()
    assert "only blank inputs (q, more)" in reject["problem"]


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("instruction", "part of the prompt"),
        ("Instruction", "part of the prompt"),
        ("system_prompt", "part of the prompt"),
        ("userQuestion", "part of the prompt"),
        ("CHOICES", "part of the prompt"),
        ("retrieved_passages", "part of the prompt"),
        ("tools", "part of the prompt"),
        ("history", "part of the prompt"),
        ("image", "not text"),
        ("image_url", "not text"),
        ("label", "quality"),
        ("quality_score", "quality"),
        ("sample-weight", "quality"),
        ("reward", "quality"),
        ("reasoning_content", "reasoning"),
        ("thinking", "reasoning"),
        ("rejected", "preference"),
        ("summary2", "reference"),
        ("B", "part of the prompt"),
        ("c1", None),
        *((name, None) for name in ("topic", "id", "url", "source", "date", "split", "title")),
        *((name, None) for name in ("question_id", "text_len", "sum_len", "context_tokens", "")),
        *((name, None) for name in ("num_questions", "qtype", "focus", "fname", "Unnamed: 0")),
    ],
)
def test_what_a_name_promises(name: str, role: str | None) -> None:
    """A column's name in any case, with any prefix; what only counts or names something is harmless."""
    assert role_of(name) == role


@pytest.mark.parametrize("column", ["label", "Score", "image", "system", "choices", "reasoning"])
@pytest.mark.parametrize("named", [True, False])
def test_a_column_that_may_matter_is_not_left_out_by_itself(
    column: str, named: bool, tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Guessed or named document and summary: the run is refused, and the line it gives settles it."""
    value = ["a", "b"] if column == "choices" else 5 if column == "label" else "x"
    train = jsonl(tmp_path / "t.jsonl", [{**row, column: value, "topic": "t"} for row in rows(9)])
    fields = Fields(document="document", summary="summary") if named else Fields()
    message = refused(ingest, train=train, evaluation=evaluation, fields=fields)
    assert f'"{column}"' in message
    assert f"data.fields.ignore: [{column}]" in message
    assert "topic" not in message
    ingest(
        train=train, evaluation=evaluation, fields=fields.model_copy(update={"ignore": (column,)})
    )
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert (used["ignored"], used["unused"]) == ([column], ["topic"])


@pytest.mark.parametrize("name", ["row", "translation"])
def test_columns_one_object_deeper_are_named(name: str, tmp_path: Path, ingest: Ingest) -> None:
    """As a data set viewer saves them: the refusal says where they are."""
    train = jsonl(tmp_path / "t.jsonl", [{"n": 1, name: row} for row in rows(9)])
    assert f'"{name}" holds objects (document, summary)' in refused(ingest, train=train)


def test_columns_whose_names_have_no_ascii_letters(tmp_path: Path, ingest: Ingest) -> None:
    """Each gets a name of its own in the lines to write, which has a place."""
    extra = {"问题": "第{n}盏灯是谁在什么时候打开的呢", "背景": "第{n}盏灯在客厅里面已经放了很久"}
    values = [row | {k: v.format(n=n) for k, v in extra.items()} for n, row in enumerate(rows(40))]
    train = jsonl(tmp_path / "t.jsonl", values)
    fields, prompt = pasted(refused(ingest, train=train))
    assert fields.inputs == {"document": "document", "input": "问题", "input_2": "背景"}
    assert problems_of(prompt.template, [*fields.inputs]) == []


def test_all_columns_that_may_matter_are_named_at_once(
    tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """With the line that uses what can be used and leaves out the rest."""
    extra = {"question": "Who?", "label": 1, "image": "a.png"}
    train = jsonl(tmp_path / "t.jsonl", [{**row, **extra} for row in rows(9)])
    dev = jsonl(tmp_path / "e.jsonl", [{**row, **extra} for row in rows(3, 50)])
    message = refused(ingest, train=train, evaluation=dev)
    assert "ignore: [question, label, image]" in message
    fields, prompt = pasted(message)
    assert fields.ignore == ("label", "image")
    assert prompt.template == TEMPLATE.replace("{document}", "{document}\n\n{question}")
    ingest(prompt, train=train, evaluation=dev, fields=fields)
    assert ingest.rows("train")[0].document == {"document": document(0), "question": "Who?"}


def test_a_blank_column_may_not_fill_later(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """What the first rows do not show is rejected by line where it comes: neither guessed nor dropped."""
    values: list[dict[str, Any]] = [{**row, "system": ""} for row in rows(150)]
    values[120]["system"] = "Be brief."
    values[130]["reward"] = 0.5
    values[140]["topic"] = "harmless"
    train = jsonl(tmp_path / "t.jsonl", values)
    ingest(train=train, evaluation=evaluation, max_rejected_share=LENIENT)
    assert [(r["line"], r["problem"].split(";")[0]) for r in ingest.rejects()] == [
        (121, 'has text in "system", which is blank in the first rows'),
        (131, 'has "reward", a column that the first rows lack'),
    ]
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert used["unused"] == ["system", "topic"]


@pytest.mark.parametrize("asked", [True, False])
def test_preference_data(asked: bool, tmp_path: Path, ingest: Ingest) -> None:
    """Chosen and rejected answers are refused, with the lines that take the chosen ones as references."""
    values = [
        {"prompt": document(n), "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(30)
    ]
    train = jsonl(tmp_path / "t.jsonl", values)
    fields = Fields(document="prompt", summary="chosen") if asked else Fields()
    message = refused(ingest, train=train, fields=fields)
    assert "preference data" in message
    if asked:
        assert "data.fields.ignore: [rejected]" in message
        fields = fields.model_copy(update={"ignore": ("rejected",)})
    else:
        assert '"chosen" would be the reference' in message
        found = re.search(r"data\.fields: (\{.*?\})", message)
        assert found
        fields = Fields(**yaml.safe_load(found[1]))
    ingest(train=train, fields=fields)
    assert ingest.rows("train")[0].references[0].startswith("good")


def test_one_text_that_mentions_a_mark_is_a_text(tmp_path: Path, ingest: Ingest) -> None:
    """One odd row never changes how the others are read, and the report tells of it."""
    values = [{"text": document(n) + " [/INST]" * (n == 7), "summary": f"s {n}"} for n in range(60)]
    made = ingest(train=jsonl(tmp_path / "t.jsonl", values))
    assert made.train_rows + made.evaluation_rows == 60
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert (used["document"], used["text"]) == ("text", None)
    assert used["notes"] == [
        '"text" holds [/INST] in 1 of its first 60 rows, and is read as plain text'
    ]
    message = refused(
        ingest, train=jsonl(tmp_path / "u.jsonl", [{"text": row["text"]} for row in values])
    )
    assert "1 of its first 60 rows" in message


def test_a_null_reference_uses_the_others(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Of several references one is enough, and what is missing is counted; none at all is a reject."""
    values = [
        {"document": document(1), "a": "one", "b": "two"},
        {"document": document(2), "a": None, "b": "two"},
        {"document": document(3), "a": "one", "b": " "},
        {"document": document(4), "a": "one"},
        {"document": document(5), "a": ["one", None], "b": "two"},
        {"document": document(6), "a": "", "b": None},
    ]
    fields = Fields(document="document", summary=("a", "b"))
    ingest(
        train=jsonl(tmp_path / "t.jsonl", values),
        evaluation=evaluation,
        fields=fields,
        evaluation_fields=Fields(summary="summary"),
        max_rejected_share=LENIENT,
    )
    assert [row.references for row in ingest.rows("train")] == [
        ("one", "two"), ("two",), ("one",), ("one",), ("one", "two"),
    ]  # fmt: skip
    assert [(r["line"], '"a" is blank' in r["problem"]) for r in ingest.rejects()] == [(6, True)]
    counted = ingest.report()["inputs"]["data.train"]["missing_references"]
    assert counted == {"rows": 4, "references": 4}


@pytest.mark.parametrize(
    ("value", "shown"), [(1.0, "1"), (2**40 + 0.0, str(2**40)), (1.5, "1.5"), (7, "7"), ("x", "x")]
)
def test_ids_of_other_types(
    value: object, shown: str, tmp_path: Path, ingest: Ingest, evaluation: str
) -> None:
    """Whole numbers that a table wrote as floats are whole numbers."""
    train = jsonl(tmp_path / "t.jsonl", [{**row, "id": value} for row in rows(1)])
    dev = jsonl(tmp_path / "e.jsonl", [{**row, "id": "e"} for row in rows(1, 50)])
    for fields in (Fields(), Fields(id="id")):
        ingest(train=train, evaluation=dev, fields=fields)
        assert [row.id for row in ingest.rows("train")] == [shown]


def test_evaluation_files_with_columns_of_their_own(tmp_path: Path, ingest: Ingest) -> None:
    """As DialogSum's: what evaluation_fields leaves out is as in fields."""
    train = [
        {"fname": f"t{n}", "dialogue": document(n), "summary": f"s {n}", "topic": "x"}
        for n in range(9)
    ]
    test = [
        {"fname": f"e{n}", "dialogue": document(n + 50)}
        | {f"summary{i}": f"{n}{i}" for i in (1, 2, 3)}
        for n in range(3)
    ]
    data = {
        "train": jsonl(tmp_path / "train.jsonl", train),
        "evaluation": jsonl(tmp_path / "test.jsonl", test),
        "fields": Fields(document="dialogue", summary="summary", id="fname"),
    }
    assert 'no column "summary"' in (message := refused(ingest, **data))
    assert "data.evaluation_fields" in message
    ingest(**data, evaluation_fields=Fields(summary=("summary1", "summary2", "summary3")))
    assert ingest.rows("train")[0].references == ("s 0",)
    assert [row.id for row in ingest.rows("evaluation")] == ["e0", "e1", "e2"]
    assert ingest.rows("evaluation")[0].references == ("01", "02", "03")
