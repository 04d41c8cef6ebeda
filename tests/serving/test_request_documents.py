"""What a served model may be given, and that it cleans texts as ingest does.

Over 250 lines: every form of request, for each form of prompt.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from tasks.contracts.recipe import Prompt
from tasks.ingest.columns import Columns
from tasks.ingest.fields import example_of
from tasks.ingest.row_types import Example, Raw, Reject
from tasks.register import log_model
from tasks.serving.summarizer import Generator, SummarizerSettings, documents_of

ONE = SummarizerSettings("Sum:\n{document}\nUp: ", 200, "tail", 6, 3, columns=("dialogue",))
SEVERAL = SummarizerSettings(
    "{question}\n{context}\nA: ",
    200,
    "tail",
    6,
    3,
    inputs=("question", "context"),
    optional=("context",),
    columns=("question", "passage"),
)
CHAT = replace(ONE, format="chat", template="{document}", columns=())
TALK = [{"role": "user", "content": "Why?"}]
QA = [{"question": "Why?", "context": "So."}, {"question": "How?", "context": ""}]


@pytest.mark.parametrize(
    "given",
    [
        ["a b", "c"],
        ("a b", "c"),
        np.array(["a b", "c"]),
        pd.Series(["a b", "c"]),
        pd.DataFrame({0: ["a b", "c"]}),
        pd.DataFrame({"anything": ["a b", "c"]}),
        pd.DataFrame({"id": ["1", "2"], "dialogue": ["a b", "c"]}),
        pd.DataFrame({"id": ["1", "2"], "document": ["a b", "c"]}, index=[7, 9]),
        {"dialogue": ["a b", "c"], "id": ["1", "2"]},
        {"document": np.array(["a b", "c"])},
        [{"id": 1, "dialogue": "a b"}, {"dialogue": "c", "more": None}],
    ],
)
def test_one_document(given: Any) -> None:
    """A list of texts, or columns of which one is the document's by name, or the only one."""
    assert documents_of(given, ONE) == ["a b", "c"]


@pytest.mark.parametrize("given", ["a b", np.array("a b"), {"dialogue": "a b"}, ["a b"]])
def test_a_single_text(given: Any) -> None:
    """A single text, or dict, is one row."""
    assert documents_of(given, ONE) == ["a b"]


@pytest.mark.parametrize(
    "given",
    [
        pd.DataFrame({"id": ["1"], "text": ["a"]}),
        {"id": "1", "text": "a"},
        [{"id": "1", "text": "a"}],
    ],
)
def test_several_columns_without_the_document_s(given: Any) -> None:
    """Never the first one: the columns are listed, with the names that are looked for."""
    with pytest.raises(ValueError, match="none of the columns id, text is dialogue or document"):
        documents_of(given, ONE)


@pytest.mark.parametrize(
    "given",
    [
        QA,
        pd.DataFrame(QA),
        pd.DataFrame(QA).rename(columns={"context": "passage"}).assign(id=[1, 2]),
        {"question": ["Why?", "How?"], "context": ["So.", None]},
        [{"question": "Why?", "passage": "So."}, {"question": "How?"}],
        pd.DataFrame([{"question": ["Why?", "How?"], "context": ["So.", float("nan")]}]),
        {"question": np.array(["Why?", "How?"]), "context": np.array(["So.", ""])},
    ],
)
def test_several_texts_by_name(given: Any) -> None:
    """By their names in the prompt or by their columns in the training data; optional ones may lack."""
    assert documents_of(given, SEVERAL) == QA


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        (["fine", "\u200b\ufeff"], "row 2: document is blank (it holds only characters"),
        (["fine", "", 5, None, "\ud83d"], "row 2: document is blank; row 3: document is a number"),
        (["fine", float("nan")], "row 2: document is null"),
        (pd.DataFrame({"dialogue": ["fine", pd.NA]}), "row 2: dialogue is null"),
        ([{"dialogue": "fine"}, {"other": "x"}], "row 2: dialogue is null"),
        (["fine", TALK], "row 2: document is a list"),
        (["fine", b"x"], "row 2: document is binary"),
    ],
)
def test_what_is_no_document(given: Any, faults: str) -> None:
    """Each row is named, and no text of the others shown."""
    with pytest.raises(ValueError, match="rows cannot be used") as caught:
        documents_of(given, ONE)
    assert faults in str(caught.value)
    assert "fine" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ([{"context": "x"}], "row 1: question is missing"),
        ([QA[0], {"question": " ", "context": "x"}], "row 2: question is blank"),
        (["text"], r"row 1: give the texts by name \(question, context\)"),
        ([{"question": 5, "context": ["x"]}], "question is a number.*, context is a list"),
        ({"question": ["a", "b"], "context": ["c"]}, "columns have 1 and 2 rows"),
    ],
)
def test_what_is_no_row_of_texts(given: Any, faults: str) -> None:
    with pytest.raises(ValueError, match=faults):
        documents_of(given, SEVERAL)


@pytest.mark.parametrize(
    "given",
    [
        [TALK],
        TALK,
        {"messages": TALK},
        {"messages": [TALK]},
        pd.DataFrame({"id": [1], "messages": [TALK]}),
    ],
)
def test_conversations(given: Any) -> None:
    """A list of messages is one document; so is a text."""
    assert documents_of(given, CHAT) == [TALK]
    assert documents_of(["Why?"], CHAT) == ["Why?"]
    with pytest.raises(ValueError, match="row 1: message 1 is blank"):
        documents_of([[{"role": "user", "content": " "}]], CHAT)


TEXTS = ["a\r\nb", "a\r\r\nb", "a\rb", " a ", "e\u0301", "\ufeffa", "", " \n", "\ud83d", "x\x00y"]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ([{**TALK[0], "tool_calls": [{"id": "1"}]}], "message 1 has tool_calls"),
        ([{**TALK[0], "name": "Ann"}], "message 1 has name"),
        ({"messages": TALK, "tools": [{"type": "function"}]}, "has tools"),
    ],
)
def test_tools_and_names_are_not_left_out_silently(given: Any, fault: str) -> None:
    """Training rejects them, so the served model does; where they are empty they say nothing."""
    with pytest.raises(ValueError, match=fault):
        documents_of(given, CHAT)
    empty = [{**TALK[0], "tool_calls": [], "name": None}]
    assert documents_of({"messages": empty, "tools": []}, CHAT) == [empty]


@pytest.mark.parametrize("text", [*TEXTS, None, 5, 1.5, True, ["a"], {"a": 1}, b"a"])
def test_serving_cleans_as_ingest_does(text: Any) -> None:
    """The same text makes the same document, or is refused on both sides; twice cleaned is once."""
    columns = Columns("dialogue", ("s",), None, None)
    made = example_of(Raw(1, {"dialogue": text, "s": "s"}), "f", columns, Prompt())
    try:
        served = documents_of([{"dialogue": text}], ONE)
    except ValueError:
        assert isinstance(made, Reject)
        return
    assert isinstance(made, Example)
    assert served == [made.document] == documents_of([made.document], ONE)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


def logged(base: Path, folder: Path, settings: SummarizerSettings) -> tuple[str, Generator]:
    """A model as it is logged, and the generator of the same package."""
    package = tiny.packaged(base, folder / "package", settings)
    log_model.lay_out(package, folder / "model")
    return str(folder / "model"), Generator(package, "cpu")


@pytest.fixture
def client(base: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """MLflow's own scoring server around a logged model, in this process."""
    import mlflow
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    settings: SummarizerSettings = request.param
    uri, generator = logged(base, tmp_path, settings)
    model = mlflow.pyfunc.load_model(uri)
    documents: list[Any] = ["a b c", "d e\nf"] if settings is ONE else QA
    expected = [summary.text for summary in generator.summarize(documents)]
    return TestClient(scoring_server.init(model)), model, expected


def answers(client: Any, **body: Any) -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    response = client.post("/invocations", content=json.dumps(body), headers=headers)
    return response.status_code, json.loads(response.text).get("predictions", response.text)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("client", [ONE], indirect=True)
def test_every_form_of_mlflow_s_server(client: Any) -> None:
    """One document: inputs, instances and DataFrames give the package's summaries; others answer 400."""
    http, model, expected = client
    texts = ["a b c", "d e\r\nf"]
    rows = [{"id": "1", "dialogue": text} for text in texts]
    split = {"columns": ["id", "dialogue"], "data": [["1", text] for text in texts]}
    good = [
        {"inputs": texts},
        {"instances": texts},
        {"inputs": {"dialogue": texts}},
        {"instances": rows},
        {"inputs": rows},
        {"dataframe_split": split},
        {"dataframe_records": rows},
    ]
    for body in good:
        assert answers(http, **body) == (200, expected), body
    bad = [
        {"inputs": ["a b c", ""]},
        {"inputs": ["a b c", None]},
        {"instances": [5]},
        {"dataframe_split": {"columns": ["id", "text"], "data": [["1", "a"]]}},
        {"dataframe_records": [{"id": "1", "text": "a"}]},
        {"inputs": []},
        {"inputs": ["a b c", 5]},
        {"inputs": ["a b c", "\ud83d"]},
        {"inputs": ["a b c"], "params": {"temperature": 0.5}},
    ]
    for body in bad:
        status, text = answers(http, **body)
        assert (status, "a b c" in text) == (400, False), body
    # Refused by MLflow, before the model sees them.
    for body in (
        {"inputs": ["a b c"], "params": {"max_new_tokens": "many"}},
        {"inputs": ["a b c Error: x"], "params": {"temperature": [1]}},
        {"inputs": ["a b c"], "params": [1]},
        {"dataframe_records": [{"dialogue": "a b c"}], "params": "x"},
        {"inputs": None},
    ):
        status, text = answers(http, **body)
        assert (status, "a b c" in text) == (400, False), (body, text)
    for kind, raw in (
        ("application/json", b'{"inputs": ["a b c"],'),
        ("application/json", b'{"inputs": ["a b c \xff"]}'),
        ("text/csv", b"dialogue\na b c \xff\n"),
        ("text/csv", b"dialogue\na b c, and more\n"),  # pandas would take "a b c" for an index
        ("text/csv", b'dialogue\n"a b c'),
    ):
        response = http.post("/invocations", content=raw, headers={"Content-Type": kind})
        assert (response.status_code, "a b c" in response.text) == (400, False), response.text
    assert "many" in answers(http, inputs=["a"], params={"max_new_tokens": "many"})[1]
    csv = 'id,dialogue\n1,a b c\n2,"d e\nf"\n'
    response = http.post("/invocations", content=csv, headers={"Content-Type": "text/csv"})
    assert json.loads(response.text)["predictions"] == expected
    assert list(model.predict(pd.DataFrame(rows))) == expected
    with pytest.raises(ValueError, match="row 2: document is blank"):
        model.predict(["a", " "])
    assert model.metadata.get_output_schema().input_types()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "client",
    [SEVERAL, replace(SEVERAL, columns=()), replace(SEVERAL, columns=("Question", "passage"))],
    indirect=True,
)
def test_a_server_of_several_texts(client: Any) -> None:
    """The signature names the columns, and each form of request takes them by name."""
    http, model, expected = client
    assert {"question", "context"} <= set(model.metadata.get_input_schema().input_names())
    names = list(QA[0])
    good = [
        {"inputs": QA},
        {"instances": QA},
        {"inputs": {name: [row[name] for row in QA] for name in names}},
        {"dataframe_split": {"columns": names, "data": [list(row.values()) for row in QA]}},
        {"dataframe_records": [QA[0], {"question": "How?"}]},
        {"dataframe_records": [QA[0], {"question": "How?", "context": None}]},
    ]
    for body in good:
        assert answers(http, **body) == (200, expected), body
    bad: list[dict[str, Any]] = [
        {"inputs": ["Why?"]},
        {"inputs": "Why?"},
        {"inputs": [{"context": "x"}]},
        {"instances": [{"a": 1}]},
        {"inputs": [QA[0], {"question": None, "context": "x"}]},
        {"inputs": [QA[0], {"question": 5, "context": "x"}]},
        {"instances": [{"question": 5, "context": "x"}]},
        {"dataframe_split": {"columns": names, "data": [["Why?", 5]]}},
        {"dataframe_records": [{"question": None, "context": "x"}]},
        {"dataframe_records": [{"context": "x"}]},
    ]
    for body in bad:
        status, text = answers(http, **body)
        assert (status, "Failed to predict data" in text) == (400, False), body
    assert list(model.predict(pd.DataFrame(QA))) == expected
    blank = pd.DataFrame({"question": ["How?"], "context": [float("nan")]})
    assert list(model.predict(blank)) == expected[1:]
    with pytest.raises(ValueError, match="row 1: question is blank"):
        model.predict([{"question": " ", "context": "x"}])
