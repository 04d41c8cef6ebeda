from __future__ import annotations

from pathlib import Path

import pytest
from ingest_files import LENIENT, Ingest, document, jsonl, rows

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Fields
from tasks.ingest.chat import split_chat


def test_one_summary_column(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """The recipe's columns are used, and other columns may hold anything."""
    values = [{"d": document(n), "s": f"sum {n}", "key": n, "x": n % 2 or None} for n in range(4)]
    dev = jsonl(tmp_path / "dev2.jsonl", [{"d": document(9), "s": "t", "key": "nine"}])
    fields = Fields(document="d", summary="s", id="key")
    ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation=dev, fields=fields)
    assert [row.id for row in ingest.rows("train")] == ["0", "1", "2", "3"]
    assert ingest.rows("train")[2].references == ("sum 2",)
    assert ingest.rows("evaluation")[0].id == "nine"


def test_several_references(tmp_path: Path, ingest: Ingest) -> None:
    """Several columns, or a list in one, are several references of one document."""
    columns = [{"d": document(n), "s1": "a", "s2": "b", "s3": "c"} for n in range(3)]
    lists = [{"d": document(n), "s1": ["a", "b"], "s2": "c", "s3": ["d"]} for n in range(5, 7)]
    fields = Fields(document="d", summary=("s1", "s2", "s3"))
    ingest(
        train=jsonl(tmp_path / "t.jsonl", columns),
        evaluation=jsonl(tmp_path / "e.jsonl", lists),
        fields=fields,
    )
    assert {row.references for row in ingest.rows("train")} == {("a", "b", "c")}
    assert {row.references for row in ingest.rows("evaluation")} == {("a", "b", "c", "d")}


def test_wrong_column(tmp_path: Path, ingest: Ingest) -> None:
    """Wrong column names are all reported, with the columns there are and the nearest one."""
    train = jsonl(tmp_path / "t.jsonl", [*rows(3), "{ this line is never reached"])
    dev = jsonl(tmp_path / "e.jsonl", [{"dialogue": "a", "gist": "b"}])
    with pytest.raises(DataError) as caught:
        ingest(train=train, evaluation=dev, fields=Fields(document="documnt", summary="summary"))
    first, second, third = str(caught.value).splitlines()
    assert first == (
        f'{train} has no column "documnt" (data.fields.document); it has: document, summary; '
        'nearest: "document"'
    )
    assert second.startswith(f'{dev} has no column "documnt"')
    assert third.startswith(f'{dev} has no column "summary" (data.fields.summary); it has: ')


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (("fname", "dialogue", "summary", "topic"), ("dialogue", ["summary"], "fname")),
        (("bill_id", "text", "summary", "title"), ("text", ["summary"], "bill_id")),
        (("id", "article", "highlights"), ("article", ["highlights"], "id")),
        (("qid", "focus", "source", "question", "answer"), ("question", ["answer"], "qid")),
        (("Document", "Summary"), ("Document", ["Summary"], None)),
        (("dialogue", "summary1", "summary2"), ("dialogue", ["summary1", "summary2"], None)),
    ],
)
def test_guess(
    columns: tuple[str, ...],
    found: tuple[str, list[str], str | None],
    tmp_path: Path,
    ingest: Ingest,
) -> None:
    """Without fields the usual names are found, and the report says so."""
    values = [{name: f"{name} {n} words" for name in columns} for n in range(60)]
    ingest(train=jsonl(tmp_path / "t.jsonl", values))
    used = ingest.report()["inputs"]["data.train"]["files"][0]["fields"]
    assert (used["document"], used["summary"], used["id"]) == found
    assert used["guessed"] == ["document", "summary", "id"][: 3 if found[2] else 2]


def test_guess_for_each_file(tmp_path: Path, ingest: Ingest) -> None:
    """Training and evaluation files may have columns of their own: DialogSum's test set does."""
    dev = [{"dialogue": document(n), "summary1": "a", "summary2": "b"} for n in range(3)]
    ingest(
        train=jsonl(tmp_path / "t.jsonl", rows(3, 10)), evaluation=jsonl(tmp_path / "e.jsonl", dev)
    )
    assert ingest.rows("evaluation")[0].references == ("a", "b")


def test_guessed_id_may_lack(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A row without the id that nobody asked for gets its place as a name."""
    values: list[dict[str, object]] = [{**row, "id": None} for row in rows(3)]
    values[0]["id"] = "own"
    train = jsonl(tmp_path / "t.jsonl", values)
    ingest(train=train, evaluation=evaluation)
    assert [row.id for row in ingest.rows("train")] == ["own", "t:2", "t:3"]
    dev = jsonl(tmp_path / "e.jsonl", [{**row, "id": 1} for row in rows(2, 50)])
    with pytest.raises(DataError, match=r't\.jsonl:2 "id" is null'):
        ingest(train=train, evaluation=dev, fields=Fields(id="id"))


def test_no_guess(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Where no usual names are found, the columns there are and the way to fix it are named."""
    train = jsonl(tmp_path / "t.jsonl", [{"col1": "a", "col2": "b"}])
    with pytest.raises(DataError, match=r"it has: col1, col2; name them in data\.fields\.document"):
        ingest(train=train, evaluation=evaluation)


def test_repeated_ids(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Ids are made unique, also against names that look like made ones."""
    ids = ["a", "a", "a~2", "a", "b"]
    values = [{**row, "id": id_} for row, id_ in zip(rows(5), ids, strict=True)]
    ingest(train=jsonl(tmp_path / "t.jsonl", values), evaluation=evaluation)
    assert [row.id for row in ingest.rows("train")] == ["a", "a~2", "a~2~2", "a~3", "b"]


def test_chat_column(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """In a chat column the last answer is the reference, and all before it the document."""
    chats = [
        "<s>[INST] q1 [/INST] a1 </s>",
        "<s>[INST] q2 [/INST] a2 </s><s>[INST] q3 [/INST] a3 </s>",
        "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq4 [/INST] a4",
    ]
    dev = jsonl(tmp_path / "e.jsonl", [{"text": "<s>[INST] other [/INST] b </s>"}])
    train = jsonl(tmp_path / "t.jsonl", [{"text": chat} for chat in chats])
    for fields in (Fields(text="text"), Fields()):
        ingest(train=train, evaluation=dev, fields=fields)
        assert [(row.document, row.references) for row in ingest.rows("train")] == [
            ("[INST] q1 [/INST]", ("a1",)),
            ("[INST] q2 [/INST] a2 </s><s>[INST] q3 [/INST]", ("a3",)),
            ("[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nq4 [/INST]", ("a4",)),
        ]
    assert ingest.report()["inputs"]["data.train"]["files"][0]["fields"]["guessed"] == ["text"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("just text", "not in chat format"),
        ("answer [/INST] without a question mark before", "not in chat format"),
        ("<s>[INST] q [/INST] </s>", "no answer"),
        ("<s>[INST] q [/INST]", "no answer"),
        ("<s>[INST]  [/INST] a </s>", "blank question"),
        ("<s>[INST] q [/INST] a </s><s>[INST] q2", "question without an answer"),
        ("<s>[INST] q [/INST] a </s> and more", "has text after the end"),
    ],
)
def test_bad_chat(text: str, problem: str) -> None:
    """A chat row that does not end in an answer says what is wrong."""
    with pytest.raises(ValueError, match=problem):
        split_chat(text)


def test_bad_chat_row(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A bad chat row is a reject like any other."""
    good = [{"text": f"<s>[INST] {document(n)} [/INST] a </s>"} for n in range(3)]
    train = jsonl(tmp_path / "t.jsonl", [*good, {"text": "<s>[INST] q [/INST] </s>"}, {"text": 5}])
    dev = jsonl(tmp_path / "e.jsonl", [{"text": "[INST] x [/INST] y"}])
    ingest(train=train, evaluation=dev, max_rejected_share=LENIENT)
    assert [reject["line"] for reject in ingest.rejects()] == [4, 5]
