from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ingest_files import TEMPLATE, Ingest, jsonl, rows, settings

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError, DataError, RecipeError
from tasks.contracts.recipe import Data, Prompt
from tasks.ingest.prepare import prepare, problems
from tasks.ingest.sources import source_digest
from tasks.ingest.tokenizer import Tokenizer
from tasks.serving import summarizer

ROOT = Path(__file__).parents[2]


def test_same_input_same_bytes(
    tmp_path: Path, byte_tokenizer: Path, ingest: Ingest, evaluation: str
) -> None:
    """The same input gives the same bytes, in any folder and any process."""
    values = [*rows(40), {"document": "x", "summary": ""}]
    train = jsonl(tmp_path / "t.jsonl", values)
    data = Data(train=train, evaluation=evaluation, max_rejected_share=0.1)
    first = ingest(**data.model_dump())
    script = (
        "import sys; from pathlib import Path; from tasks.contracts.recipe import Data, Prompt\n"
        "from tasks.serving.summarizer import SummarizerSettings as S; from tasks.ingest.prepare import *\n"
        f"t = {TEMPLATE!r}; s = S(t, 2000, 'tail', 32, 4); d = Data.model_validate_json(sys.argv[1])\n"
        "prepare(d, Prompt(template=t), s, Path(sys.argv[2]), Path(sys.argv[3]))\n"
    )
    other = tmp_path / "other"
    arguments = [data.model_dump_json(), str(byte_tokenizer), str(other)]
    env = {"PYTHONHASHSEED": "7", "PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", script, *arguments], env=env, check=True)
    assert {path.name: path.read_bytes() for path in sorted(other.iterdir())} == ingest.bytes()
    again = ingest(**data.model_dump())
    assert again == first
    assert sorted(ingest.bytes()) == [
        "evaluation.jsonl",
        "rejects.jsonl",
        "report.json",
        "train.jsonl",
    ]


def test_digests(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Each split has a digest of its own rows; the whole has one of both."""
    one = ingest(train=jsonl(tmp_path / "t.jsonl", rows(5)), evaluation=evaluation)
    two = ingest(train=jsonl(tmp_path / "t.jsonl", rows(6)), evaluation=evaluation)
    assert one.evaluation_digest == two.evaluation_digest
    assert one.evaluation_digest == digest.of_file(ingest.folder / "evaluation.jsonl")
    assert one.train_digest != two.train_digest
    assert one.digest != two.digest
    assert two.uri == str(ingest.folder)
    assert (two.train_rows, two.evaluation_rows) == (6, 5)


def test_old_output_goes(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """A failed run leaves no rows of an earlier one behind."""
    ingest(train=jsonl(tmp_path / "t.jsonl", rows(5)), evaluation=evaluation)
    with pytest.raises(DataError):
        ingest(train=str(tmp_path / "none.jsonl"), evaluation=evaluation)
    assert ingest.bytes() == {}


def test_lengths(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """Lengths are those of the prompt before any cut, and of each reference, in tokens."""
    sizes = [10, 20, 30, 40, 200]
    values = [{"document": "é" + "x" * (n - 2), "summary": [" ab ", "c" * 40]} for n in sizes]
    train = jsonl(tmp_path / "t.jsonl", values)
    around = len(TEMPLATE.replace("{document}", "")) + 1  # and <s>; é is two bytes
    ingest(most=100 + around, train=train, evaluation=evaluation)
    report = ingest.report()["train"]
    assert report["prompt_tokens"] == {"p50": 30 + around, "p95": 200 + around, "max": 200 + around}
    assert report["summary_tokens"] == {"p50": 2, "p95": 40, "max": 40}
    truncated = report["truncated_prompts"]
    assert (truncated["count"], truncated["share"], truncated["limit"]) == (1, 0.2, 100 + around)
    assert truncated["tokens_cut"] == {"p50": 100, "p95": 100, "max": 100, "mean": 100}
    over = report["summaries_over_max_new_tokens"]
    assert (over["count"], over["share"], over["limit"]) == (5, 0.5, 32)


def test_report_names_sources(tmp_path: Path, ingest: Ingest, evaluation: str) -> None:
    """The report names each file with its SHA-256, rows and rejects."""
    train = jsonl(tmp_path / "t.jsonl", [*rows(5), {"document": "x"}])
    ingest(train=train, evaluation=evaluation, max_rejected_share=0.5)
    report = ingest.report()
    source = report["inputs"]["data.train"]
    (file,) = source["files"]
    assert (source["source"], source["rows_read"], source["rejected"]) == (train, 6, 1)
    assert (file["name"], file["sha256"]) == (
        train,
        hashlib.sha256(Path(train).read_bytes()).hexdigest(),
    )
    assert file["bytes"] == Path(train).stat().st_size
    problem = 'has no "summary"; add it or set data.fields.summary'
    assert report["reject_reasons"] == [
        {"reason": problem, "rows": 1, "first": f"{train}:6 {problem}"}
    ]
    assert report["remarks"] == [
        "data.train: 1 of 6 rows rejected",
        f"rejected: {train}:6 {problem}",
    ]


def test_source_digest(tmp_path: Path) -> None:
    """The key follows content and file names, not folders or settings that read nothing else."""
    one = jsonl(tmp_path / "one/t.jsonl", rows(5))
    two = jsonl(tmp_path / "two/t.jsonl", rows(5))
    key = source_digest(Data(train=one))
    assert source_digest(Data(train=two, train_rows=3)) == key
    assert source_digest(Data(train=str(tmp_path / "one"))) == key
    assert source_digest(Data(train=one, evaluation=two)) != key
    jsonl(Path(two), rows(6))
    assert source_digest(Data(train=two)) != key
    with pytest.raises(DataError) as caught:
        source_digest(Data(train="none.jsonl", evaluation="hub:owner/name"))
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.train: no file or folder none.jsonl")
    assert "pin it with data.revision" in second
    pinned = {"train": "hub:owner/name", "evaluation": "hub:owner/name"}
    keys = {source_digest(Data(**pinned, revision=revision)) for revision in ("a", "b")}
    keys.add(source_digest(Data(**pinned, revision="a", evaluation_split="test")))
    assert len(keys) == 3


def test_template_too_long(ingest: Ingest, evaluation: str, byte_tokenizer: Path) -> None:
    """A template that leaves no room for any document is the recipe's problem."""
    with pytest.raises(RecipeError, match=r"prompt.template alone is 17 tokens.*max_source_tokens"):
        ingest(most=16, train=evaluation)
    found, counts = problems(Data(train=evaluation), Prompt(), settings(16), byte_tokenizer)
    assert (len(found), counts) == (1, {})


def test_no_tokenizer(tmp_path: Path, evaluation: str) -> None:
    """A folder without a tokenizer is named."""
    with pytest.raises(BaseModelError, match=r"has no tokenizer\.json"):
        prepare(Data(train=evaluation), Prompt(), settings(), tmp_path, tmp_path / "out")


def test_prompts_are_cut_to_the_limit_and_no_further(byte_tokenizer: Path) -> None:
    """Counted in the tokenizer's own tokens, from each side."""
    tokenizer = Tokenizer(byte_tokenizer).loaded
    for cut_from in ("tail", "head", "middle"):
        limit = summarizer.SummarizerSettings(TEMPLATE, 60, cut_from, 32, 4)
        prompt, cut = summarizer.fit(tokenizer, "word " * 40, limit)
        assert len(tokenizer(prompt)["input_ids"]) == 60
        assert cut == 200 + 17 - 60


def test_texts_tokenized_together_are_as_training_tokenizes_them(shared: Path) -> None:
    """The same ids, many at once or one at a time, and the same text back."""
    texts = [json.loads(line)["text"] for line in (shared / "data/guanaco/train.jsonl").open()][:40]
    for folder in (shared / "models/dialog-7m", shared / "bench/tokenizer"):
        tokenizer = Tokenizer(folder)
        together = tokenizer.ids(texts)
        assert together == [
            tokenizer.loaded(text, add_special_tokens=False)["input_ids"] for text in texts
        ]
        assert tokenizer.decode(together[0]) == tokenizer.loaded.decode(
            together[0], skip_special_tokens=True
        )


def test_parts_hardly_longer_than_their_summaries(
    ingest: Ingest, evaluation: str, byte_tokenizer: Path, tmp_path: Path
) -> None:
    """map_reduce needs room: a summary may have at most half of the tokens that a part may."""
    train = jsonl(tmp_path / "t.jsonl", rows(5))
    data, prompt = Data(train=train, evaluation=evaluation), Prompt(template=TEMPLATE)
    bare = len(TEMPLATE.replace("{document}", "")) + 1
    for room, fits in ((64, True), (63, False)):  # 32 new tokens
        wanted = replace(settings(bare + room), summarize="map_reduce")
        if fits:
            prepare(data, prompt, wanted, byte_tokenizer, tmp_path / "out")
            continue
        with pytest.raises(RecipeError, match=r"part of a document may have 63 tokens.*lower eval"):
            prepare(data, prompt, wanted, byte_tokenizer, tmp_path / "out")
