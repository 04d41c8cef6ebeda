"""The known recipes' rows decode to the same texts as before ingest was rewritten.

DIGESTS were made at commit 1b0074c, the last one before columns, templates and tokenizers were tried: the
same rows, through that commit's ingest and encoding.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from flows import recipes
from tasks.contracts.records import read_rows
from tasks.ingest.prepare import prepare
from tasks.models import find_base
from tasks.models.encoding import IGNORED, encode_rows

RECIPES = Path(__file__).parents[2] / "deployments/recipes"
SHARED_BASE = "models/dialog-7m"
WHOLE = 1 << 30  # tokens: nothing is cut
MOST = {"data.train_rows": 50, "data.evaluation_rows": 10}
# Files of ../shared/data in place of the hub's, and what else differs there.
SETS: dict[str, dict[str, Any]] = {
    "llama2-billsum": {
        "data.train": "billsum/us_train_100.jsonl",
        "data.evaluation": "null",
        "data.revision": "null",
        "data.evaluation_share": 0.2,
        "data.train_rows": 20,
    },
    "llama2-custom": {"data.train": "dialogsum/dev.jsonl", "data.evaluation_share": 0.2},
    "llama2-chat-guanaco": {"data.train": "guanaco/train.jsonl", "data.evaluation_share": 0.2},
    "llama2-medical-qa": {
        "data.train": "medquad/medquad_3k.jsonl",
        "data.fields": "{document: question, summary: answer, id: qid}",
        "data.evaluation_share": 0.2,
    },
    "phi2-dialogsum": {
        "data.train": "dialogsum/train.jsonl",
        "data.evaluation": "dialogsum/dev.jsonl",
        "data.fields": "{document: dialogue, summary: summary, id: fname}",
        "data.train_rows": 100,
        "data.evaluation_rows": 400,
    },
}
# Of the rows that were used then and are not now: training rows that are evaluation rows with other words.
DROPPED = {"phi2-dialogsum": ["train_59", "train_75", "train_93"]}
DIGESTS = {
    "llama2-billsum": "74159fb9e0dff0bb",
    "llama2-custom": "bada29d748c89f78",
    "llama2-chat-guanaco": "e070674b2a296ec5",
    "llama2-medical-qa": "98bdeaf78eb725eb",
    "phi2-dialogsum": "3cb6659b9e218c96",
}


def texts_of(name: str, shared: Path, folder: Path) -> dict[str, list[list[str]]]:
    """Of each row, by its id: the whole text of every sequence, and the part that is learned."""
    values = MOST | SETS[name] | {"base.model": shared / SHARED_BASE, "base.revision": "null"}
    for key in ("data.train", "data.evaluation"):
        if values.get(key, "null") != "null":
            values[key] = shared / "data" / values[key]
    recipe = recipes.load(RECIPES / f"{name}.yaml", [f"{k}={v}" for k, v in values.items()])
    base = find_base.find_base(recipe)
    prepare(recipe.data, recipe.prompt, base.settings, base.path, folder)
    tokenizer = tokenizer_of(base.path)
    rows = [row for side in ("train", "evaluation") for row in read_rows(folder / f"{side}.jsonl")]
    found = {}
    for row in rows:
        encoded = encode_rows([row], tokenizer, base.settings, WHOLE)
        found[row.id] = [
            [tokenizer.decode(ids), tokenizer.decode([id_ for id_ in labels if id_ != IGNORED])]
            for ids, labels in zip(encoded.input_ids, encoded.labels, strict=True)
        ]
    return found


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def digest_of(texts: dict[str, list[list[str]]]) -> str:
    return hashlib.sha256(json.dumps(list(texts.items())).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", SETS)
def test_texts_are_those_of_before(name: str, shared: Path, tmp_path: Path) -> None:
    """Prompt, answer and what is learned of each row; but for rows now dropped as leaked, none is missing."""
    texts = texts_of(name, shared, tmp_path)
    train, evaluation = (
        (MOST | SETS[name])[f"data.{side}_rows"] for side in ("train", "evaluation")
    )
    dropped = DROPPED.get(name, [])
    assert len(texts) == train + evaluation - len(dropped)
    assert not set(dropped) & set(texts)
    assert digest_of(texts) == DIGESTS[name]
