"""Why the columns of a file cannot be read, and the lines of the recipe that settle it.

Over 250 lines: one refusal after the other, with the lines that each says to write.
"""

from __future__ import annotations

import difflib
import itertools
import json
import re
from typing import Any

import yaml

from tasks.contracts.recipe import Fields, Prompt
from tasks.contracts.template_places import PLACE
from tasks.ingest.column_roles import Role, is_nothing, role_in, role_of
from tasks.ingest.columns import SYSTEM, Columns, quoted
from tasks.ingest.messages import is_messages
from tasks.ingest.row_types import shown

Rows = list[dict[str, Any]]
Roles = dict[str, Role]
Kinds = dict[Role, list[str]]
WHY: dict[Role, str] = {
    "part of the prompt": "may be a part of the prompt",
    "reference": "may be what should be written",
    "preference": "says which of two answers is preferred",
    "quality": "may say which rows are good",
    "reasoning": "may hold reasoning",
    "not text": "is not text, and precis reads text only",
    "split": "says which rows are for training and which for evaluation: write them as files of their own",
}
CHOSEN = re.compile("chosen|^preferred", re.IGNORECASE)


def problems_of(
    file: str,
    columns: Columns,
    fit: bool,
    names: list[str],
    rows: Rows,
    fields: Fields,
    prompt: Prompt,
) -> list[str]:
    """Why these columns cannot be read in a file with columns `names` and first rows `rows`.

    `fit`: whether `choose` named or guessed columns for document and summary.
    """
    has = f"it has: {shown(names)}"
    if problems := _missing(file, columns, names, has):
        return problems
    if problem := _answer_in_prompt(columns, prompt):
        return [problem]
    roles = _unused_roles(columns, rows, prompt)
    if "preference" in roles.values():
        advice = _chosen_as_reference(columns, roles, rows, fields)
        return [f"{file} holds preference data, and precis trains on references: {advice}"]
    if not fit:
        return [
            f"{file}: no columns with usual names for document and summary; {has}; name them in "
            "data.fields.document and data.fields.summary, or data.fields.text"
            + _nested(names, rows)
            + "".join(f"; {note}" for note in columns.notes)
        ]
    return [_unused(file, columns, roles, rows, fields, prompt)] if roles else []


def _missing(file: str, columns: Columns, names: list[str], has: str) -> list[str]:
    """Columns that the recipe names and the file lacks."""
    # An optional column may be absent, but not called otherwise by mistake.
    required = {
        name: column
        for name, column in columns.inputs.items()
        if name not in columns.optional or difflib.get_close_matches(column, columns.unused, n=1)
    }
    by_key = {
        "data.fields.document": (columns.document,),
        **{f"data.fields.inputs.{name}": (column,) for name, column in required.items()},
        "data.fields.summary": columns.summary,
        "data.fields.id": (columns.id,),
        "data.fields.text": (columns.text,),
        "data.fields.system": (columns.system,),
    }
    problems = []
    for key, used in by_key.items():
        for name in used:
            if name and name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
                hint = f'; nearest: "{near[0]}"' if near else ""
                problems.append(f'{file} has no column "{name}" ({key}); {has}{hint}')
    return problems


def _answer_in_prompt(columns: Columns, prompt: Prompt) -> str:
    """A place of the template that is called as the reference: nothing would fill it."""
    uses_template = prompt.format == "template" or prompt.has_own_template
    places = set(PLACE.findall(prompt.template)) - {*columns.inputs, "document"}
    found = [name for name in columns.summary if name in places]
    if not uses_template or not found:
        return ""
    return (
        f"prompt.template holds {{{found[0]}}}, and the reference is learned after the prompt, not in it: "
        "the place would stay as it is in every prompt; remove it from the template"
    )


def _unused(
    file: str, columns: Columns, roles: Roles, rows: Rows, fields: Fields, prompt: Prompt
) -> str:
    """The columns that may matter and that nothing uses, and the lines that decide on them."""
    kinds = {
        role: [name for name in roles if roles[name] == role]
        for role in dict.fromkeys(roles.values())
    }
    listed = "; ".join(f"{quoted(kinds[role])} {WHY[role]}" for role in kinds)
    uses = [
        *_as_inputs(columns, kinds, rows, fields, prompt),
        *_as_system(columns, rows, prompt),
        *_as_references(columns, kinds, rows),
    ]
    ways = [*uses, f"to leave out what is not used: data.fields.ignore: {_ignore(fields, roles)}"]
    return (
        f"{file} has columns that nothing uses: {listed}. As it stands, {columns.in_words}. "
        f"Decide: {'; '.join(ways)}"
    )


def _nested(names: list[str], rows: Rows) -> str:
    """Columns that lie one object deeper, as a data set viewer saves them."""
    for name in names:
        values = [row[name] for row in rows if not is_nothing(row.get(name))]
        if values and all(isinstance(value, dict) for value in values):
            return f'; "{name}" holds objects ({shown(list(values[0]))}): write them as the rows'
    return ""


def _unused_roles(columns: Columns, rows: Rows, prompt: Prompt) -> Roles:
    """The unused columns that may matter, each with what its name promises."""
    roles: Roles = {}
    # A place for a column that no input fills would stay in each prompt as it is.
    places = set() if columns.inputs else set(PLACE.findall(prompt.template))
    for name in columns.unused:
        role = role_in(name, rows)
        if role and name not in columns.blank:
            roles[name] = role
        elif name in places:
            roles[name] = "part of the prompt"
    roles |= {name: "part of the prompt" for name in columns.only_labels if name in places}
    return roles


def _as_inputs(
    columns: Columns, kinds: Kinds, rows: Rows, fields: Fields, prompt: Prompt
) -> list[str]:
    """The lines that make a prompt of the unused texts too; empty where they cannot be one."""
    texts = [name for name in kinds.get("part of the prompt", []) if _is_text(rows, name)]
    # Alpaca's text is its prompt and answer once more.
    texts = [name for name in texts if name.lower() != "text"] or texts
    ways = []
    if prompt.format == "template" and [name for name in texts if "system" in name.lower()]:
        ways.append("to use a system column as each row's system message: prompt.format: chat")
    if not texts or columns.text:
        return ways
    used = {*columns.inputs.values(), columns.document, columns.system, *texts}
    in_order = [name for name in dict.fromkeys(key for row in rows for key in row) if name in used]
    in_order.sort(key=lambda name: "system" not in name.lower())  # a system prompt comes first
    known = {column: name for name, column in columns.inputs.items()}
    inputs: dict[str, str] = {}
    for column in in_order:
        inputs[known.get(column) or _place(column, inputs)] = column
    optional = [name for name, column in inputs.items() if _may_be_blank(rows, column)]
    others = [name for names in kinds.values() for name in names if name not in texts]
    line: dict[str, Any] = {
        "inputs": inputs,
        "optional": [name for name in inputs if name in {*optional, *columns.optional}],
        "summary": columns.summary[0] if len(columns.summary) == 1 else [*columns.summary],
        "id": fields.id,
        "ignore": [*fields.ignore, *others],
    }
    text = f"to use {'it' if len(texts) == 1 else 'them'}: data.fields: {_flow(line)}"
    if prompt.format == "template" or prompt.has_own_template:
        template = json.dumps(_template(columns, inputs, prompt), ensure_ascii=False)
        text += f" and prompt.template: {template}"
    return [*ways, text]


def _as_system(columns: Columns, rows: Rows, prompt: Prompt) -> list[str]:
    """The lines that make the system message of an unused column with a usual name."""
    usual = [name for name in columns.unused if name.lower() in SYSTEM and _is_text(rows, name)]
    if not usual or columns.inputs or columns.system:
        return []
    chat = "" if prompt.format == "chat" else " and prompt.format: chat"
    return [f"to begin each row with it as system message: data.fields.system: {usual[0]}{chat}"]


def _template(columns: Columns, inputs: dict[str, str], prompt: Prompt) -> str:
    """The recipe's template with a place for each input, or a plain one."""
    if not prompt.has_own_template:
        places = "\n\n".join(f"{{{name}}}" for name in inputs)
        is_summary = any("summar" in name.lower() for name in columns.summary)
        return f"{places}\n\n{'Summary' if is_summary else 'Answer'}: "
    there = {*columns.inputs, *PLACE.findall(prompt.template)} - {"document"}
    new = "\n\n".join(f"{{{name}}}" for name in inputs if name not in there)
    if not columns.inputs:
        return prompt.template.replace("{document}", new)
    last = f"{{{list(columns.inputs)[-1]}}}"
    return prompt.template.replace(last, f"{last}\n\n{new}" if new else last)


def _as_references(columns: Columns, kinds: Kinds, rows: Rows) -> list[str]:
    texts = [name for name in kinds.get("reference", []) if _is_text(rows, name)]
    if not texts or not columns.summary:
        return []
    several = _flow([*columns.summary, *texts])
    return [f"to judge and train on several references: data.fields.summary: {several}"]


def _chosen_as_reference(columns: Columns, roles: Roles, rows: Rows, fields: Fields) -> str:
    chosen = next((name for name in roles if CHOSEN.search(name)), None)
    if chosen is None:
        return f"to leave it out: data.fields.ignore: {_ignore(fields, roles)}"
    others = [name for name in columns.unused if name != chosen and role_of(name)]
    line: dict[str, Any] = {}
    if any(is_messages(row.get(chosen)) for row in rows):
        line["text"] = chosen
    else:
        prompts = [n for n in others if roles.get(n) == "part of the prompt" and _is_text(rows, n)]
        line["document"] = columns.document or next(iter(prompts), "COLUMN")
        line["summary"] = chosen
        others += columns.summary
    line["ignore"] = [*fields.ignore, *(n for n in others if n != line.get("document"))]
    return f'"{chosen}" would be the reference, with data.fields: {_flow(line)}'


def _may_be_blank(rows: Rows, name: str) -> bool:
    return any(is_nothing(row.get(name)) for row in rows)


def _is_text(rows: Rows, name: str) -> bool:
    values = [row.get(name) for row in rows]
    return all(isinstance(value, str) for value in values if not is_nothing(value))


def _place(column: str, taken: dict[str, str]) -> str:
    """A name for the template, which takes ASCII letters alone: another one for each column."""
    name = re.sub(r"\W+", "_", column, flags=re.ASCII).strip("_").lower()
    name = name if name and not name[0].isdigit() else f"input_{name}".rstrip("_")
    free = (f"{name}_{number}" for number in itertools.count(2))
    return name if name not in taken else next(other for other in free if other not in taken)


def _ignore(fields: Fields, roles: Roles) -> str:
    return _flow([*fields.ignore, *roles])


def _flow(value: Any) -> str:
    """YAML on one line, to paste."""
    if isinstance(value, dict):
        value = {key: item for key, item in value.items() if item}
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**9
    )
    return text.strip()
