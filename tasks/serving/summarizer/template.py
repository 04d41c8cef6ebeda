"""The prompt template: `{document}`, or a place for each of several named texts."""

from __future__ import annotations

import re

from .settings import Document, SummarizerSettings

DOCUMENT = "document"  # the name of the only text
ONLY_DOCUMENT = "{document}"


def filled(template: str, values: dict[str, str]) -> str:
    """The template with each `{name}` of `values` replaced; all other braces stay as they are.

    It is read once, so a value that holds `{name}` itself stays as it is.
    """
    places = "|".join(re.escape(f"{{{name}}}") for name in values)
    return re.sub(places, lambda place: values[place.group()[1:-1]], template)


def values_of(document: Document, settings: SummarizerSettings) -> dict[str, str]:
    """A document's texts by their names in the template, in the order of the settings.

    Raises ValueError for a document of another form than the settings want.
    """
    if not settings.inputs and isinstance(document, str):
        return {DOCUMENT: document}
    if settings.inputs and isinstance(document, dict):
        names = set(settings.inputs)
        missing, unknown = names - set(document), set(document) - names
        if not missing and not unknown:
            return {name: document[name] for name in settings.inputs}
    form = "a document that is one text"
    if settings.inputs:
        form = f"texts named {', '.join(settings.inputs)}"
    if isinstance(document, dict):
        found = f"texts named {', '.join(document)}"
    else:
        found = "one text" if isinstance(document, str) else "a conversation"
    raise ValueError(f"the model's prompt is made of {form}, and this is {found}")


def question_of(document: dict[str, str], settings: SummarizerSettings) -> str:
    """What several texts are as the user's message in a chat: the template, or blank lines between."""
    values = values_of(document, settings)
    if settings.template == ONLY_DOCUMENT:
        return "\n\n".join(text for text in values.values() if text.strip())
    return filled(settings.template, values)
