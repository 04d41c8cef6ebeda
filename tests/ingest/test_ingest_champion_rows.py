"""Evaluation rows that the champion was trained on."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import mlflow
from prefect.logging import disable_run_logger

from tasks.contracts import digest
from tasks.contracts.recipe import Recipe
from tasks.contracts.records import DatasetRef, Row
from tasks.contracts.similar_documents import DocumentIndex
from tasks.ingest.canonical_rows import row_json
from tasks.ingest.champion_rows import SeenRows, seen_rows_of
from tasks.ingest.row_types import source_of
from tasks.ingest.task import seen_by_champion
from tasks.tracking import artifacts, connection, mlflow_run, step_cache


def _text(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"word{draw.randrange(5000)}" for _ in range(60))


def _file(path: Path, documents: Sequence[str]) -> Path:
    rows = [
        Row(f"{path.stem}{i}", source_of(d), d, (f"reference {i}",))
        for i, d in enumerate(documents)
    ]
    path.write_bytes(b"".join(map(row_json, rows)))
    return path


def _seen(folder: Path, evaluation: Sequence[str], train: Sequence[str]) -> SeenRows:
    return seen_rows_of(
        _file(folder / "e.jsonl", evaluation),
        _file(folder / "t.jsonl", train),
        DocumentIndex(0.8, 0.5),
    )


def test_rows_the_champion_was_trained_on_are_counted(tmp_path: Path) -> None:
    """Exact copies, other case and punctuation, a longer text around it; each row once, of a document all."""
    evaluation = [_text(i) for i in range(20)]
    train = [
        evaluation[3],
        evaluation[3].upper() + "!",
        evaluation[5].replace(" ", ", ").upper(),
        f"{_text(100)} {evaluation[8]}",
        _text(200),
    ]
    found = _seen(tmp_path, [*evaluation, f" {evaluation[3]}"], train)
    assert (found.seen, found.rows, found.first) == (4, 21, "e3")
    assert "4 of 21 evaluation rows (19.0%)" in found.remark("champion v7")
    assert "champion v7 was trained on" in found.remark("champion v7")


def test_nothing_is_remarked_where_nothing_was_seen(tmp_path: Path) -> None:
    """Other documents are no contamination, and no training rows are none."""
    evaluation = [_text(i) for i in range(20)]
    assert (
        _seen(tmp_path, evaluation, [_text(i) for i in range(100, 140)]).remark("champion v1") == ""
    )
    assert _seen(tmp_path, evaluation, []).seen == 0


def _stored(
    run: mlflow_run.Run, folder: Path, evaluation: list[str], train: list[str]
) -> DatasetRef:
    folder.mkdir()
    files = [_file(folder / "evaluation.jsonl", evaluation), _file(folder / "train.jsonl", train)]
    evaluation_digest, train_digest = map(digest.of_file, files)
    uri = run.log_folder(folder, "dataset")
    dataset = DatasetRef(uri, "d", train_digest, evaluation_digest, len(train), len(evaluation), 0)
    step_cache.record(run, "ingest", folder.name, dataset)
    return dataset


def test_the_champions_training_rows_are_looked_up_or_missed(
    tmp_path: Path, home_with_store: Path
) -> None:
    """From its run's artifacts; where they are gone or changed, the remark says that it is not known."""
    connection.connect()
    texts = [_text(i) for i in range(30)]
    data = {"train": "t.jsonl", "evaluation": "e.jsonl"}
    recipe = Recipe.model_validate({"name": "m", "data": data, "base": {"model": "base"}})
    with disable_run_logger():
        with mlflow_run.run_for("m", "earlier", {}) as run:
            earlier, of_champion = run.id, _stored(run, tmp_path / "a", texts[:5], texts[5:15])
        with mlflow_run.run_for("m", "today", {}) as run:
            dataset = _stored(run, tmp_path / "b", texts[10:], texts[:5])
            (remark,) = seen_by_champion.fn(dataset, 4, earlier, recipe)
            assert "5 of 20 evaluation rows (25.0%)" in remark
            clean = _stored(run, tmp_path / "c", texts[20:], texts[:5])
            assert seen_by_champion.fn(clean, 4, earlier, recipe) == ()
            shutil.rmtree(artifacts.fetch(of_champion.uri))
            (remark,) = seen_by_champion.fn(dataset, 4, earlier, recipe)
            assert remark.startswith(
                "not known: whether champion v4 was trained on evaluation rows"
            )
    mlflow.set_tracking_uri(None)
