"""A champion with another tokenizer is refused before anything is trained, where the loss decides."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mlflow
import once
import pytest
import tiny
from prefect.context import refresh_global_settings_context

from flows import check
from flows.retrain import retrain
from flows.stack import embedded
from tasks.contracts.errors import EvaluationError, SealBroken
from tasks.contracts.recipe import Recipe
from tasks.models.tokenizer_digest import tokenizer_digest
from tasks.register import claims, rollback
from tasks.register.task import require_comparable
from tasks.tracking import connection


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def other(base: Path, tmp_path: Path) -> Path:
    """The same base with a tokenizer that knows one token fewer."""
    folder = tmp_path / "other"
    shutil.copytree(base, folder)
    text = (folder / "tokenizer.json").read_text()
    assert '"add_prefix_space": false' in text
    changed = text.replace('"add_prefix_space": false', '"add_prefix_space": true')
    (folder / "tokenizer.json").write_text(changed)
    return folder


@pytest.fixture
def store(home_with_store: Path) -> Iterator[Any]:
    yield connection.connect()
    mlflow.set_tracking_uri(None)


@pytest.fixture
def prefect(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An embedded server."""
    once.put_prefect_database(home / "prefect")
    refresh_global_settings_context()
    with embedded.server() as wait_until_ready:
        wait_until_ready()
        yield
    monkeypatch.undo()
    refresh_global_settings_context()


def recipe(base: Path, metric: str = "loss") -> Recipe:
    return tiny.make_recipe(base, gate={"metric": metric})


def version(tokenizer: str) -> claims.Version:
    made = datetime.now(UTC)
    return claims.Version(2, 1, True, "d", "run", "models:/m-1", made, None, "", tokenizer)


def test_another_tokenizer_is_refused_where_the_loss_decides(base: Path, other: Path) -> None:
    """Which two they are, and what to do; by ROUGE, or with the same one, nothing is in the way."""
    champion = version(tokenizer_digest(base))
    with pytest.raises(SealBroken, match=r"not champion v2's \(.*another name"):
        require_comparable(champion, other, recipe(other))
    require_comparable(champion, base, recipe(base))
    require_comparable(champion, other, recipe(other, "rougeL"))
    require_comparable(None, other, recipe(other))


def test_a_champion_from_before_there_was_a_loss_is_refused(base: Path) -> None:
    """Its package computes none, which evaluation would find out only after training."""
    old = version("")
    with pytest.raises(
        EvaluationError, match=r"champion v2 was made .* set gate\.metric to rougeL"
    ):
        require_comparable(old, base, recipe(base))
    require_comparable(old, base, recipe(base, "rougeL"))


def promoted(client: Any, name: str, tokenizer: str) -> claims.Version:
    """A champion in a real registry, with its tokenizer on record."""
    identity = client.create_experiment("e")
    run = client.create_run(identity)
    model = client.create_logged_model(identity, source_run_id=run.info.run_id)
    tags = {claims.DIGEST: "d", claims.RUN_ID: run.info.run_id, claims.TOKENIZER: tokenizer}
    source = f"models:/{model.model_id}"
    won = claims.succeed(client, name, None, source=source, tags=tags, description="d")
    assert won is not None
    return won


def test_the_registry_keeps_it_through_a_rollback(store: Any) -> None:
    """The version that a rollback makes is of the same model."""
    first = promoted(store, "qa", "tokens")
    assert first.tokenizer == "tokens"
    tags = {claims.DIGEST: "e", claims.RUN_ID: "another"}
    second = claims.succeed(store, "qa", first, source=first.source, tags=tags, description="d")
    back = rollback.restore(store, "qa", first, "third", expected=second)
    assert (back.number, back.tokenizer) == (3, "tokens")


def test_check_and_the_flow_say_so_before_any_work(
    store: Any, prefect: None, home: Path, base: Path, other: Path
) -> None:
    """`precis check` lists it as a problem; the run fails with it, and has ingested nothing."""
    promoted(store, "tiny", tokenizer_digest(base))
    rows = [{"document": r.document, "summary": r.references[0]} for r in tiny.make_rows(400)]
    (home / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = check.check(recipe(other)).problems
    assert [p for p in problems if "losses a token are not comparable across tokenizers" in p]
    assert not check.check(recipe(base)).problems
    state = retrain(recipe(other), return_state=True)
    assert state.is_failed()
    assert "tokenizer" in str(state.message)
    (run,) = store.search_runs(
        [store.get_experiment_by_name("tiny").experiment_id], "tags.`precis.flow` = 'retrain'"
    )
    assert not [artifact.path for artifact in store.list_artifacts(run.info.run_id, "dataset")]
