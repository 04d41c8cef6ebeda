"""Prompts of several named texts: one renderer for training, evaluation and serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tasks.contracts.records import Row
from tasks.models import chat_templates
from tasks.models.encoding import IGNORED, encode_rows
from tasks.serving.summarizer import SummarizerSettings, encode, fit, fit_chat

BASE = Path(__file__).parents[2] / "deployments/demo/base"
TEMPLATE = 'Answer as {"a": {0}}.\n{context}\n\nQ: {question} {} {{x\nA: '
SETTINGS = SummarizerSettings(
    TEMPLATE, 2000, "tail", 64, 4, inputs=("context", "question"), optional=("context",)
)
CHAT = replace(SETTINGS, format="chat", chat_template=chat_templates.LLAMA_2)
# Text as people write it: braces, places of other inputs, and any script.
TEXTS = st.lists(
    st.sampled_from(["{context}", "{question}", "{document}", "{", "}", "{{", "\\1", "%s", "$x"])
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=12),
    min_size=1,
    max_size=8,
).map(" ".join)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BASE)


@hypothesis_settings(max_examples=60, deadline=None)
@given(context=TEXTS, question=TEXTS)
def test_a_value_is_put_in_as_it_is(tokenizer: Any, context: str, question: str) -> None:
    """Braces and names of places in a value survive: nothing is expanded twice."""
    prompt, cut = fit(tokenizer, {"question": question, "context": context}, SETTINGS)
    before, between, after = 'Answer as {"a": {0}}.\n', "\n\nQ: ", " {} {{x\nA: "
    assert prompt == before + context + between + question + after
    assert cut == 0


@hypothesis_settings(max_examples=40, deadline=None)
@given(context=TEXTS, question=TEXTS, answer=TEXTS.filter(str.strip))
@pytest.mark.parametrize("settings", [SETTINGS, CHAT])
def test_what_is_learnt_is_the_reference_and_the_end(
    tokenizer: Any, settings: SummarizerSettings, context: str, question: str, answer: str
) -> None:
    """Labels decode to the stripped reference plus one end token, after exactly the served prompt."""
    document = {"context": context, "question": question}
    made = encode_rows([Row("r", "0" * 16, document, (answer,))], tokenizer, settings, 10**6)
    ids, labels = made.input_ids[0], made.labels[0]
    prompt = encode(tokenizer, document, settings)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORED] * len(prompt)
    learnt = labels[len(prompt) :]
    assert learnt == ids[len(prompt) :]
    assert learnt.count(tokenizer.eos_token_id) == 1
    assert learnt[-1] == tokenizer.eos_token_id
    decoded = tokenizer.decode(learnt[:-1], clean_up_tokenization_spaces=False)
    assert decoded.strip() == answer.strip()


@pytest.mark.parametrize("settings", [SETTINGS, CHAT])
@pytest.mark.parametrize("truncate", ["tail", "head", "middle"])
def test_the_longest_text_is_cut(
    tokenizer: Any, settings: SummarizerSettings, truncate: str
) -> None:
    """The other one stays whole, and only if the prompt is too long without it, is cut too."""
    short, long = "What was left by the door?", " ".join(f"word{n}" for n in range(400))
    for document in ({"context": long, "question": short}, {"context": short, "question": long}):
        most = replace(settings, max_source_tokens=200, truncate=truncate)
        prompt, cut = fit(tokenizer, document, most)
        assert short in prompt
        assert long not in prompt
        assert cut > 0
        assert 190 <= len(encode(tokenizer, document, most)) <= 200
    tight = replace(settings, max_source_tokens=60, truncate=truncate)
    prompt, _ = fit(tokenizer, {"context": long, "question": long[:900]}, tight)
    assert "word399" not in prompt or truncate != "tail"
    with pytest.raises(ValueError, match="alone is longer than 5 tokens"):
        fit(tokenizer, {"context": long, "question": short}, replace(tight, max_source_tokens=5))


def test_chat_without_a_template(tokenizer: Any) -> None:
    """The user's message is the inputs with a blank line between; a blank one leaves none."""
    settings = replace(CHAT, template="{document}", system="Be brief.")
    for context, expected in (("Some text.", "Some text.\n\nWhy?"), ("", "Why?")):
        messages, _ = fit_chat(tokenizer, {"context": context, "question": "Why?"}, settings)
        assert messages == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": expected},
        ]


@pytest.mark.parametrize(
    ("settings", "document", "says"),
    [
        (SETTINGS, "one text", r"texts named context, question, and this is one text"),
        (SETTINGS, {"context": "x"}, "this is texts named context"),
        (SETTINGS, {"context": "x", "question": "y", "z": "z"}, "context, question, z"),
        (replace(SETTINGS, inputs=(), template="{document}"), {"context": "x"}, "is one text, and"),
    ],
)
def test_a_document_of_another_form(
    tokenizer: Any, settings: SummarizerSettings, document: Any, says: str
) -> None:
    """As a champion of another recipe would be given: the error names what is wanted and what came."""
    with pytest.raises(ValueError, match=says):
        fit(tokenizer, document, settings)
