"""The served model reads no special token out of a text, and stops where its chat template ends an answer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from tasks.serving.summarizer import Generator, SummarizerSettings

TEMPLATE = SummarizerSettings("Summarize:\n{document}\nSummary: ", 200, "tail", 12, 3)
CHAT = replace(
    TEMPLATE,
    template="{document}",
    format="chat",
    chat_template="{% for m in messages %}{{ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.mark.parametrize("settings", [TEMPLATE, CHAT], ids=["template", "chat"])
def test_a_document_that_spells_a_special_token_is_an_error(
    settings: SummarizerSettings, base: Path, tmp_path: Path
) -> None:
    """As ingest rejects such rows; the message names the token and the place."""
    generator = Generator(tiny.packaged(base, tmp_path / "package", settings), "cpu")
    assert generator.summarize(["Anna met Ben."])
    for call in (generator.summarize, lambda texts: list(generator.stream(texts[0]))):
        with pytest.raises(ValueError, match=r"holds </s>, a special token .*'Anna </s> met Ben"):
            call(["Anna </s> met Ben."])
    with pytest.raises(ValueError, match="holds <pad>"):
        generator.losses(["Anna met Ben."], [["They <pad> met."]])


def test_text_that_ends_an_answer_is_left_out(base: Path, tmp_path: Path) -> None:
    """The template's end is no special token here: it is learned as text, and generation stops at it."""
    generator = Generator(tiny.packaged(base, tmp_path / "package", CHAT), "cpu")
    rules = generator._output_rules()
    ids = generator.tokenizer("They met.<|im_end|> And", add_special_tokens=False)["input_ids"]
    summary = rules.summary(ids, 0, 0)
    assert (summary.text, summary.finished) == ("They met.", True)
    assert rules.certain_text(ids[:-1]) == "They met."
    plain = Generator(tiny.packaged(base, tmp_path / "plain", TEMPLATE), "cpu")
    assert plain._output_rules().stop == ()
