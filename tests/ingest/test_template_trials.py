"""Chat templates are tried with a probe and the first rows: what is learned is what the rows say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from ingest_files import jsonl

from tasks.contracts.recipe import Data, Prompt
from tasks.ingest.prepare import look
from tasks.models import chat_templates
from tasks.models.template_trial import render_apart
from tasks.serving.summarizer import SummarizerSettings

SYSTEM = "Answer as a pirate."
TURN = "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token + '\n' }}"
ASK = "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
GOOD = "{% for m in messages %}" + TURN + "{% endfor %}" + ASK
QWEN_3 = (
    "{%- set ns = namespace(last=0) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}{%- for m in messages %}"
    "{%- if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- else %}{%- set c = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{%- if loop.index0 > ns.last %}{{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + c }}"
    "{%- else %}{{- '<|im_start|>assistant\n' + c }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}"
    "{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.make_tokenizer(folder)
    return folder


def found(
    tokenizer: Path,
    folder: Path,
    template: str,
    rows: list[dict[str, Any]] | None = None,
    **prompt: Any,
) -> tuple[list[str], dict[str, Any]]:
    """Problems and report of 30 rows under a chat template."""
    rows = rows or [{"question": f"Where is {n}?", "answer": f"At {n}."} for n in range(30)]
    arguments = prompt.pop("template_arguments", {})
    settings = SummarizerSettings(
        "{document}",
        100_000,
        "tail",
        32,
        4,
        format="chat",
        chat_template=chat_templates.with_arguments(template, arguments),
        **prompt,
    )
    data = Data(train=jsonl(folder / "t.jsonl", rows), evaluation_share=0.5)
    built = look(data, Prompt(format="chat", **prompt), settings, tokenizer)
    return built.problems, built.report


@pytest.mark.parametrize("template", [GOOD, chat_templates.LLAMA_2], ids=["chat", "llama-2"])
@pytest.mark.parametrize("system", [None, SYSTEM])
def test_templates_that_write_everything_are_used(
    template: str, system: str | None, tokenizer: Path, tmp_path: Path
) -> None:
    problems, report = found(tokenizer, tmp_path, template, system=system)
    assert (problems, report["remarks"]) == ([], [])


LONGER = "{% for m in messages %}" + TURN.replace("m['content']", "m['content'] + '!'")
BROKEN = {
    "all but the last turn are dropped": (
        GOOD.replace("in messages", "in messages[-2:]"), "does not write the first question",
    ),
    "past answers are dropped": (
        "{% for m in messages %}{% if m.role == 'user' or loop.last %}" + TURN + "{% endif %}"
        "{% endfor %}" + ASK, "does not write the first answer",
    ),
    "upper case": (GOOD.replace("m['content']", "m['content'] | upper"), "changes upper and lower"),
    "white space": (
        GOOD.replace("m['content']", "m['content'].split() | join(' ')"), "changes white space",
    ),
    "escaped": (GOOD.replace("m['content']", "m['content'] | escape"), "does not write the first"),
    "truncated": (GOOD.replace("m['content']", "m['content'][:50]"), "writes the first 40 char"),
    "truncated late": (GOOD.replace("m['content']", "m['content'][:5000]"), "does not write the fir"),
    "twice": (
        GOOD.replace("m['content']", "m['content'] + m['content']"), "writes the first question 2 times",
    ),
    "wrong order": (GOOD.replace("in messages", "in messages | reverse"), "before an earlier message"),
    "no generation prompt": (
        GOOD.removesuffix(ASK), r"'<\|assistant\|>' between generation's prompt and the answer",
    ),
    "another role's header": (
        GOOD.replace("<|assistant|>' }}{% endif", "<|bot|>' }}{% endif"), "begins an answer otherwise",
    ),
    "an end after the prompt": (
        "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}",
        "ends a prompt with </s>, the end of an answer",
    ),
    "the date": ("{{ strftime_now('%d') }}" + GOOD, "today's date.*date_string"),
    "random": ("{{ range(99999) | random }}" + GOOD, "something else each time"),
    "raises": ("{{ raise_exception('no') }}" + GOOD, r"two turns \(no\)"),
    "needs tools": ("{{ tools | length }}" + GOOD, "prompt.template_arguments .*tools"),
    "undefined": ("{{ nothing.here }}" + GOOD, "'nothing' is undefined"),
    "syntax": ("{% for m in messages %}", "cannot write two turns"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}" + GOOD, "cannot write two turns"),
    "a range": ("{% for i in range(10**9) %}{% endfor %}" + GOOD, "Range too big"),
    "memory": ("{{ ('x' * 10**11) | length }}" + GOOD, "more than 512 MiB"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "says"), BROKEN.values(), ids=BROKEN)
def test_templates_that_write_something_else_are_refused(
    template: str, says: str, tokenizer: Path, tmp_path: Path
) -> None:
    """By the probe: rows of one short turn might never show it."""
    import re

    problems, _ = found(tokenizer, tmp_path, template)
    assert any(re.search(says, problem) for problem in problems), problems
    assert all(";" in problem for problem in problems), "no fix"


def test_loops_in_loops_end_in_an_error_soon() -> None:
    """Each is short enough for the sandbox; together they would take days."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    began = time.process_time()
    trial = render_apart(template, [[{"role": "user", "content": "a"}]], {})
    assert "did not end within" in (trial.failure or "")
    assert time.process_time() - began < 2


def test_a_system_message_that_the_template_drops(tokenizer: Path, tmp_path: Path) -> None:
    """The recipe's is refused, a row's is named with its line; without one the template is fine."""
    drops = GOOD.replace(TURN, "{% if m.role != 'system' %}" + TURN + "{% endif %}")
    assert found(tokenizer, tmp_path, drops)[0] == []
    [problem] = found(tokenizer, tmp_path, drops, system=SYSTEM)[0]
    assert "does not write the system message (prompt.system)" in problem
    rows = [
        {"messages": [
            {"role": "system", "content": f"{SYSTEM} {n}"},
            {"role": "user", "content": f"Where is {n}?"},
            {"role": "assistant", "content": f"At {n}."},
        ]}
        for n in range(30)
    ]  # fmt: skip
    problems, _ = found(tokenizer, tmp_path, drops, rows)
    assert "t.jsonl:1 " in problems[1]
    assert "from the system ('Answer as a pirate. 0'), is not written" in problems[1]
    assert found(tokenizer, tmp_path, GOOD, rows)[0] == []


def test_think_blocks_are_learned_by_nobody_unless_the_recipe_says(
    tokenizer: Path, tmp_path: Path
) -> None:
    """Qwen3's empty block: refused with the setting that moves it into the prompt."""
    problems, _ = found(tokenizer, tmp_path, QWEN_3)
    assert "'<think>\\n\\n</think>\\n\\n' between" in problems[0]
    assert "prompt.template_arguments to {enable_thinking: false}" in problems[0]
    problems, report = found(
        tokenizer, tmp_path, QWEN_3, template_arguments={"enable_thinking": False}
    )
    assert problems == []
    assert any("'<|im_end|>' after an answer" in note for note in report["remarks"])
    assert any("reasoning" in note for note in report["remarks"])


def test_a_row_s_text_that_the_template_shortens(tokenizer: Path, tmp_path: Path) -> None:
    """What no probe can know, such as a mark of its own at which it cuts: the row is named."""
    cuts = GOOD.replace("m['content']", "m['content'].split('final:')[-1]")
    rows = [{"question": f"Where is {n}?", "answer": f"Hm. final: At {n}."} for n in range(30)]
    problems, _ = found(tokenizer, tmp_path, cuts, rows)
    assert "t.jsonl:1 message 2, from the assistant ('Hm. final: At 0.'), is not" in problems[1]


def test_text_after_an_answer_is_learned_knowingly(tokenizer: Path, tmp_path: Path) -> None:
    """Said, generation stops there, and a summary that holds it is rejected."""
    marked = GOOD.replace("eos_token", "' ###' + eos_token")
    problems, report = found(tokenizer, tmp_path, marked)
    assert problems == []
    assert "'###' after an answer" in report["remarks"][0]
    rows = [{"question": f"Where is {n}?", "answer": f"At ### {n}."} for n in range(30)]
    problems, _ = found(tokenizer, tmp_path, marked, rows)
    assert "t.jsonl:1 holds ### within a message" in problems[1]
