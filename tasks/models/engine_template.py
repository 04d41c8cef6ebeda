"""The `chat_template.jinja` of a package: what other engines render a request with.

precis itself renders by tasks.serving.summarizer, from `summarizer.json`. vLLM and transformers know only
this file, so it does the same: it cleans and trims as precis does, writes the prompt with the special
tokens that the tokenizer adds, and refuses (`raise_exception`: HTTP 400 in vLLM) what precis refuses. It
cannot count tokens. What is written is tried against precis's own prompts (`chosen`), never assumed.

Over 250 lines: a third of them are the template.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from sys import maxsize
from typing import TYPE_CHECKING, Any

from tasks.models.chat_templates import ENGINE_MARK
from tasks.serving.summarizer.settings import Document, Message, SummarizerSettings
from tasks.serving.summarizer.template import ONLY_DOCUMENT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK_MARK = "\u2581"  # SentencePiece's
REFUSES = ENGINE_MARK + " (README.md): no template writes this model's prompts -#}\n"
# Texts in which blanks, line ends, marks of Jinja and of prefixes decide into which tokens they are split.
PROBES = (
    "Ann: Did you bring the lamps?\nBob: Yes.",
    "  two blanks before and after  ",
    "\n\ta line end and a tab before, a line end after\n",
    "{{ marks }} of {% Jinja %} {# and #} {document} \\n 'quotes' \"and\" `these`",
    "Größe naïve Привет 你好 🙂 12,345.678 a_b-c/d",
    BLANK_MARK + "a text that begins with it",
    "x",
)


def literal(text: str) -> str:
    """The text as Jinja writes a string: its escapes are Python's, and JSON's are among those."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


# `set` within a macro and namespaces: names begin with precis_, beside whatever the model's template uses.
_READ = r"""{%- macro precis_refuse(reason) -%}
  {{- raise_exception('this model cannot be asked so: ' + reason) -}}
{%- endmacro -%}
{%- macro precis_text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content is iterable and content is not mapping -%}
    {%- for part in content -%}
      {%- if part is string -%}{{- part -}}
      {%- elif part['type'] == 'text' and part['text'] is string -%}
        {{- ('' if loop.first else '\n') + part['text'] -}}
      {%- else -%}{{- precis_refuse('a message holds something else than text') -}}{%- endif -%}
    {%- endfor -%}
  {%- else -%}{{- precis_refuse('a message has no text in content') -}}{%- endif -%}
{%- endmacro -%}
{%- macro precis_clean(text) -%}
  {%- for line in text.split('\n') -%}
    {{- line if loop.last else line.rstrip('\r') + '\n' -}}
  {%- endfor -%}
{%- endmacro -%}
{%- macro precis_plain(text) -%}
  {%- if not text.strip() -%}{{- precis_refuse('a message is blank') -}}{%- endif -%}
  {%- for token in SPECIAL -%}
    {%- if token in text -%}
      {{- precis_refuse('a text holds ' + token + ', a special token of the tokenizer; remove it') -}}
    {%- endif -%}
  {%- endfor -%}
{%- endmacro -%}
{%- if tools -%}{{- precis_refuse('it does not read tools') -}}{%- endif -%}
"""
_ONE_MESSAGE = r"""{%- if messages | length != 1 or messages[0]['role'] != 'user' -%}
  {{- precis_refuse('it reads one document, sent as the only message, from the user') -}}
{%- endif -%}
{%- set precis_document = precis_clean(precis_text(messages[0]['content'])) -%}
{{- precis_plain(precis_document) -}}
"""
_SEVERAL_TEXTS = r"""{%- set precis_places = PLACES -%}
{%- set precis_match = namespace(fits=FILLED.startswith(precis_places[0])
    and FILLED.endswith(precis_places[-1])) -%}
{%- for precis_place in precis_places -%}
  {%- if precis_place not in FILLED -%}{%- set precis_match.fits = false -%}{%- endif -%}
{%- endfor -%}
{%- if not precis_match.fits -%}
  {{- precis_refuse('it reads several texts: fill the template in README.md, and send what it gives') -}}
{%- endif -%}
"""
_CONVERSATION = r"""{%- set precis_ns = namespace(read=[], asked=false) -%}
{%- for precis_message in messages -%}
  {%- set precis_role = precis_message['role'] -%}
  {%- set precis_content = precis_clean(precis_text(precis_message['content'])).strip() -%}
  {{- precis_plain(precis_content) -}}
  {%- if precis_role == 'system' and loop.first -%}
  {%- elif precis_role != ('assistant' if precis_ns.asked else 'user') -%}
    {{- precis_refuse('after an optional system message questions and answers must take turns') -}}
  {%- else -%}{%- set precis_ns.asked = not precis_ns.asked -%}{%- endif -%}
  {%- set precis_ns.read = precis_ns.read
      + [{'role': precis_role, 'content': precis_content}] -%}
{%- endfor -%}
{%- if not precis_ns.asked -%}
  {{- precis_refuse('the conversation ends without a question; add one') -}}
{%- endif -%}
{%- set precis_last = precis_ns.read[-1]['content'] -%}
{%- if precis_ns.read | length == 1 and precis_last.endswith('[/INST]')
    and precis_last.startswith('[INST]') -%}
  {{- precis_refuse('send the turns of a conversation as messages, not as one text with [INST]') -}}
{%- endif -%}
"""
_SYSTEM = r"""{%- if precis_ns.read[0]['role'] != 'system' -%}
  {%- set precis_ns.read = [{'role': 'system', 'content': SYSTEM}] + precis_ns.read -%}
{%- endif -%}
"""
# The line break after the last block is trimmed (trim_blocks), so the model's template follows as it is.
_HAND_OVER = "{%- set messages = precis_ns.read %}\n"


def chosen(tokenizer: PreTrainedTokenizerBase, settings: SummarizerSettings) -> str | None:
    """The template whose prompts are precis's own, token by token; None where no form of it gives them.

    `tokenizer`: transformers' own, as the package's files give it.
    """
    for template in candidates(tokenizer, settings):
        if is_exact(tokenizer, settings, template):
            return template
    return None


def refusing() -> str:
    """A template that refuses every request: better than prompts that the model was not judged with."""
    reason = "its prompts cannot be written as text; serve it with MLflow (README.md)"
    return REFUSES + "{{- raise_exception(" + literal(reason) + ") -}}"


def candidates(tokenizer: Any, settings: SummarizerSettings) -> Iterator[str]:
    """Templates that may be exact: they differ in what stands between the first special token and the text.

    SentencePiece puts a blank before the first word of a text, but for some tokenizers not after a token
    that is spelled out.
    """
    read = f"{ENGINE_MARK} (README.md): a request becomes the prompt that this model was judged with. -#}}\n"
    read += _READ.replace("SPECIAL", _listed(_special_texts(tokenizer)))
    places = [] if not settings.inputs else _places(settings)
    if settings.format == "chat":
        read += _CONVERSATION
        if any(places):
            read += _several(places, "precis_last")
        if settings.system:
            read += _SYSTEM.replace("SYSTEM", literal(settings.system))
        yield read + _HAND_OVER + (settings.chat_template or "")
        return
    read += _ONE_MESSAGE
    if settings.inputs:
        read += _several(places, "precis_document")
        prompt = "precis_document"
    else:
        parts = settings.template.split(ONLY_DOCUMENT)
        prompt = " + precis_document + ".join(map(literal, parts))
    first = literal(_first_tokens(tokenizer))
    read += f"{{%- set precis_prompt = {prompt} -%}}\n"
    yield f"{read}{{{{- {first} + precis_prompt -}}}}"
    blank = f"('' if precis_prompt[:1] in [' ', {literal(BLANK_MARK)}] else ' ')"
    yield f"{read}{{{{- {first} + {blank} + precis_prompt -}}}}"
    yield f"{read}{{{{- {first} + ' ' + precis_prompt -}}}}"


def is_exact(tokenizer: Any, settings: SummarizerSettings, template: str) -> bool:
    """Whether the template gives precis's own token ids for all probes."""
    unlimited = replace(settings, max_source_tokens=maxsize)
    for document in probes(settings):
        try:
            if not same_ids(tokenizer, unlimited, template, document):
                return False
        except Exception:  # noqa: BLE001 - a template is a program: it may fail in any way
            return False
    return True


def same_ids(
    tokenizer: Any, settings: SummarizerSettings, template: str, document: Document
) -> bool:
    """Whether a document's request, rendered and encoded as engines do, is the prompt that precis makes.

    Raises ValueError for a document that precis refuses, and what transformers raises for one that the
    template refuses.
    """
    from tasks.serving.summarizer import encode

    ids = tokenizer.apply_chat_template(
        request_of(document, settings),
        chat_template=template,
        add_generation_prompt=True,
        return_dict=False,
    )
    return list(ids) == encode(tokenizer, document, settings)


def request_of(document: Document, settings: SummarizerSettings) -> list[Message]:
    """The messages of /v1/chat/completions by which a document is sent: nothing of it is trimmed here."""
    from tasks.serving.summarizer import conversation_of, filled, values_of

    if isinstance(document, dict):
        if settings.format == "chat":
            return conversation_of(document, replace(settings, system=None))
        document = filled(settings.template, values_of(document, settings))
    if isinstance(document, str):
        if (
            settings.format == "chat"
            and document.strip().removeprefix("<s>").strip()[:6] == "[INST]"
        ):
            return conversation_of(document, replace(settings, system=None))
        return [{"role": "user", "content": document}]
    return document


def probes(settings: SummarizerSettings) -> list[Document]:
    """Documents of the form that the settings want, one for each text in PROBES."""
    if settings.inputs:
        return [dict.fromkeys(settings.inputs, text) for text in PROBES]
    return [*PROBES]


def _several(places: Sequence[str], filled: str) -> str:
    return _SEVERAL_TEXTS.replace("PLACES", _listed(places)).replace("FILLED", filled)


def _places(settings: SummarizerSettings) -> list[str]:
    """What stands before, between and after the texts in the prompt template."""
    if settings.template == ONLY_DOCUMENT:
        return []
    names = "|".join(re.escape(f"{{{name}}}") for name in settings.inputs)
    chat = settings.format == "chat"  # there a message is trimmed
    return re.split(names, settings.template.strip() if chat else settings.template)


def _listed(texts: Sequence[str]) -> str:
    return "[" + ", ".join(map(literal, texts)) + "]"


def _special_texts(tokenizer: Any) -> list[str]:
    """What no text may spell: the contents of all special tokens."""
    from tasks.serving.summarizer import special_ids

    ids = set(special_ids(tokenizer)) | {tokenizer.unk_token_id} - {None}
    return sorted({str(tokenizer.convert_ids_to_tokens(id_)) for id_ in ids})


def _first_tokens(tokenizer: Any) -> str:
    """The special tokens that the tokenizer puts before a text, spelled out."""
    from tasks.serving.summarizer import frame

    return "".join(map(str, tokenizer.convert_ids_to_tokens(list(frame(tokenizer)[0]))))
