"""Prompt templates that were made for another library are refused, or it is told what the model reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ingest_files import jsonl, rows, settings

from tasks.contracts.recipe import Data, Prompt, Recipe
from tasks.ingest.prepare import look


def found(template: str, tokenizer: Path, path: Path) -> tuple[list[str], dict[str, Any]]:
    data = Data(train=jsonl(path / "t.jsonl", rows(60)), evaluation_share=0.5)
    built = look(data, Prompt(template=template), settings(template=template), tokenizer)
    return built.problems, built.report


@pytest.mark.parametrize("template", ["<s>[INST] {document} [/INST]", "<s>{document}\nSummary: "])
def test_a_second_start_token(template: str, byte_tokenizer: Path, tmp_path: Path) -> None:
    """Llama 2's form begins with <s>, which its tokenizer adds too: the model would read two."""
    [problem], _ = found(template, byte_tokenizer, tmp_path)
    assert "begins with <s>, which the tokenizer puts before every text" in problem
    assert found(template.removeprefix("<s>"), byte_tokenizer, tmp_path)[0] == []


def test_marks_of_another_model(byte_tokenizer: Path, tmp_path: Path) -> None:
    """ChatML's marks over a base that has no such tokens are text, and this is told."""
    chatml = "<|im_start|>user\n{document}<|im_end|>\n<|im_start|>assistant\n"
    problems, report = found(chatml, byte_tokenizer, tmp_path)
    assert problems == []
    [remark] = report["remarks"]
    assert remark.startswith("prompt.template holds <|im_start|>, <|im_end|>, no special token of")


@pytest.mark.parametrize("inputs", [None, {"question": "q", "context": "c"}])
def test_a_name_in_two_pairs_of_braces(inputs: dict[str, str] | None) -> None:
    """Jinja's form: one pair would stay in every prompt."""
    fields = {"inputs": inputs, "summary": "s"} if inputs else {}
    template = "{{question}} {context}" if inputs else "{{document}}"
    values = {
        "name": "n",
        "data": {"train": "t.jsonl", "fields": fields},
        "base": {"model": "base"},
        "prompt": {"template": template},
    }
    with pytest.raises(ValueError, match=r"holds \{\{\w+\}\}, whose outer braces would stay"):
        Recipe.model_validate(values)


def test_files_of_other_splits_in_a_folder(byte_tokenizer: Path, tmp_path: Path) -> None:
    """They are read like the files beside them, and this is told."""
    for name, start in (("train.jsonl", 0), ("test.jsonl", 60), ("validation-0.jsonl", 120)):
        jsonl(tmp_path / "d" / name, rows(60, start))
    data = Data(train=str(tmp_path / "d"), evaluation_share=0.5)
    [remark] = look(data, Prompt(), settings(), byte_tokenizer).report["remarks"]
    assert "test.jsonl" in remark
    assert "validation-0.jsonl" in remark
    assert "train.jsonl:" not in remark


def test_the_reference_has_no_place_in_the_prompt(byte_tokenizer: Path, tmp_path: Path) -> None:
    """A template of another library with {summary} at its end: nothing would fill the place."""
    [problem], _ = found("{document}\nSummary: {summary}", byte_tokenizer, tmp_path)
    assert "holds {summary}, and the reference is learned after" in problem
    assert found("{document} {json}: ", byte_tokenizer, tmp_path)[0] == []
