"""Conversations as messages: each is read whole, or its row is rejected with what to do.

Over 250 lines: one table of forms, and one of what is refused.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from tasks.contracts.recipe import Fields, Prompt
from tasks.ingest.columns import Columns, choose
from tasks.ingest.fields import example_of
from tasks.ingest.row_types import Example, Raw

CHAT = Prompt(format="chat", chat_template="llama-2")
STRIP = Prompt(format="chat", chat_template="llama-2", reasoning="strip")
LEARN = Prompt(format="chat", chat_template="llama-2", reasoning="learn")
USER = {"role": "user", "content": "Who came?"}
ANSWER = {"role": "assistant", "content": "Ben."}
LIST = Columns(None, (), None, "messages")
PAIR = Columns("prompt", ("completion",), None, None)


def read(row: dict[str, Any], columns: Columns = LIST, prompt: Prompt = CHAT) -> Any:
    """(document, references) of a row, or its problem."""
    known = replace(columns, sampled=frozenset(row))
    found = example_of(Raw(7, row), "t.jsonl", known, prompt)
    return (found.document, found.references) if isinstance(found, Example) else found.problem


def one(messages: Any, prompt: Prompt = CHAT) -> Any:
    return read({"messages": messages}, prompt=prompt)


def numpy_like(messages: list[dict[str, str]]) -> str:
    return "[" + "\n ".join(map(repr, messages)) + "]"


PLAIN = ([USER], ("Ben.",))
IMAGE = {"type": "image_url", "image_url": {"url": "u"}}
AUDIO = {"type": "input_audio", "input_audio": {"data": "x"}}
PARTS = [{"type": "text", "text": "Who"}, {"type": "text", "text": "came?"}]
SAME = [
    [USER, ANSWER],
    (USER, ANSWER),
    json.dumps([USER, ANSWER]),
    f"  {json.dumps([USER, ANSWER], indent=2)}\n",
    repr([USER, ANSWER]),
    {"role": ["user", "assistant"], "content": ["Who came?", "Ben."]},
    {"from": ["human", "gpt"], "value": ["Who came?", "Ben."]},
    [{"from": "human", "value": "Who came?"}, {"from": "gpt", "value": "Ben."}],
    [{"role": "User", "content": " Who came?\n"}, {"role": "ASSISTANT ", "content": "\tBen. "}],
    [{"role": "human", "content": "Who came?"}, {"from": "bot", "value": "Ben."}],
    [USER | {"weight": 0}, ANSWER | {"weight": 1}],
    [USER | {"weight": None}, ANSWER | {"train": True}],
    [USER | {"loss": False}, ANSWER | {"loss": 1.0}],
    [USER | {"id": "x", "timestamp": 5}, ANSWER | {"model": "m"}],
    [USER | {"tool_calls": None}, ANSWER | {"tool_calls": [], "name": " ", "reasoning_content": ""}],
    [{"role": "system", "content": " "}, USER, ANSWER],
    [USER | {"content": [{"type": "text", "text": "Who came?"}]}, ANSWER | {"content": ["Ben."]}],
    [USER | {"content": [{"type": "text", "text": "Who came?", "image_url": None}]}, ANSWER],
    [USER, {"role": "assistant", "content": None, "value": "Ben."}],
    [USER | {"content": json.dumps([{"type": "text", "text": "Who came?"}])}, ANSWER],
]  # fmt: skip


@pytest.mark.parametrize("value", SAME, ids=range(len(SAME)))
def test_one_conversation_in_every_form(value: Any) -> None:
    """Lists, JSON and Python text, an object of lists, ShareGPT, parts, and keys that say nothing."""
    assert one(value) == PLAIN


@pytest.mark.parametrize("text", ['[{"name": "Ben"}]', "[{type: text}]", "[]", '["Who?"]'])
def test_other_json_in_a_message_is_text(text: str) -> None:
    """Only what can be nothing but parts is taken as parts."""
    assert one([USER | {"content": text}, ANSWER])[0] == [{"role": "user", "content": text}]


def test_a_developer_is_the_system() -> None:
    """OpenAI's newer name for the same role."""
    led = [{"role": "developer", "content": "Be terse."}, USER, ANSWER]
    assert one(led) == ([{"role": "system", "content": "Be terse."}, USER], ("Ben.",))


def test_parts_of_a_text_stand_on_lines_of_their_own() -> None:
    """As vLLM joins them for templates that take a text."""
    assert one([USER | {"content": PARTS}, ANSWER])[0] == [
        {"role": "user", "content": "Who\ncame?"}
    ]


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize("no", [0, 0.0, False])
def test_an_answer_of_weight_0_stays_as_context(key: str, no: Any) -> None:
    """It is stored with its weight, whatever the data call it."""
    talk = [USER, ANSWER | {key: no}, USER, ANSWER]
    assert one(talk) == ([USER, ANSWER | {"weight": 0}, USER], ("Ben.",))


THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "x"}
# (messages, whether the block stands in the text already)
REASONED = [
    ([USER, ANSWER | {"reasoning_content": "Hm."}], False),
    ([USER, ANSWER | {"reasoning": " Hm.\n", "reasoning_content": None}], False),
    ([USER, ANSWER | {"thinking": "Hm."}], False),
    ([USER, ANSWER | {"thinking": "Hm.", "reasoning": "Hm."}], False),
    ([USER, ANSWER | {"content": [THOUGHT, {"type": "text", "text": "Ben."}]}], False),
    ([USER, ANSWER | {"content": [{"type": "reasoning", "text": "Hm."}, "Ben."]}], False),
    ([USER, ANSWER | {"content": "<think>\nHm.\n</think>\n\nBen."}], True),
    ([USER, ANSWER | {"content": "<think>\nHm.\n</think>\n\nBen.", "reasoning": "Hm."}], False),
    ([USER, ANSWER | {"content": "<think></think>Ben."}], True),
    ([USER, ANSWER | {"content": "<thinking>Hm.</thinking>\nBen."}], True),
    ([USER, ANSWER | {"content": "<reasoning>Hm.</reasoning>Ben."}], True),
    ([USER, ANSWER | {"content": "[THINK]Hm.[/THINK]Ben."}], True),
    ([USER, ANSWER | {"content": "<|begin_of_thought|>Hm.<|end_of_thought|>\n\nBen."}], True),
]  # fmt: skip


@pytest.mark.parametrize(("value", "within"), REASONED, ids=range(len(REASONED)))
def test_reasoning_is_what_the_recipe_says(value: Any, within: bool) -> None:
    """Unchanged: the row is rejected. strip: left out. learn: before the answer, as a part of it."""
    assert "set prompt.reasoning: strip" in one(value)
    assert one(value, STRIP) == PLAIN
    document, (reference,) = one(value, LEARN)
    assert document == [USER]
    assert reference == (value[1]["content"] if within else "<think>\nHm.\n</think>\n\nBen.")


def test_reasoning_of_earlier_answers_and_in_llama_2_text() -> None:
    """All answers are learned, so that all are stripped or kept."""
    talk = [USER, ANSWER | {"reasoning": "Hm."}, USER, ANSWER]
    assert "(message 2) has reasoning" in one(talk)
    assert one(talk, STRIP) == ([USER, ANSWER, USER], ("Ben.",))
    assert one(talk, LEARN)[0][1]["content"] == "<think>\nHm.\n</think>\n\nBen."
    text = "<s>[INST] Who came? [/INST] <think>Hm.</think> Ben. </s>"
    assert "set prompt.reasoning: strip" in one(text)
    assert one(text, STRIP) == ("[INST] Who came? [/INST]", ("Ben.",))
    assert one(text, LEARN) == ("[INST] Who came? [/INST]", ("<think>Hm.</think> Ben.",))


def test_reasoning_in_a_summary_column() -> None:
    """Answers in a column of their own are read alike, in both formats of prompts."""
    row = {"prompt": "Who came?", "completion": "<think>Hm.</think>Ben."}
    for prompt in (CHAT, Prompt()):
        assert "set prompt.reasoning: strip" in read(row, PAIR, prompt)
        for setting, reference in (("strip", "Ben."), ("learn", row["completion"])):
            changed = prompt.model_copy(update={"reasoning": setting})
            assert read(row, PAIR, changed) == ("Who came?", (reference,))


TOOLS = "calls of tools cannot be learned; remove the row"
REFUSED = [
    ([USER, ANSWER | {"weight": 0.5}], "(message 2) has the weight 0.5, and only 0 (context) and 1"),
    ([USER, ANSWER | {"weight": "1"}], "(message 2) has the weight '1'"),
    ([USER, ANSWER | {"weight": -1}], "only 0 (context) and 1 (learned) are read"),
    ([USER, ANSWER | {"loss": 0.31}], "(message 2) has the loss 0.31"),
    ([USER, ANSWER | {"weight": float("nan")}], "(message 2) has the weight nan"),
    ([USER, ANSWER | {"weight": 1, "train": False}], "(message 2) has weight and train, which differ"),
    ([USER | {"weight": 1}, ANSWER], "(message 1) is from the user and has the weight 1, but only answers"),
    ([USER, ANSWER | {"weight": 0}], "has weight 0 on its last answer, which is the one that is judged"),
    ([USER, ANSWER, USER, ANSWER | {"train": False}], "has weight 0 on its last answer"),
    ([USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]}, ANSWER], TOOLS),
    ([USER, {"role": "assistant", "function_call": {"name": "f"}}, ANSWER], TOOLS),
    ([USER, {"role": "tool", "content": "3"}, ANSWER], "(message 2) has the role 'tool': calls of tools"),
    ([USER, {"from": "function_call", "value": "f()"}, ANSWER], TOOLS),
    ([USER, {"from": "observation", "value": "3"}, ANSWER], TOOLS),
    ([USER | {"name": "Ann"}, ANSWER], "(message 1) has name: it would not be seen; remove the row, or name"),
    ([USER | {"images": ["a.png"]}, ANSWER], "(message 1) has images"),
    ([USER, ANSWER | {"refusal": "No."}], "(message 2) has refusal"),
    ([USER, ANSWER | {"score": 0}], "(message 2) has score"),
    ([USER, {"role": "narrator", "content": "x"}], "(message 2) has the role 'narrator', and only"),
    ([USER, {"role": None, "content": "x"}], "(message 2) has the role None"),
    ([USER, {"role": 3, "content": "x"}], "(message 2) has the role 3"),
    ([USER, USER, ANSWER], "(message 2) is from the user; after an optional system"),
    ([USER, ANSWER, ANSWER], "(message 3) is from the assistant"),
    ([ANSWER, USER, ANSWER], "(message 1) is from the assistant"),
    ([{"role": "system", "content": "s"}, ANSWER], "(message 2) is from the assistant"),
    ([{"role": "system", "content": " "}, ANSWER], "is from the assistant"),
    ([USER, ANSWER, {"role": "system", "content": "s"}, ANSWER], "(message 3) is from the system"),
    ([USER, ANSWER, USER], "ends in a question without an answer; add the answer"),
    ([{"role": "system", "content": "s"}], "ends in a question without an answer"),
    ([USER | {"content": [IMAGE]}, ANSWER], "(message 1), part 1, is of type image_url"),
    ([USER | {"content": [*PARTS, {"type": "image"}]}, ANSWER], "(message 1), part 3, is of type image"),
    ([USER | {"content": [AUDIO]}, ANSWER], "is of type input_audio"),
    ([USER | {"content": [{"type": "text", "text": None}]}, ANSWER], "(message 1), part 1, is of type text"),
    ([USER | {"content": json.dumps([IMAGE])}, ANSWER], "(message 1), part 1, is of type image_url"),
    ([USER | {"content": [3]}, ANSWER], "(message 1), part 1, is no text and no object"),
    ([USER | {"content": []}, ANSWER], "(message 1) is a list, not text"),
    ([USER, ANSWER | {"content": None}], "(message 2) is null, not text"),
    ([USER, ANSWER | {"content": 5}], "(message 2) is a number"),
    ([USER, ANSWER | {"content": ""}], "(message 2) is blank"),
    ([USER, {"role": "assistant"}], "(message 2) has no role and content"),
    ([USER, {"role": "assistant", "content": "a", "value": "b"}], "(message 2) has both content and value"),
    ([USER, ANSWER | {"content": "<think>Hm."}], "(message 2) begins with reasoning that never ends"),
    ([USER, ANSWER | {"content": "Hm.\n</think>\n\nBen."}], "holds </think>, the end of reasoning, and does"),
    ([USER, ANSWER | {"content": "So: <think>Hm.</think> Ben."}], "put <think> before the reasoning"),
    ([USER, ANSWER | {"content": "<Think>Hm.</Think>Ben."}], "(message 2) holds </Think>"),
    ([USER, ANSWER | {"content": "Hm.[/THINK]Ben."}], "put [THINK] before"),
    ([USER, ANSWER | {"content": "<think>Hm.</think>Ben.<think>Oh.</think>"}], "holds </think>"),
    ([USER, ANSWER | {"content": "Hm.</think>Ben."}, USER, ANSWER], "(message 2) holds </think>"),
    ([USER, "Ben."], "(message 2) has no role and content"),
    ([], "is an empty list"),
    ("[]", "is an empty list"),
    (None, '"messages" is null'),
    (json.dumps([USER, ANSWER])[:-9], "begins as a list of messages and is not JSON"),
    (numpy_like([USER, ANSWER]), "begins as a list of messages and is not JSON"),
    ("[{" * 100_000, "begins as a list of messages and is not JSON"),
    ("Who came? Ben.", '"messages" is not in chat format'),
]  # fmt: skip


@pytest.mark.parametrize(("value", "says"), REFUSED, ids=range(len(REFUSED)))
def test_what_cannot_be_used_is_said(value: Any, says: str) -> None:
    """The column, the message, what is wrong and what to do; under strip as well."""
    for prompt in (CHAT, STRIP):
        problem = one(value, prompt)
        assert isinstance(problem, str), "read"
        assert says in problem
        assert problem.startswith('"messages"')
        assert ";" in problem, "no fix"


NO_ANSWER = [
    ({"content": "<think>Hm.</think> "}, "(message 2) has reasoning and no answer; add"),
    ({"content": [THOUGHT]}, "(message 2) has reasoning and no answer; add"),
    ({"content": "", "reasoning": "Hm."}, "(message 2) is blank"),
    ({"reasoning": "Hm.", "content": None}, "(message 2) is null"),
    ({"reasoning": ["Hm."]}, "(message 2) reasoning is a list"),
]


@pytest.mark.parametrize(("fields", "says"), NO_ANSWER, ids=range(len(NO_ANSWER)))
def test_reasoning_alone_is_no_answer(fields: dict[str, Any], says: str) -> None:
    """Neither learned nor stripped."""
    for prompt in (STRIP, LEARN):
        assert says in one([USER, ANSWER | fields], prompt)


def test_reasoning_that_fits_nowhere() -> None:
    """A question's, two that differ, and a reference of nothing else."""
    assert "is from the user and has reasoning" in one([USER | {"reasoning": "Hm."}, ANSWER], STRIP)
    twice = ANSWER | {"content": "<think>So.</think>Ben.", "reasoning": "Hm."}
    assert "within its text and beside it" in one([USER, twice], LEARN)
    row = {"prompt": "Who came?", "completion": "<think>Hm.</think>"}
    assert '"completion" has reasoning and no answer' in read(row, PAIR, STRIP)


def test_a_prompt_template_has_no_place_for_messages() -> None:
    """Texts in Llama 2's form go into it as they are; lists do not become such texts by themselves."""
    for row, columns in (
        ({"messages": [USER, ANSWER]}, LIST),
        ({"messages": json.dumps([USER, ANSWER])}, LIST),
        ({"prompt": [USER], "completion": "Ben."}, PAIR),
    ):
        assert "set prompt.format: chat" in read(row, columns, Prompt())
    text = "<s>[INST] Who came? [/INST] Ben. </s>"
    assert read({"messages": text}, prompt=Prompt()) == ("[INST] Who came? [/INST]", ("Ben.",))


# --- A prompt column and a completion column (TRL) -------------------------------------------------


@pytest.mark.parametrize("prompt", [[USER], json.dumps([USER]), "Who came?"])
@pytest.mark.parametrize("completion", [[ANSWER], json.dumps([ANSWER]), "Ben."])
def test_prompt_and_completion_as_messages_or_texts(prompt: Any, completion: Any) -> None:
    """Each by itself."""
    document, references = read({"prompt": prompt, "completion": completion}, PAIR)
    assert document in ([USER], "Who came?")
    assert references == ("Ben.",)


def test_answers_in_a_prompt_are_context() -> None:
    """TRL takes the loss on the completion alone."""
    led = [{"role": "system", "content": "Be terse."}, USER, ANSWER, USER]
    document, _ = read({"prompt": led, "completion": [ANSWER]}, PAIR)
    assert document == [led[0], USER, ANSWER | {"weight": 0}, USER]


@pytest.mark.parametrize(
    ("prompt", "completion", "says"),
    [
        ([USER, ANSWER], [ANSWER], '"prompt" ends in an answer'),
        ([USER], [USER], '"completion" must hold one message'),
        ([USER], [ANSWER, USER, ANSWER], '"completion" must hold one message'),
        ([USER], [ANSWER | {"weight": 0}], '"completion" has weight 0'),
        ([ANSWER], [ANSWER], '"prompt" (message 1) is from the assistant'),
        ([USER, ANSWER | {"weight": 1}, USER], [ANSWER], '"prompt" has an answer of weight 1'),
        ([{"role": "system", "content": "s"}], [ANSWER], '"prompt" ends in a question without'),
    ],
)
def test_prompt_and_completion_that_do_not_fit(prompt: Any, completion: Any, says: str) -> None:
    """The column that is wrong is named."""
    assert says in read({"prompt": prompt, "completion": completion}, PAIR)


# --- What is not used is named --------------------------------------------------------------------


def test_keys_of_messages_that_nothing_uses_are_named() -> None:
    """Harmless ones; the others reject their row, unless the recipe ignores them."""
    talk = [USER | {"id": "a", "timestamp": 1, "name": None}, ANSWER | {"model": "m"}]
    rows: list[dict[str, Any]] = [{"messages": talk}]
    assert choose(Fields(), ["messages"], rows, CHAT)[0].notes == (
        'messages also hold "id", "timestamp", "model", which nothing uses',
    )
    named = [USER | {"name": "Ann"}, ANSWER | {"weight": 0.5, "tool_calls": [1]}]
    assert "has name" in one(named)
    columns, _ = choose(
        Fields(ignore=("name", "weight", "tool_calls")), ["messages"], [{"messages": named}], CHAT
    )
    assert read({"messages": named}, columns) == PLAIN


@pytest.mark.parametrize(
    "name", ["messages", "conversation", "chat", "dialog", "Dialogue", "turns"]
)
def test_usual_names_of_conversations(name: str) -> None:
    """Where they hold messages, and no pair of columns comes first."""
    rows: list[dict[str, Any]] = [{name: [USER, ANSWER]}]
    assert choose(Fields(), [name], rows, CHAT)[0].text == name
    assert not choose(Fields(), [name], [{name: "Ann: Who came?"}], CHAT)[1]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([{"human": "Who?", "assistant": "Ben."}], "(message 1) has no role and content"),
        ([["user", "Who?"], ["assistant", "Ben."]], "(message 1) has no role and content"),
        (["Who?", "Ben."], "(message 1) has no role and content"),
        (numpy_like([USER, ANSWER]), "is not JSON"),
    ],
    ids=range(4),
)
def test_other_forms_of_conversations_are_named(value: Any, says: str) -> None:
    """A column with a usual name is not overlooked for its form: each row says what is wrong."""
    rows: list[dict[str, Any]] = [{"conversation": value}]
    columns, fit = choose(Fields(), ["conversation"], rows, CHAT)
    assert (fit, columns.text) == (True, "conversation")
    assert says in read(rows[0], columns)


@pytest.mark.parametrize("answer", ["output", "response", "answer", "completion"])
def test_messages_and_a_column_that_answers_them(answer: str) -> None:
    """Guessed where they end in a question; of two such columns, or of whole conversations, none is."""
    names = ["messages", answer]
    columns, _ = choose(Fields(), names, [{"messages": [USER], answer: "Ben."}], CHAT)
    assert (columns.document, columns.summary, columns.text) == ("messages", (answer,), None)
    assert read({"messages": [USER], answer: "Ben."}, columns) == PLAIN
    for row in (
        {"messages": [USER, ANSWER], answer: "Ben."},
        {"messages": [USER], answer: "Ben.", "summary": "x"},
    ):
        assert choose(Fields(), list(row), [row], CHAT)[0].text == "messages"
