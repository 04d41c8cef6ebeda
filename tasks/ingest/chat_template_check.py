"""Chat templates are tried, not trusted: with a probe before any row is read, then with the first rows.

A template may leave out what a message says, change it, write it twice, or ask for an answer otherwise
than it writes one; then other text is learned, judged or served than the rows hold. It is a program
too, so it is first run in a process with limits (tasks.models.template_trial).

Over 250 lines: one trial, whose parts share the probe.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.contracts.errors import RecipeError
from tasks.ingest.tokenizer import Tokenizer
from tasks.ingest.tokenizer_check import difference
from tasks.models.template_trial import Rendering, Trial, render_apart

if TYPE_CHECKING:
    from tasks.serving.summarizer import SummarizerSettings

Messages = list[dict[str, Any]]
# Unlike anything that a template may write: letters of both cases and other alphabets, signs that a
# template may escape, two spaces and an indented line, and long.
PROBE = "Zyx {name} asks: \"Größe & <b>漢字</b>?\"  It's 7.316 %\n    ('indented') — end {name}."
LONG = " ".join(f"word{number}" for number in range(1500))
SYSTEM, QUESTION, ANSWER, NEXT, LAST = (
    PROBE.replace("{name}", name) for name in ("system", "first", "second", "third", "fourth")
)
THOUGHT = "Hmm pqr 42"
COMMON_CHARACTERS = 20  # a text shorter than this may stand in the template by chance


def try_apart(tokenizer: Any, settings: SummarizerSettings, conversations: list[Messages]) -> Trial:
    """The conversations as the template writes them in a process of its own.

    Raises RecipeError for a template that does not end, or does not write the same twice.
    """
    variables = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    trial = render_apart(settings.chat_template or "", conversations, variables)
    if trial.failure:
        raise RecipeError(
            f"the chat template cannot write two turns ({trial.failure}); correct it, or name another in "
            "prompt.chat_template"
        )
    if trial.asked_date:
        raise RecipeError(
            "the chat template writes today's date, so that no evaluation could be repeated; set the "
            "date in prompt.template_arguments (Llama 3: {date_string: 26 Jul 2024}), or name a copy "
            "without strftime_now in prompt.chat_template"
        )
    if not trial.repeatable:
        raise RecipeError(
            "the chat template writes something else each time, so that no evaluation could be "
            "repeated; name a copy without its random part in prompt.chat_template"
        )
    return trial


def check_chat_template(
    tokenizer: Tokenizer, settings: SummarizerSettings, rows: int | None
) -> list[str]:
    """What is worth knowing of a chat template that writes conversations as they are.

    `rows`: of the base's embedding, where it is known.

    Raises RecipeError, naming what is wrong: a template that cannot write two turns with the recipe's
    system message, leaves out, changes or repeats a message, begins an answer otherwise than it asks
    for one, ends a prompt with an end token, writes tokens that the base does not know, or is alone too
    long for a prompt.
    """
    from tasks.serving.summarizer import messages_of

    head = [_message("system", SYSTEM)] if settings.system else []
    first = [*head, _message("user", f"{QUESTION} {LONG}")]
    turns = [*first, _message("assistant", ANSWER), _message("user", NEXT)]
    thinking = [
        *first,
        _message("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
        _message("user", NEXT),
    ]
    all_turns = [*turns, _message("assistant", LAST)]
    conversations = [
        first, [*first, _message("assistant", ANSWER)], turns, all_turns,
        thinking, messages_of("", settings.system),
    ]  # fmt: skip
    trial = try_apart(tokenizer.loaded, settings, conversations)
    asks, answered, asks_again, all_answered, thought, bare = trial.renderings
    for rendering in (asks, answered, asks_again, all_answered):
        _require_written(rendering, bool(head))
    checks = [
        lambda: _require_same(tokenizer, all_answered.text, all_turns, settings),
        lambda: _require_all_once(all_answered.text, all_turns, settings),
        lambda: _require_known(tokenizer, all_answered.text, rows),
        lambda: _require_answers(
            [(asks, answered, ANSWER), (asks_again, all_answered, LAST)], settings
        ),
        lambda: _require_room(tokenizer, settings, bare),
        lambda: _require_open(tokenizer, settings, asks.text),
    ]
    _require_all(checks)
    return _notes(tokenizer, settings, thought)


def _require_all(checks: list[Callable[[], None]]) -> None:
    """Raise RecipeError with what all failed checks say."""
    problems = []
    for check in checks:
        try:
            check()
        except (RecipeError, ValueError) as error:
            problems.append(str(error))
    if problems:
        raise RecipeError("\n".join(dict.fromkeys(problems)))


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _require_written(rendering: Rendering, system: bool) -> None:
    if rendering.error is None:
        return
    what = "a system message and two turns" if system else "two turns"
    fix = ", or unset prompt.system" * system
    if "tools" in rendering.error or "'NoneType' has no len" in rendering.error:
        fix += ", or give what it asks for in prompt.template_arguments ({tools: []})"
    raise RecipeError(
        f"the chat template cannot write {what} ({rendering.error}); name another in "
        f"prompt.chat_template{fix}"
    )


def _require_all_once(text: str, messages: Messages, settings: SummarizerSettings) -> None:
    """Raise RecipeError unless each message stands in the rendering of them all, and once."""
    from tasks.serving.summarizer import first_left_out, remedy

    names = ["the first question", "the first answer", "the second question", "the second answer"]
    if messages[0]["role"] == "system":
        names.insert(0, "the system message (prompt.system)")
    for name, message in zip(names, messages, strict=True):
        content, is_system = message["content"].strip(), message["role"] == "system"
        if (times := text.count(content)) != 1:
            wrong = f"writes {name} {times} times" if times else f"does not write {name}"
            how = _how_changed(text, content) if not times else ""
            raise RecipeError(
                f"the chat template {wrong} of two turns{how}; {remedy(settings, is_system)}"
            )
    if (moved := first_left_out(text, messages)) is not None:
        raise RecipeError(
            f"the chat template writes {names[moved]} of two turns out of order, before an earlier message; "
            + remedy(settings)
        )


def _how_changed(text: str, content: str) -> str:
    if content.casefold() in text.casefold():
        return " (it changes upper and lower case)"
    if "".join(content.split()) in "".join(text.split()):
        return " (it changes white space)"
    begun = next((n for n in (400, 40, 20) if content[:n] in text and n < len(content)), 0)
    return f" (it writes the first {begun} characters or a few more)" if begun else ""


def _require_same(
    tokenizer: Tokenizer, text: str, messages: Messages, settings: SummarizerSettings
) -> None:
    """Raise RecipeError when transformers writes a conversation otherwise than the process with limits."""
    from tasks.serving.summarizer import render

    try:
        written = render(tokenizer.loaded, messages, settings)
    except ValueError:
        return  # it leaves out a message, which another check says
    if written != text:
        raise RecipeError(
            f"the chat template is written otherwise by transformers ({difference(text, written)}); name "
            "another in prompt.chat_template, and report this template"
        )


def _require_known(tokenizer: Tokenizer, text: str, rows: int | None) -> None:
    """Raise RecipeError for a token that the template writes and the base has no embedding for."""
    [ids] = tokenizer.ids([text])
    beyond = {i for i in ids if rows is not None and i >= rows}
    if beyond:
        tokens = ", ".join(tokenizer.loaded.convert_ids_to_tokens(sorted(beyond)))
        raise RecipeError(
            f"the chat template writes {tokens} (token ids up to {max(beyond)}), and the base's embedding "
            f"has {rows} rows; name a template made of tokens that the base knows in "
            "prompt.chat_template, or the base that these tokens belong to"
        )


def _require_answers(
    turns: list[tuple[Rendering, Rendering, str]], settings: SummarizerSettings
) -> None:
    """Raise ValueError unless each prompt, its answered turn and answer continue each other."""
    from tasks.serving.summarizer import require_continued

    for prompt, answered, answer in turns:
        require_continued(prompt.text, answered.text, answer, settings)


def _require_room(tokenizer: Tokenizer, settings: SummarizerSettings, bare: Rendering) -> None:
    [ids] = tokenizer.ids([bare.text])
    if len(ids) > settings.max_source_tokens:
        raise RecipeError(
            f"the chat template alone is {len(ids)} tokens, and a prompt may have "
            f"{settings.max_source_tokens}; shorten prompt.system, or raise "
            "prompt.max_source_tokens"
        )


def _require_open(tokenizer: Tokenizer, settings: SummarizerSettings, prompt: str) -> None:
    """Raise RecipeError for a prompt after which there is nothing to write."""
    from tasks.serving.summarizer import turn_end

    unlimited = replace(settings, max_source_tokens=sys.maxsize)
    ends = {tokenizer.loaded.eos_token_id, turn_end(tokenizer.loaded, unlimited)}
    [ids] = tokenizer.ids([prompt])
    if ids and ids[-1] in ends:
        token = tokenizer.loaded.convert_ids_to_tokens(ids[-1])
        raise RecipeError(
            f"the chat template ends a prompt with {token}, the end of an answer: there is nothing to write "
            "after it; name another in prompt.chat_template"
        )


def _notes(tokenizer: Tokenizer, settings: SummarizerSettings, thought: Rendering) -> list[str]:
    from tasks.serving.summarizer import answer_end

    notes = []
    text, end = answer_end(tokenizer.loaded, settings)
    if text:
        notes.append(
            f"the chat template writes {text!r} after an answer, which is no special token of this "
            "tokenizer: it is learned with the answer, and generation stops there"
        )
    elif end is None:
        notes.append(
            "the chat template writes no end after an answer: "
            f"{tokenizer.loaded.eos_token} is learned there"
        )
    if "<think>" in (settings.chat_template or "") and THOUGHT not in thought.text:
        notes.append(
            "the chat template leaves out the reasoning (<think>...</think>) of earlier answers: a later "
            "question's prompt does not hold it, in training and serving alike"
        )
    return notes


def row_problem(
    rendering: Rendering, messages: Messages, settings: SummarizerSettings
) -> str | None:
    """What the template does to a real conversation, with its answer, that it must not do."""
    from tasks.serving.summarizer import first_left_out, left_out

    if rendering.error is not None:
        return (
            f"cannot be written by the chat template ({rendering.error}); correct or remove the row"
        )
    if (index := first_left_out(rendering.text, messages)) is not None:
        return left_out(messages, index, settings)
    spoken = "\0".join(message["content"] for message in messages)
    for number, message in enumerate(messages, 1):
        content = message["content"].strip()
        if len(content) >= COMMON_CHARACTERS and rendering.text.count(content) > spoken.count(
            content
        ):
            return (
                f"is written by the chat template with message {number} ({content[:60]!r}) more than once; "
                "name another template in prompt.chat_template"
            )
    return None
