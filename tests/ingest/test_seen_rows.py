"""Rows as the model sees them: what training reads and what generation is given, in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ingest_files import jsonl, rows, settings

from tasks.contracts.recipe import Data, Prompt
from tasks.ingest import seen_rows
from tasks.ingest.prepare import look
from tasks.models import chat_templates


def seen(
    tokenizer: Path, path: Path, values: list[Any], served: Any, shown: int = 3, **fields: Any
) -> list[dict[str, Any]]:
    data = Data(train=jsonl(path / "t.jsonl", values), evaluation_share=0.5, **fields)
    prompt = Prompt(format=served.format, template=served.template)
    built = look(
        data,
        prompt if served.format == "template" else Prompt(format="chat"),
        served,
        tokenizer,
        shown,
    )
    assert not built.problems
    found: list[dict[str, Any]] = built.report["seen_rows"]
    return found


def test_a_prompt_template(byte_tokenizer: Path, tmp_path: Path) -> None:
    """The prompt is masked, the summary and its end are learned; evaluation's prompt is the same."""
    values = rows(30)
    made = seen(byte_tokenizer, tmp_path, values, settings(), shown=2)
    assert len(made) == 2
    [[masked, learned]] = made[0]["sequences"]
    row = next(v for v in values if v["document"] in masked["text"])
    assert masked["text"] == f"<s>Read: {row['document']}\nSummary: "
    assert (masked["learned"], masked["tokens"]) == (False, len(masked["text"]) - 2)
    assert (learned["learned"], learned["text"]) == (True, row["summary"] + "</s>")
    assert made[0]["evaluation_prompt"] is None
    assert made[0]["evaluation_prompt_tokens"] == masked["tokens"]
    lines = seen_rows.lines(made)
    assert f"    learned | {row['summary']}</s>" in lines
    assert any("evaluation's prompt: the same" in line for line in lines)


def test_a_conversation(byte_tokenizer: Path, tmp_path: Path) -> None:
    """Every answer is learned, each with its end."""
    served = replace(
        settings(template="{document}"), format="chat", chat_template=chat_templates.LLAMA_2
    )
    values = [
        {"messages": [
            {"role": "user", "content": f"Who {n}?"}, {"role": "assistant", "content": f"Ann {n}."},
            {"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"Tea {n}."},
        ]}
        for n in range(30)
    ]  # fmt: skip
    [sequence] = seen(byte_tokenizer, tmp_path, values, served)[0]["sequences"]
    assert [part["learned"] for part in sequence] == [False, True, False, True]
    number = sequence[1]["text"].split()[1].rstrip(".")
    assert "".join(part["text"] for part in sequence) == (
        f"<s>[INST] Who {number}? [/INST] Ann {number}. </s>"
        f"<s>[INST] Why {number}? [/INST] Tea {number}. </s>"
    )


def test_several_inputs(byte_tokenizer: Path, tmp_path: Path) -> None:
    """Each column in its place."""
    served = replace(settings(template="{question}|{context}|"), inputs=("question", "context"))
    values = [{"q": f"Who {n}?", "c": f"Ann {n}.", "a": f"A{n}"} for n in range(30)]
    data = Data(
        train=jsonl(tmp_path / "t.jsonl", values),
        evaluation_share=0.5,
        fields={"inputs": {"question": "q", "context": "c"}, "summary": "a"},  # type: ignore[arg-type]
    )
    built = look(data, Prompt(template=served.template), served, byte_tokenizer)
    assert not built.problems
    [[masked, learned]] = built.report["seen_rows"][0]["sequences"]
    number = learned["text"].removeprefix("A").removesuffix("</s>")
    assert masked["text"] == f"<s>Who {number}?|Ann {number}.|"


@pytest.mark.parametrize("length", [1900, 5000])
def test_long_prompts_are_shown_from_both_ends(
    length: int, byte_tokenizer: Path, tmp_path: Path
) -> None:
    """What is left out is counted; what is learned is always whole."""
    values = [
        {"document": f"{n} " + "x" * length, "summary": "y" * length + f"{n:02}"} for n in range(30)
    ]
    [[masked, learned]] = seen(byte_tokenizer, tmp_path, values, settings(10_000))[0]["sequences"]
    assert ("characters are not shown" in masked["text"]) == (length > 2000)
    assert learned["text"] in [value["summary"] + "</s>" for value in values]


def test_without_a_base_nothing_is_shown(tmp_path: Path) -> None:
    built = look(Data(train=jsonl(tmp_path / "t.jsonl", rows(30)), evaluation_share=0.5), Prompt())
    assert "seen_rows" not in built.report
    assert seen_rows.lines(built.report.get("seen_rows", [])) == []
