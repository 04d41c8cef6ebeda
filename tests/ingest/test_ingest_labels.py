"""Labels of evaluation rows: columns and files by which the gate slices them."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ingest_files import Ingest, jsonl, refused, rows

from tasks.contracts.digest import of_file
from tasks.contracts.recipe import Data, Gate, Prompt
from tasks.contracts.slice_labels import read_labels
from tasks.ingest.evaluation_labels import shortest_tails
from tasks.ingest.label_values import values_of
from tasks.ingest.prepare import look
from tasks.ingest.unseen_rows import count_new


def labelled(count: int, start: int = 0, **columns: Any) -> list[dict[str, Any]]:
    """Rows with more columns; a list gives each row its own value."""
    return [
        row | {name: of[n] if isinstance(of, list) else of for name, of in columns.items()}
        for n, row in enumerate(rows(count, start))
    ]


@pytest.fixture
def train(tmp_path: Path) -> str:
    return jsonl(tmp_path / "train.jsonl", rows(30))


def labels_of(ingest: Ingest, name: str) -> list[tuple[str, ...]]:
    return list(read_labels(ingest.folder / "labels.json")[name].values())


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ("billing", ("billing",)),
        ("  two\n words ", ("two words",)),
        (3, ("3",)),
        (3.0, ("3",)),
        (Decimal("3.00"), ("3",)),
        (3.5, ("3.5",)),
        (1e300, ("1e+300",)),
        (float("inf"), ("inf",)),
        (True, ("true",)),
        (datetime.date(2024, 5, 1), ("2024-05-01",)),
        (b"\x00\xff", ("00ff",)),
        (["b", "a", "b", None, " "], ("a", "b")),
        ([["a"], {"k": 1}], ('["a"]', '{"k": 1}')),
        ({"b": 1, "a": [2]}, ('{"a": [2], "b": 1}',)),
        ("e\u0301", ("é",)),
        ("می\u200cشود", ("می\u200cشود",)),
        ("\x1b[31mred\u202e\ud800", ("\\x1b[31mred\\u202e\\ud800",)),
        *[(nothing, ()) for nothing in (None, "", " \n", float("nan"), [], {}, [None, ""])],
    ],
)
def test_a_value_names_slices(value: Any, names: tuple[str, ...]) -> None:
    """Whole numbers are whole, a list is in each slice, nothing is no name; no value is refused."""
    assert values_of(value) == names


def test_long_texts_are_told_apart() -> None:
    """Shortened, with a digest of the whole."""
    [one], [other] = values_of("x" * 200), values_of("x" * 201)
    assert one != other
    assert max(len(one), len(other)) < 70


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_a_column_labels_evaluation_rows(
    kind: str, ingest: Ingest, train: str, tmp_path: Path
) -> None:
    """Read from each form of file, also where training rows lack it; the rows are what they are without."""
    values = labelled(6, 900, topic=["a", "b", "a", "", "b", "a"])
    path = tmp_path / f"dev.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(values), path)
    elif kind == "csv":
        lines = [",".join(row[name] for name in row) for row in values]
        path.write_text("\n".join(["document,summary,topic", *lines]) + "\n")
    else:
        jsonl(path, values)
    with_labels = ingest(train=train, evaluation=str(path), slices=("topic", "length"))
    expected = [("a",), ("b",), ("a",), ("(none)",), ("b",), ("a",)]
    assert labels_of(ingest, "topic") == expected
    assert with_labels.labels_digest == of_file(ingest.folder / "labels.json")
    assert list(read_labels(ingest.folder / "labels.json")) == ["topic"]
    without = ingest(train=train, evaluation=str(path))
    assert without.labels_digest == ""
    assert not (ingest.folder / "labels.json").exists()
    assert without.digest == with_labels.digest


def test_a_label_changes_nothing_else(ingest: Ingest, tmp_path: Path) -> None:
    """A column that may matter is accepted as a label, and a label as document stays the document."""
    train = jsonl(tmp_path / "train.jsonl", labelled(30, label="good"))
    dev = jsonl(tmp_path / "dev.jsonl", labelled(4, 900, label=["x", "y", "x", None]))
    assert '"label" may say which rows are good' in refused(ingest, train=train, evaluation=dev)
    ingest(train=train, evaluation=dev, slices=("label", "document"))
    assert labels_of(ingest, "label") == [("x",), ("y",), ("x",), ("(none)",)]
    assert len(set(labels_of(ingest, "document"))) == 4
    assert '"label"' in ingest.report()["inputs"]["data.evaluation"]["files"][0]["fields"]["uses"]
    seen = [ingest.folder / "train.jsonl"]
    assert count_new(Data(train=train, evaluation=dev), Prompt(), seen, ("label",)) == 0


def test_a_label_that_first_rows_lack_is_read(ingest: Ingest, train: str, tmp_path: Path) -> None:
    """After row 100 too: a column named as a label is no surprise, whatever its name promises."""
    late = [*rows(120, 900), *labelled(5, 2000, score=4)]
    ingest(train=train, evaluation=jsonl(tmp_path / "dev.jsonl", late), slices=("score",))
    assert labels_of(ingest, "score") == [("(none)",)] * 120 + [("4",)] * 5
    assert not ingest.rejects()


def test_a_place_in_the_template_is_no_label(ingest: Ingest, train: str, tmp_path: Path) -> None:
    """{topic} in the prompt would stay as it is, label or not; ignored on purpose it may."""
    dev = jsonl(tmp_path / "dev.jsonl", labelled(5, 900, topic="a"))
    prompt = Prompt(template="About {topic}: {document}\n")
    told = refused(ingest, prompt, train=train, evaluation=dev, slices=("topic",))
    assert '"topic" may be a part of the prompt' in told
    fields = {"ignore": ("topic",)}
    ingest(prompt, train=train, evaluation=dev, fields=fields, slices=("topic",))
    assert labels_of(ingest, "topic") == [("a",)] * 5


@pytest.mark.parametrize(
    ("columns", "slices", "message"),
    [
        ({"topic": "a"}, ("topik",), 'no deciding row has a column "topik"; nearest: "topic"; ev'),
        ({"topic": "a"}, ("lenght",), 'column "lenght"; nearest: "length"; evaluation rows have: doc'),
        ({"topic": "a"}, ("column:length",), 'column "length"; nearest: "length"'),
        ({"topic": None}, ("topic",), '"topic" is blank in every deciding row'),
        ({"topic": "a"}, ("column:",), 'no deciding row has a column ""; evaluation rows have'),
    ],
)  # fmt: skip
def test_a_name_that_no_deciding_row_has_is_refused(
    columns: dict[str, Any],
    slices: tuple[str, ...],
    message: str,
    ingest: Ingest,
    train: str,
    tmp_path: Path,
) -> None:
    """With the nearest name first, the reserved ones among them."""
    dev = jsonl(tmp_path / "dev.jsonl", labelled(5, 900, **columns))
    told = refused(ingest, train=train, evaluation=dev, slices=slices)
    assert message in told
    assert "gate.slices" in told


def test_files_are_sources(ingest: Ingest, train: str, tmp_path: Path) -> None:
    """Each row by its file, as little of its path as tells it from the others."""
    for number, name in enumerate(("north/dev.jsonl", "south/dev.jsonl", "south/web.jsonl")):
        jsonl(tmp_path / "eval" / name, labelled(2, 900 + 10 * number, source=None))
    ingest(train=train, evaluation=str(tmp_path / "eval"), slices=("source",))
    names = ("north/dev.jsonl", "south/dev.jsonl", "web.jsonl")
    assert labels_of(ingest, "source") == [(name,) for name in names for _ in range(2)]


def test_shortest_tails_of_nested_paths() -> None:
    """A path that is the end of another is itself; names differ in every case."""
    files = ["a/b.jsonl", "x/a/b.jsonl", "s3://bucket/c.jsonl"]
    assert list(shortest_tails(files).values()) == ["a/b.jsonl", "x/a/b.jsonl", "c.jsonl"]


def test_source_is_a_column_that_says_it(ingest: Ingest, train: str, tmp_path: Path) -> None:
    """One filled row makes it the column, the others are (none); column:source is the column always."""
    dev = jsonl(tmp_path / "dev.jsonl", labelled(3, 900, source=["web", None, "mail"]))
    ingest(train=train, evaluation=dev, slices=("source", "column:source"))
    assert labels_of(ingest, "source") == [("web",), ("(none)",), ("mail",)]
    assert labels_of(ingest, "column:source") == labels_of(ingest, "source")


def test_a_source_that_is_the_document_is_none(ingest: Ingest, tmp_path: Path) -> None:
    """Of source and target pairs the document is called so: rows are told apart by file."""
    pairs = [{"source": row["document"], "target": row["summary"]} for row in rows(40)]
    train = jsonl(tmp_path / "train.jsonl", pairs[:30])
    dev = jsonl(tmp_path / "dev.jsonl", pairs[30:])
    ingest(train=train, evaluation=dev, slices=("source",))
    assert labels_of(ingest, "source") == [("dev.jsonl",)] * 10


def remarks(**data: Any) -> list[str]:
    slices = data.pop("slices")
    report = look(Data(**data), Prompt(), slices=slices).report
    return [line for line in report["remarks"] if line.startswith("gate.slices")]


def test_what_labels_cannot_show_is_told(train: str, tmp_path: Path) -> None:
    """Too few documents for any value, one value alone, open rows without, duplicates with another."""
    few = labelled(25, 900, topic=[f"t{n}" for n in range(25)], kind="k")
    again = {**few[0], "topic": "other"}
    dev = jsonl(tmp_path / "dev.jsonl", [*few, again, few[1]])
    opened = jsonl(
        tmp_path / "open.jsonl", [*rows(2, 2000), *labelled(1, 2100, topic="t1", kind="k")]
    )
    told = remarks(
        train=train, evaluation=dev, open_evaluation=opened, slices=("topic", "kind", "source")
    )
    assert told == [
        'gate.slices: no topic has 20 evaluation documents (the most: "t0", 1), so no slice of it can be '
        "judged",
        "gate.slices: 2 of 3 rows of data.open_evaluation have no topic; they are in the slice (none)",
        "gate.slices: 1 evaluation rows were dropped as duplicates though their topic is another than that "
        "of the row that stayed, which keeps its own",
        'gate.slices: every deciding row has the same kind, "k": one slice',
        "gate.slices: 2 of 3 rows of data.open_evaluation have no kind; they are in the slice (none)",
        'gate.slices: every deciding row has the same source, "dev.jsonl": one slice',
    ]


def test_open_rows_alone_do_not_make_a_label(ingest: Ingest, train: str, tmp_path: Path) -> None:
    """What open rows have decides nothing: neither that a column is there, nor what source means."""
    dev = jsonl(tmp_path / "dev.jsonl", rows(5, 900))
    opened = jsonl(tmp_path / "open.jsonl", labelled(5, 2000, topic="a", source="web"))
    data = {"train": train, "evaluation": dev, "open_evaluation": opened}
    assert "every deciding row" in refused(ingest, **data, slices=("topic",))
    ingest(**data, slices=("source",))
    assert set(labels_of(ingest, "source")) == {("dev.jsonl",), ("open.jsonl",)}


def test_rows_held_out_by_hash_have_labels(ingest: Ingest, tmp_path: Path) -> None:
    """Of one source, those that are evaluation rows, by their ids."""
    values = labelled(60, topic=[f"t{n % 2}" for n in range(60)])
    ingest(train=jsonl(tmp_path / "all.jsonl", values), evaluation_share=0.3, slices=("topic",))
    labels = read_labels(ingest.folder / "labels.json")["topic"]
    assert list(labels) == [row.id for row in ingest.rows("evaluation")]
    by_document = {row["document"]: (row["topic"],) for row in values}
    assert [by_document[row.document] for row in ingest.rows("evaluation")] == [*labels.values()]


def test_a_recipe_takes_any_name_of_a_column() -> None:
    """Also repeated, as stored decisions may; but not a blank one."""
    stored = json.loads(Gate(slices=("topic", "length", "topic", "主题")).model_dump_json())
    assert Gate(**stored).slices == ("topic", "length", "topic", "主题")
    with pytest.raises(ValueError, match="at least 1 character"):
        Gate(slices=("",))
