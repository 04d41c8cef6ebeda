"""Whether a champion's prompt is made of the texts that a recipe's rows hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException

from tasks.contracts.documents import CONVERSATION
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Recipe
from tasks.register import claims
from tasks.serving.summarizer import SETTINGS_FILE


def require_same_inputs(champion: claims.Version | None, recipe: Recipe) -> None:
    """Refuse a champion that cannot read this recipe's rows: before training, not when it is scored.

    Raises EvaluationError. A champion whose settings cannot be read is left to the evaluation.
    """
    if champion is None:
        return
    settings = _settings(champion.source)
    if settings is None:
        return
    theirs, ours = list(settings.get("inputs", ())), list(recipe.data.fields.inputs or ())
    if set(theirs) != set(ours):
        raise EvaluationError(
            f"champion v{champion.number} takes {_in_words(theirs)}, and this recipe's rows hold "
            f"{_in_words(ours)}: they cannot be compared on the same rows; give the recipe another name, or "
            "data.fields the champion's form"
        )


def require_readable_rows(champion: claims.Version | None, forms: Mapping[str, int]) -> None:
    """Refuse a champion whose prompt has no place for conversations, where rows hold them.

    `forms`: how many evaluation rows have which form (form_of), from ingest's report; empty where an earlier
    ingest did not count them, which leaves it to the evaluation. Raises EvaluationError. Texts are read by
    every champion: in a chat they are a question.
    """
    if champion is None or not forms.get(CONVERSATION):
        return
    settings = _settings(champion.source)
    if settings is None or settings.get("format") == "chat":
        return
    theirs = _in_words(list(settings.get("inputs", ())))
    raise EvaluationError(
        f"champion v{champion.number} takes {theirs} (it was trained with prompt.format: template), and "
        f"{forms[CONVERSATION]} of {sum(forms.values())} evaluation rows are lists of messages: they cannot "
        "be compared on the same rows; name columns of texts in data.fields (document and summary), or give "
        "the recipe another name"
    )


def _settings(source: str) -> dict[str, Any] | None:
    try:
        model = mlflow.MlflowClient().get_logged_model(source.removeprefix("models:/"))
        file = f"{model.artifact_location}/artifacts/package/{SETTINGS_FILE}"
        found: dict[str, Any] = mlflow.artifacts.load_dict(file)
    except (MlflowException, OSError):
        return None
    return found


def _in_words(inputs: list[str]) -> str:
    return f"texts named {', '.join(inputs)}" if inputs else "one document"
