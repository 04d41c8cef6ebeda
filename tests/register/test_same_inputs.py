"""A champion that cannot read a recipe's rows is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import mlflow
import pytest
import tiny

from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Recipe
from tasks.models import package
from tasks.register import claims, log_model
from tasks.register.same_inputs import require_same_inputs
from tasks.serving.summarizer import SummarizerSettings
from tasks.tracking import connection

ONE = SummarizerSettings("{document}: ", 200, "tail", 6, 3)
SEVERAL = SummarizerSettings("{q} {c}: ", 200, "tail", 6, 3, inputs=("q", "c"))


def recipe(base: Path, inputs: dict[str, str] | None) -> Recipe:
    made = tiny.make_recipe(base)
    template = " ".join(f"{{{name}}}" for name in inputs or ["document"])
    fields = {"inputs": inputs, "summary": "s"}
    values = made.model_dump(exclude_unset=True)
    values["data"] |= {"fields": fields}
    return Recipe.model_validate(values | {"prompt": {"template": template}})


def test_one_document_against_several_texts(home_with_store: Path) -> None:
    """In both directions, and with other names; the same names in another order are the same."""
    base = tiny.make_tiny_base(home_with_store / "base")
    client = connection.connect()
    experiment = client.create_experiment("e")
    champions = {}
    for name, settings in (("one", ONE), ("several", SEVERAL)):
        model = package.package_base(tiny.prepared(base), settings, home_with_store / name)
        run = client.create_run(experiment).info.run_id
        uri = log_model.log_model(
            client,
            model,
            experiment_id=experiment,
            run_id=run,
            name=name,
            scratch=home_with_store / "scratch",
        )
        tags = {claims.DIGEST: model.digest, claims.RUN_ID: run}
        champions[name] = claims.succeed(
            client, name, claims.NOBODY, source=uri, tags=tags, description="d"
        )
    require_same_inputs(None, recipe(base, {"q": "a"}))
    require_same_inputs(champions["one"], recipe(base, None))
    require_same_inputs(champions["several"], recipe(base, {"c": "x", "q": "y"}))
    for champion, inputs, says in (
        (
            "one",
            {"q": "a", "c": "b"},
            "v1 takes one document, .* hold texts named q, c: .*another name",
        ),
        ("several", None, "v1 takes texts named q, c, .* hold one document"),
        ("several", {"q": "a", "d": "b"}, "texts named q, d"),
    ):
        with pytest.raises(EvaluationError, match=says):
            require_same_inputs(champions[champion], recipe(base, inputs))
    mlflow.set_tracking_uri(None)
