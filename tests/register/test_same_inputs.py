"""A champion that cannot read a recipe's rows is refused before anything is trained."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import tiny

from flows.check import check
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Recipe
from tasks.ingest.task import forms_of
from tasks.models import package
from tasks.register import claims, log_model
from tasks.register.same_inputs import require_readable_rows, require_same_inputs
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


def registered(base: Path, home: Path, of: dict[str, SummarizerSettings]) -> dict[str, Any]:
    """A champion for each name, with these settings."""
    client = connection.connect()
    experiment = client.create_experiment("e")
    champions = {}
    for name, settings in of.items():
        model = package.package_base(tiny.prepared(base), settings, home / name)
        run = client.create_run(experiment).info.run_id
        uri = log_model.log_model(
            client,
            model,
            experiment_id=experiment,
            run_id=run,
            name=name,
            scratch=home / "scratch",
        )
        tags = {claims.DIGEST: model.digest, claims.RUN_ID: run}
        champions[name] = claims.succeed(client, name, None, source=uri, tags=tags, description="d")
    return champions


def test_one_document_against_several_texts(home_with_store: Path) -> None:
    """In both directions, and with other names; the same names in another order are the same."""
    base = tiny.make_tiny_base(home_with_store / "base")
    champions = registered(base, home_with_store, {"one": ONE, "several": SEVERAL})
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


def test_conversations_against_a_prompt_for_texts(home_with_store: Path) -> None:
    """A champion with a place for one text cannot read messages, which check says; a chat reads both."""
    base = tiny.make_tiny_base(home_with_store / "base")
    chat = replace(ONE, template="{document}", format="chat", chat_template="{{ messages }}")
    champions = registered(base, home_with_store, {"tiny": ONE, "chat": chat})
    conversations, texts = {"conversation": 7, "text": 1}, {"text": 8}
    says = "v1 takes one document .* 7 of 8 .* lists of messages: .* data.fields"
    with pytest.raises(EvaluationError, match=says):
        require_readable_rows(champions["tiny"], conversations)
    require_readable_rows(champions["tiny"], texts)
    require_readable_rows(champions["chat"], conversations)
    require_readable_rows(champions["chat"], texts)
    require_readable_rows(None, conversations)
    file = home_with_store / "rows.jsonl"
    with file.open("w") as lines:
        for number in range(40):
            asked = {"role": "user", "content": f"What is {number}?"}
            answer = {"role": "assistant", "content": f"It is {number}."}
            lines.write(json.dumps({"messages": [asked, answer]}) + "\n")
    made = tiny.make_recipe(
        base,
        data={"train": str(file), "evaluation_share": 0.4},
        prompt={"format": "chat", "chat_template": "llama-2"},
    )
    [problem] = [line for line in check(made).problems if "lists of messages" in line]
    assert "champion v1 takes one document" in problem
    mlflow.set_tracking_uri(None)


def test_report_of_before_says_nothing_of_forms() -> None:
    """A data report of schema 1 refuses no champion: it did not count the forms."""
    assert forms_of({"schema_version": 1, "evaluation": {"rows": 3}}) == {}
    assert forms_of({"evaluation": {"document_forms": {"text": 3}}}) == {"text": 3}
    require_readable_rows(None, {})
