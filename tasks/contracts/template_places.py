"""The places of a prompt template, `{name}` each, against the names that fill them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def doubled(template: str, names: Sequence[str]) -> str:
    """A name in two pairs of braces, as Jinja has it; empty: there is none."""
    marked = (f"{{{{{name}}}}}" for name in names)
    return next((mark for mark in marked if mark in template), "")


def problems_of(template: str, names: Sequence[str]) -> list[str]:
    """What is wrong with a template in which each of `names` must have one place.

    Braces around anything but a name are text: a template may show JSON.
    """
    counts = {name: template.count(f"{{{name}}}") for name in names}
    missing = [f"{{{name}}}" for name, count in counts.items() if not count]
    twice = [f"{{{name}}}" for name, count in counts.items() if count > 1]
    problems = []
    if missing:
        problems.append(f"it lacks {', '.join(missing)}")
    if twice:
        problems.append(f"it holds {', '.join(twice)} more than once")
    for name in dict.fromkeys(PLACE.findall(template)):
        if name not in counts:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            hint = f"; nearest: {near[0]}" if near else ""
            problems.append(f"it holds {{{name}}}, and data.fields.inputs has no {name}{hint}")
    return problems
