from __future__ import annotations

from pathlib import Path

import pytest
from ingest_files import Ingest, jsonl, rows, settings

from tasks.contracts.errors import DataError
from tasks.contracts.recipe import Data, Prompt
from tasks.ingest import hub
from tasks.ingest.prepare import problems


def test_offline(ingest: Ingest) -> None:
    """A hub dataset that cannot be reached says so, with all that could fix it."""
    with pytest.raises(DataError) as caught:
        ingest(train="hub:precis-tests/no-such-set", revision="0" * 40)
    text = str(caught.value)
    assert text.startswith(
        f"data.train: hub:precis-tests/no-such-set (revision {'0' * 40}, split train) "
        "cannot be loaded: "
    )
    assert "HF_TOKEN" in text
    assert ingest.bytes() == {}


def test_unpinned(evaluation: str) -> None:
    """A hub dataset needs a revision, and a name with its owner."""
    found, _ = problems(Data(train="hub:owner/name", evaluation="hub:name"), Prompt(), settings())
    assert "data.train: hub:owner/name is a hub dataset: pin it with data.revision" in found[0]
    assert "data.evaluation: hub:name is not hub:owner/name" in found[1]


def test_a_loaded_split_is_read(
    tmp_path: Path, ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `datasets` loads is read like a Parquet file; a local folder never passes for the hub's."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "owner/name/train.jsonl", rows(30))
    hub.load("owner/name", "main", "train", tmp_path / "train.parquet")
    ingest(train=str(tmp_path / "train.parquet"), evaluation_share=0.5)
    found = [*ingest.rows("train"), *ingest.rows("evaluation")]
    assert sorted(row.document for row in found) == sorted(row["document"] for row in rows(30))
    with pytest.raises(
        DataError, match=r"there is a folder owner/name in .*; name it without hub:"
    ):
        ingest(train="hub:owner/name", revision="main")
