"""Which files of a folder are read: the same locally, behind links, and on S3 (test_ingest_s3.py)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import datasets
import pytest
from ingest_files import Ingest, jsonl, rows

from tasks.contracts.errors import DataError
from tasks.ingest.folders import choose_files, local_names

VISIBLE = ["a.jsonl", "b/c.csv.gz", "b/d.parquet"]
LEFT_OUT = {
    ".a.jsonl": ".a.jsonl",
    ".ipynb_checkpoints/a.jsonl": ".ipynb_checkpoints/",
    "_SUCCESS": "_SUCCESS",
    "_temporary/0/a.jsonl": "_temporary/",
    "b/.cache/x/a.jsonl": "b/.cache/",
    "b/__MACOSX/._a.csv": "b/__MACOSX/",
    "README.md": "README.md",
    "a.jsonl~": "a.jsonl~",
    "a.jsonl.part": "a.jsonl.part",
    "dataset_info.json": "dataset_info.json",
    "b/state.json": "b/state.json",
    "notes.xlsx": "notes.xlsx",
}


def test_what_a_folder_holds() -> None:
    """Hidden files, checkpoints, markers, descriptions and other forms are left out, and listed."""
    chosen = choose_files("data.train: d", [*VISIBLE, *LEFT_OUT])
    assert chosen.read == tuple(VISIBLE)
    assert chosen.left_out == tuple(sorted(LEFT_OUT.values()))


def test_a_local_folder_lists_the_same(tmp_path: Path) -> None:
    """A local folder, and one of symbolic links to its parts, hold what a flat list of names holds."""
    for name in [*VISIBLE, *LEFT_OUT]:
        path = tmp_path / "real" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "links").mkdir()
    for entry in (tmp_path / "real").iterdir():
        (tmp_path / "links" / entry.name).symlink_to(entry)
    expected = choose_files("d", [*VISIBLE, *LEFT_OUT])
    for folder in ("real", "links"):
        assert choose_files("d", local_names("d", tmp_path / folder)) == expected


REFUSED = {
    "an archive": (["a.jsonl", "b.zip"], r"holds archives: b\.zip; unpack them first"),
    "a tar in gzip": (["a.jsonl", "b.tar.gz"], r"holds archives: b\.tar\.gz"),
    "a gzip of unknown content": (["a.jsonl", "b.gz"], r"holds archives: b\.gz"),
    "a Delta table": (["a.parquet", "_delta_log/0.json"], "is a Delta table"),
    "several splits of datasets": (
        ["dataset_dict.json", "train/a.arrow", "test/a.arrow"],
        "was written by DatasetDict.save_to_disk and .*; name one: test, train",
    ),
    "nothing but hidden files": (
        [".a.jsonl", "_b/a.jsonl"],
        r"holds none of \.jsonl.*but \.a\.jsonl, _b/a",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_that_is_refused(kind: str) -> None:
    """Where rows cannot be reached, or other rows would be read with them, the folder is refused."""
    names, problem = REFUSED[kind]
    with pytest.raises(DataError, match=rf"^data\.train: d {problem}"):
        choose_files("data.train: d", names)


def test_links(tmp_path: Path) -> None:
    """A link in a circle and a link to nothing are refused by name; one file by two names is read twice."""
    folder = tmp_path / "d"
    jsonl(folder / "sub/a.jsonl", rows(2))
    (folder / "b").symlink_to(folder / "sub")
    assert local_names("d", folder) == ["b/a.jsonl", "sub/a.jsonl"]
    (folder / "sub/up").symlink_to(folder)
    with pytest.raises(DataError, match=r"/up is a link to a folder above it"):
        local_names("d", folder)
    (folder / "sub/up").unlink()
    (folder / "gone.jsonl").symlink_to("nowhere.jsonl")
    with pytest.raises(
        DataError, match=r"gone\.jsonl is a link to nowhere\.jsonl, which is not there"
    ):
        local_names("d", folder)


def test_special_files_in_a_folder(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A folder called like a file is a folder; a pipe called like one is refused."""
    jsonl(tmp_path / "d/x.jsonl/a.jsonl", rows(3))
    assert ingest(train=str(tmp_path / "d"), evaluation=evaluation).train_rows == 3
    os.mkfifo(tmp_path / "d/b.jsonl")
    with pytest.raises(DataError, match=r"b\.jsonl is a named pipe"):
        ingest(train=str(tmp_path / "d"), evaluation=evaluation)


def test_left_out_files_are_told(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """The report and the remarks list what was not read, and parts that are missing."""
    jsonl(tmp_path / "d/t-00000-of-00003.jsonl", rows(3))
    jsonl(tmp_path / "d/t-00002-of-00003.jsonl", rows(3, 10))
    jsonl(tmp_path / "d/.ipynb_checkpoints/t.jsonl", rows(3, 20))
    ingest(train=str(tmp_path / "d"), evaluation=evaluation)
    hidden = f"{tmp_path}/d/.ipynb_checkpoints/"
    assert ingest.report()["inputs"]["data.train"]["ignored"] == [hidden]
    first, second = ingest.report()["remarks"]
    assert first == f"data.train: not read: {hidden}"
    assert second.endswith("t-*-of-00003.jsonl: 2 of 3 parts are there")


def test_save_to_disk(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """What datasets saved is read; a part that is gone, or rows chosen by indices, are refused."""
    dataset = datasets.Dataset.from_list(rows(6))
    dataset.save_to_disk(tmp_path / "d", num_shards=2)
    ingest(train=str(tmp_path / "d"), evaluation=evaluation)
    assert [row.document for row in ingest.rows("train")] == [row["document"] for row in rows(6)]
    state = json.loads((tmp_path / "d/state.json").read_text())
    (tmp_path / "d/state.json").write_text(
        json.dumps(state | {"_indices_files": [{"filename": "i.arrow"}]})
    )
    with pytest.raises(DataError, match="is a selection of its Arrow files' rows"):
        ingest(train=str(tmp_path / "d"), evaluation=evaluation)
    (tmp_path / "d/data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        DataError, match=r"names files that are not there: data-00001-of-00002\.arrow"
    ):
        ingest(train=str(tmp_path / "d"), evaluation=evaluation)
