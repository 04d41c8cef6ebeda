"""Chat templates: found, written byte for byte as the tokenizer does, and kept in the package.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny

from tasks.contracts.errors import RecipeError
from tasks.models import chat_templates, package
from tasks.serving.summarizer import (
    Generator,
    SummarizerSettings,
    encode,
    fit,
    fit_chat,
    messages_of,
    render,
    turn_end,
)

SYSTEM = "You answer briefly."
ONE = [("user", "Where is Ben?")]
THREE = [*ONE, ("assistant", "At the market."), ("user", "Why?")]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def settings(template: str | None = chat_templates.LLAMA_2, **changes: Any) -> SummarizerSettings:
    values = {"system": None, "stop": (), "truncate": "tail", "max_source_tokens": 400} | changes
    return SummarizerSettings(
        template="{document}",
        max_new_tokens=16,
        batch_size=4,
        format="chat",
        chat_template=template,
        **values,
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (ONE, "<s>[INST] Where is Ben? [/INST]"),
        (THREE, "<s>[INST] Where is Ben? [/INST] At the market. </s><s>[INST] Why? [/INST]"),
        (THREE[:2], "<s>[INST] Where is Ben? [/INST] At the market. </s>"),
        (
            [("system", SYSTEM), *THREE],
            "<s>[INST] <<SYS>>\nYou answer briefly.\n<</SYS>>\n\nWhere is Ben? [/INST] At the market. "
            "</s><s>[INST] Why? [/INST]",
        ),
    ],
)
def test_llama_2_is_written_byte_for_byte(
    turns: list[tuple[str, str]], expected: str, tokenizer: Any
) -> None:
    """As Meta's format has it, and as a tokenizer with that template renders it."""
    from copy import deepcopy

    chat = deepcopy(tokenizer)
    chat.chat_template = chat_templates.LLAMA_2
    written = render(tokenizer, messages(turns), settings())
    assert written == expected
    assert written == chat.apply_chat_template(messages(turns), tokenize=False)


def test_the_ids_have_one_bos_a_question(tokenizer: Any) -> None:
    """The template writes <s>; the tokenizer, which adds one to other texts, adds none."""
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    one_turn, three_turns = (
        encode(tokenizer, messages(turns), settings()) for turns in (ONE, THREE)
    )
    assert (one_turn.count(tokenizer.bos_token_id), one_turn[0]) == (1, tokenizer.bos_token_id)
    assert (
        three_turns.count(tokenizer.bos_token_id),
        three_turns.count(tokenizer.eos_token_id),
    ) == (2, 1)
    rendered = render(tokenizer, messages(THREE), settings())
    assert three_turns == tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_document_is_a_question_or_a_conversation() -> None:
    """Text in Llama 2's chat format is taken apart; any other is what the user says."""
    assert messages_of(" What? ") == messages([("user", "What?")])
    text = "<s>[INST] <<SYS>>\nYou answer briefly.\n<</SYS>>\n\nWhere is Ben? [/INST] At the market. </s>"
    text += "<s>[INST] Why? [/INST]"
    assert messages_of(text) == messages([("system", SYSTEM), *THREE])
    mid = "What does [INST] mean in [/INST]?"
    assert messages_of(mid) == messages([("user", mid)])


def test_the_recipe_s_system_message_gives_way_to_a_row_s_own() -> None:
    """It stands before conversations without one, given as text or as messages."""
    assert messages_of("What?", SYSTEM)[0] == {"role": "system", "content": SYSTEM}
    assert messages_of(messages(ONE), SYSTEM)[0]["content"] == SYSTEM
    own = "[INST] <<SYS>>\nRhyme.\n<</SYS>>\n\nWhat? [/INST]"
    assert messages_of(own, SYSTEM) == messages([("system", "Rhyme."), ("user", "What?")])
    given = messages(ONE)
    messages_of(given, SYSTEM)
    assert given == messages(ONE)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[INST]  [/INST]", "turn 1 has a blank question"),
        (
            "[INST] a [/INST] b </s><s>[INST] [/INST] c </s><s>[INST] d [/INST]",
            "turn 2 has a blank",
        ),
        ("[INST] a [/INST] </s><s>[INST] b [/INST]", "turn 1 has no answer"),
        ("[INST] a [INST] b [/INST]", "turn 1 has no answer"),
        ("[INST] a [/INST] b [/INST] c </s><s>[INST] d [/INST]", "turn 1 is not"),
        ("[INST] a [/INST] b </s> c </s><s>[INST] d [/INST]", "turn 1 is not"),
    ],
)
def test_a_broken_conversation_says_where(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        messages_of(text)


def test_a_conversation_ends_in_a_question() -> None:
    with pytest.raises(ValueError, match="without a question"):
        messages_of(messages(THREE[:2]))


LONG = messages([("system", SYSTEM)])
for number in range(6):
    LONG += messages([("user", f"Question {number}: why?"), ("assistant", f"Answer {number}, so.")])
LONG += messages([("user", "Last: " + " ".join(f"word{n}" for n in range(30)))])


def test_the_oldest_turns_go_first(tokenizer: Any) -> None:
    """Question and answer together, the system message stays, and the prompt is whole."""
    roomy = settings(max_source_tokens=10_000)
    all_turns, last = (len(encode(tokenizer, m, roomy)) for m in (LONG, [LONG[0], LONG[-1]]))
    for most in range(all_turns, last - 1, -7):
        limited = settings(max_source_tokens=most)
        kept, cut = fit_chat(tokenizer, LONG, limited)
        ids = encode(tokenizer, LONG, limited)
        assert (len(ids), cut) == (all_turns - cut, all_turns - len(ids))
        assert len(ids) <= most
        assert kept == [LONG[0], *LONG[len(LONG) - len(kept) + 1 :]]
        assert [m["role"] for m in kept[1:]] == (["user", "assistant"] * 9)[: len(kept) - 1]
        if len(kept) < len(LONG):  # one turn more would not have fitted
            more = [LONG[0], *LONG[len(LONG) - len(kept) - 1 :]]
            assert len(tokenizer(render(tokenizer, more, limited))["input_ids"]) - 1 > most


@pytest.mark.parametrize(
    ("truncate", "begins", "ends"),
    [("tail", True, False), ("head", False, True), ("middle", True, True)],
)
def test_only_then_the_question_is_cut(
    truncate: str, begins: bool, ends: bool, tokenizer: Any
) -> None:
    """As prompt.truncate says, and never the template around it."""
    limited = settings(max_source_tokens=130, truncate=truncate)
    kept, cut = fit_chat(tokenizer, LONG, limited)
    question, text = LONG[-1]["content"], kept[-1]["content"]
    assert (kept[0], len(kept)) == (LONG[0], 2)
    assert len(text) < len(question)
    assert (text[:6] == question[:6], text[-6:] == question[-6:]) == (begins, ends)
    prompt, same = fit(tokenizer, LONG, limited)
    assert same == cut
    assert prompt.startswith(f"<s>[INST] <<SYS>>\n{SYSTEM}\n<</SYS>>\n\n")
    assert prompt.endswith(" [/INST]")
    assert 120 < len(encode(tokenizer, LONG, limited)) <= 130


def test_a_template_that_does_not_fit_says_so(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"chat template alone is longer than 12 tokens.*system"):
        fit(tokenizer, LONG, settings(max_source_tokens=12))


def test_the_end_of_a_turn_is_found_in_the_template(tokenizer: Any) -> None:
    """</s> in Llama 2's; another special token elsewhere; none where a template writes none."""
    from copy import deepcopy

    assert turn_end(tokenizer, settings()) == tokenizer.eos_token_id
    chatml = deepcopy(tokenizer)
    chatml.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert turn_end(chatml, settings(CHATML)) == chatml.convert_tokens_to_ids("<|im_end|>")
    assert turn_end(tokenizer, settings(CHATML)) is None
    assert turn_end(tokenizer, SummarizerSettings("{document}", 9, "tail", 9, 9)) is None


# --- Which template -------------------------------------------------------------------------------


def chat_recipe(base: Path, **prompt: Any) -> Any:
    return tiny.make_recipe(base, prompt={"format": "chat", **prompt})


def test_the_base_s_own_template_is_used(base: Path, tmp_path: Path) -> None:
    """From its own file, or the tokenizer's configuration; the file wins, as in transformers."""
    folder = tiny.make_tiny_base(tmp_path / "base")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ 'b' }}"}]
    for own in ("{{ 'a' }}", named):
        (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": own}))
        template = tiny.prepared(folder, chat_recipe(folder)).settings.chat_template
        assert template == ("{{ 'a' }}" if isinstance(own, str) else "{{ 'b' }}")
    (folder / "chat_template.jinja").write_text("{{ 'c' }}")
    assert tiny.prepared(folder, chat_recipe(folder)).settings.chat_template == "{{ 'c' }}"
    named_one = tiny.prepared(folder, chat_recipe(folder, chat_template="llama-2")).settings
    assert named_one.chat_template == chat_templates.LLAMA_2


def test_a_template_may_be_a_file_or_text(base: Path, tmp_path: Path) -> None:
    """Its content is what counts: an edit of the file is another prompt."""
    file = tmp_path / "mine.jinja"
    file.write_text(CHATML)
    for named in (str(file), CHATML):
        served = tiny.prepared(base, chat_recipe(base, chat_template=named)).settings
        assert (served.chat_template, served.format, served.template) == (
            CHATML,
            "chat",
            "{document}",
        )


@pytest.mark.parametrize(
    ("named", "says"),
    [
        (None, "has no chat template; set prompt.chat_template"),
        ("llama2", r"'llama2' is neither a known template \(llama-2\).*correct it"),
        ("{{ strftime_now('%d') }}", r"writes today's date.*date_string"),
    ],
)
def test_what_is_no_template_is_explained(named: str | None, says: str, base: Path) -> None:
    with pytest.raises(RecipeError, match=says):
        tiny.prepared(base, chat_recipe(base, chat_template=named))


THINKS = CHATML.replace("assistant\\n' }}{% endif %}", "assistant\\n' }}{% if enable_thinking is defined and "
    "enable_thinking is false %}{{ '<think></think>' }}{% endif %}{% endif %}")  # fmt: skip


def test_the_template_s_arguments_are_written_wherever_it_is_rendered(
    base: Path, tmp_path: Path
) -> None:
    """By us and by a server that is told nothing; true, null, texts and lists as Jinja has them."""
    from transformers import AutoTokenizer

    recipe = chat_recipe(base, chat_template=THINKS, template_arguments={"enable_thinking": False})
    prepared = tiny.prepared(base, recipe)
    made = package.package_base(prepared, prepared.settings, tmp_path / "package")
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    written = tokenizer.apply_chat_template(
        messages(ONE), tokenize=False, add_generation_prompt=True
    )
    assert written == fit(tokenizer, ONE[0][1], prepared.settings)[0]
    assert written.endswith("assistant\n<think></think>")
    values: dict[str, Any] = {"a": None, "b": [True, 1.5, 'q"%}'], "c": {"d": "Größe 🙂\n"}}
    shown = chat_templates.with_arguments(
        "\n  {{ a }}|{{ b | tojson }}|{{ c.d }}{{ messages[0].content }}", values
    )
    assert render(tokenizer, messages(ONE), settings(shown)) == (
        '\n  None|[true, 1.5, "q\\"%}"]|Größe 🙂\nWhere is Ben?'
    )
    with pytest.raises(RecipeError, match="'messages', which is no variable"):
        chat_templates.with_arguments(CHATML, {"messages": []})
    with pytest.raises(
        RecipeError, match=r"has enable_thinkin, which the chat template .* never reads"
    ):
        chat_templates.chosen(THINKS, base, {"enable_thinkin": False})


def test_the_package_carries_the_template(base: Path, tmp_path: Path) -> None:
    """summarizer.json for this file, chat_template.jinja for transformers and other servers."""
    from transformers import AutoTokenizer

    (base / "chat_template.jinja").unlink(missing_ok=True)
    recipe = chat_recipe(base, chat_template="llama-2", system=SYSTEM)
    prepared = tiny.prepared(base, recipe)
    made = package.package_base(prepared, prepared.settings, tmp_path / "package")
    generator = Generator(Path(made.path), "cpu")
    assert generator.settings.chat_template == chat_templates.LLAMA_2
    assert generator.end_ids == [generator.tokenizer.eos_token_id]
    text = fit(generator.tokenizer, "Where?", generator.settings)[0]
    tokenizer = AutoTokenizer.from_pretrained(made.path)
    conversation = messages([("system", SYSTEM), ("user", "Where?")])
    assert text == tokenizer.apply_chat_template(conversation, tokenize=False)
    assert not (base / "chat_template.jinja").exists(), "the base is not written to"


def test_a_linked_template_is_replaced_not_written_through(tmp_path: Path) -> None:
    """A base with a template of its own keeps it when the recipe names another."""
    base = tiny.make_tiny_base(tmp_path / "base")
    (base / "chat_template.jinja").write_text(CHATML)
    recipe = chat_recipe(base, chat_template="llama-2")
    prepared = tiny.prepared(base, recipe)
    package.package_base(prepared, prepared.settings, tmp_path / "package")
    assert (base / "chat_template.jinja").read_text() == CHATML
    assert (tmp_path / "package/chat_template.jinja").read_text() == chat_templates.LLAMA_2


def test_older_packages_load(tmp_path: Path) -> None:
    """A summarizer.json of before chat has none of its settings."""
    old = '{"template": "{document}", "max_source_tokens": 9, "truncate": "tail", "stop": ["x"],'
    (tmp_path / "summarizer.json").write_text(old + '"max_new_tokens": 9, "batch_size": 2}')
    loaded = SummarizerSettings.load(tmp_path)
    assert (loaded.format, loaded.system, loaded.chat_template) == ("template", None, None)


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ({"system": "Be brief."}, "format: chat"),
        ({"chat_template": "llama-2"}, "format: chat"),
        ({"format": "chat", "template": "Say: {document}"}, "put the instruction in system"),
        ({"format": "chats"}, "'template' or 'chat'"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(prompt: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        tiny.make_recipe(Path("base"), prompt=prompt)
