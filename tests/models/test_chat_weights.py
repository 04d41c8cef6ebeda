"""For random conversations, what is learnt is every answer of weight 1 with its end, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given
from hypothesis import settings as search
from hypothesis import strategies as st
from test_chat_masks import EVERYTHING, IGNORED
from test_chat_templates import CHATML, settings

from tasks.contracts.recipe import Prompt
from tasks.contracts.records import Row
from tasks.ingest.columns import Columns
from tasks.ingest.fields import example_of
from tasks.ingest.row_types import Example, Raw
from tasks.models import chat_templates
from tasks.models.encoding import encode_rows
from tasks.serving.summarizer.clean import clean, fault_of

ROOT = Path(__file__).parents[2]
COLUMN = Columns(None, (), None, "messages", sampled=frozenset({"messages"}))
# One that writes past answers otherwise than the last, so that each is a sequence of its own.
FORGETFUL = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{% if m['role'] == 'assistant' %}"
    "{{ ('' if loop.last else '~') + m['content'] + eos_token }}\n"
    "{% else %}{{ m['content'] + eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
# The template, what it writes before an answer and after, up to the end that the model shall write.
TEMPLATES = {
    "llama-2": (chat_templates.LLAMA_2, " ", " </s>"),
    "chatml": (CHATML, "", "<|im_end|>"),
    "forgetful": (FORGETFUL, "", "</s>"),
}
MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<s>", "</s>", "<pad>", "<think>", "<|")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: not fault_of(text) and not any(mark in text for mark in MARKS)
)
words = st.sampled_from(["Ben.", "Who?", "a  b", "tabs\tand\nlines", "[x]", "café 😀", "1"])


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Messages as data sets hold them: a system message or none, answers of weight 0, 1 or none."""
    text = st.one_of(words, texts)
    talk: list[dict[str, Any]] = []
    if draw(st.booleans()):
        talk.append({"role": "system", "content": draw(text)})
    for _ in range(draw(st.integers(1, 4))):
        talk.append({"role": "user", "content": draw(text)})
        weight = draw(st.sampled_from([{}, {"weight": 0}, {"weight": 1}, {"train": False}]))
        talk.append({"role": "assistant", "content": draw(text), **weight})
    talk[-1] = {"role": "assistant", "content": talk[-1]["content"]}
    return talk


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The demo base's, with ChatML's marks."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(ROOT / "deployments/demo/base")
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    loaded.model_max_length = EVERYTHING
    return loaded


def row_of(talk: Any, reasoning: Any = None) -> Row:
    prompt = Prompt(format="chat", chat_template="llama-2", reasoning=reasoning)
    found = example_of(Raw(1, {"messages": talk}), "t.jsonl", COLUMN, prompt)
    assert isinstance(found, Example), found
    return Row("row", "source", found.document, found.references)


def learnt(row: Row, tokenizer: Any, template: str) -> str:
    """All that has a label, decoded, sequence after sequence."""
    made = encode_rows(
        [row], tokenizer, settings(template, max_source_tokens=EVERYTHING), EVERYTHING
    )
    for ids, labels in zip(made.input_ids, made.labels, strict=True):
        assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    labels = [label for sequence in made.labels for label in sequence if label != IGNORED]
    return str(tokenizer.decode(labels, clean_up_tokenization_spaces=False))


def weighs(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and message.get("weight", message.get("train", 1)) == 1


@pytest.mark.parametrize("name", TEMPLATES)
@search(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(talk=conversations(), as_text=st.booleans())
@example(
    talk=[
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben.", "weight": 0},
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben.", "weight": 1},
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben."},
    ],
    as_text=False,
)  # fmt: skip
@example(
    talk=[{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben.\r\nAnn."}],
    as_text=False,
)
def test_answers_of_weight_1_are_learnt_once_and_in_order(
    tokenizer: Any, name: str, talk: list[dict[str, Any]], as_text: bool
) -> None:
    """Each with its end, CRLF as LF; no question, no system message, no answer of weight 0."""
    template, before, end = TEMPLATES[name]
    answers = [clean(message["content"]).strip() for message in talk if weighs(message)]
    assume(
        all(
            tokenizer.decode(tokenizer(a)["input_ids"], skip_special_tokens=True) == a
            for a in answers
        )
    )
    row = row_of(json.dumps(talk) if as_text else talk)
    expected = "".join(f"{before}{answer}{end}" for answer in answers)
    assert learnt(row, tokenizer, template) == expected


def test_the_same_conversation_as_llama_2_text_learns_every_answer(tokenizer: Any) -> None:
    """That format has no weights, and is learnt as the same messages are."""
    talk = [
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ben."},
        {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."},
    ]  # fmt: skip
    text = "<s>[INST] Who? [/INST] Ben. </s><s>[INST] Why? [/INST] So. </s>"
    for template, before, end in TEMPLATES.values():
        expected = f"{before}Ben.{end}{before}So.{end}"
        assert learnt(row_of(text), tokenizer, template) == expected
        assert learnt(row_of(talk), tokenizer, template) == expected


def test_reasoning_is_learnt_before_its_answer_or_not_at_all(tokenizer: Any) -> None:
    """As prompt.reasoning says, with one end after both."""
    talk = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Ben.", "reasoning_content": "Hm."},
    ]
    for template, before, end in TEMPLATES.values():
        assert learnt(row_of(talk, "strip"), tokenizer, template) == f"{before}Ben.{end}"
        whole = "<think>\nHm.\n</think>\n\nBen."
        assert learnt(row_of(talk, "learn"), tokenizer, template) == f"{before}{whole}{end}"
