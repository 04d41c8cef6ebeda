"""Chat templates: known by name, in a file or in the recipe, or the base tokenizer's own.

Read from the base's files; rendering is done by the served code (tasks.serving.summarizer).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.contracts.errors import RecipeError

FILE = "chat_template.jinja"  # where transformers keeps it beside a tokenizer
# Of a package: the template that stood there before the one for other engines (engine_template.py).
BASE_FILE = "base_chat_template.jinja"
ENGINE_MARK = "{#- Written by precis"  # what the one for other engines begins with
# tokenizer_config.json of meta-llama/Llama-2-7b-chat-hf, character for character: its base models
# have none. The system message is part of the first question, and every question begins a new <s>.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ ' '  + content.strip() + ' ' + eos_token }}"
    "{% endif %}{% endfor %}"
)
NAMED = {"llama-2": LLAMA_2}


# What every server gives to a template: an argument of that name would make it write other messages.
RENDERERS = frozenset({"messages", "add_generation_prompt"})


def chosen(named: str | None, base: Path, arguments: Mapping[str, Any] | None = None) -> str:
    """The Jinja template for a recipe's `prompt.chat_template` over the model folder `base`.

    The recipe's `prompt.template_arguments` are set in its first line, so that it is rendered with them,
    here and in any other server. Raises RecipeError when the base has none and the recipe names
    none, when it names what is not there, for an argument that Jinja cannot take, and for a template
    that writes the date into the prompt.
    """
    template = _find(named, base)
    with_given = with_arguments(template, arguments or {})
    if unknown := [name for name in arguments or {} if not re.search(rf"\b{name}\b", template)]:
        raise RecipeError(
            f"prompt.template_arguments has {', '.join(unknown)}, which the chat template "
            f"({_shown(named, base)}) never reads, so that nothing comes of it; correct or remove it"
        )
    if "strftime_now" in template and not arguments:
        # With arguments (Llama 3's date_string) it may not ask for the date: ingest tries it.
        raise RecipeError(
            f"the chat template ({_shown(named, base)}) writes today's date, so that no evaluation "
            "could be repeated; set the date in prompt.template_arguments (Llama 3: {date_string: "
            "26 Jul 2024}), or name a copy without strftime_now in prompt.chat_template"
        )
    return with_given


def _shown(named: str | None, base: Path) -> str:
    """Where a template is from, for an error: its text may be long."""
    if named is None:
        return f"of {base}"
    return "in prompt.chat_template" if "{{" in named or "{%" in named else named


def with_arguments(template: str, arguments: Mapping[str, Any]) -> str:
    """The template, after a line that sets its arguments. Raises RecipeError for a name that cannot be one.

    transformers trims the line break after a block: the line adds nothing to what is written.
    """
    if not arguments:
        return template
    for name in arguments:
        if not name.isidentifier() or name in RENDERERS:
            raise RecipeError(
                f"prompt.template_arguments has {name!r}, which is no variable of a chat template that "
                "can be set; remove it"
            )
    values = (f"{name} = {_literal(value)}" for name, value in sorted(arguments.items()))
    return "".join(f"{{% set {value} %}}" for value in values) + "\n" + template


def _literal(value: Any) -> str:
    """A value of a recipe as Jinja writes it: JSON's literals, but for null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(k)}: {_literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _find(named: str | None, base: Path) -> str:
    if named is None:
        if own := of_base(base):
            return own
        raise RecipeError(
            f"prompt.format is chat, and the tokenizer of {base} has no chat template; set "
            f"prompt.chat_template ({', '.join(NAMED)}, or a file with a Jinja template), or "
            "prompt.format: template"
        )
    if named in NAMED:
        return NAMED[named]
    if "{{" in named or "{%" in named:
        return named
    try:
        return Path(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"prompt.chat_template {named!r} is neither a known template ({', '.join(NAMED)}) nor "
            f"Jinja text nor a file that can be read (looked in {Path.cwd()}: {error}); correct it"
        ) from error


def of_base(base: Path) -> str | None:
    """The template that transformers would use: the file of its own wins over the configuration.

    A base may be a package: what precis wrote there for other engines is not the model's own template.
    """
    file = base / FILE
    if file.is_file():
        text = file.read_text(encoding="utf-8")
        if not text.startswith(ENGINE_MARK):
            return text
        own = base / BASE_FILE
        if own.is_file():
            return own.read_text(encoding="utf-8")
    config = base / "tokenizer_config.json"
    template: Any = None
    if config.is_file():
        template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, list):  # several by name
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return str(template) if template else None
