from __future__ import annotations

import json
from pathlib import Path

import pytest
from ingest_files import Ingest, jsonl, rows
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a real tokenizer: `<s>` before the text, then a token a byte."""
    folder = tmp_path_factory.mktemp("tokenizer")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<pad>", "<s>", "</s>", *alphabet]
    tokenizer = Tokenizer(BPE({name: n for n, name in enumerate(names)}, []))
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def ingest(byte_tokenizer: Path, tmp_path: Path) -> Ingest:
    return Ingest(byte_tokenizer, tmp_path / "dataset")


@pytest.fixture
def evaluation(tmp_path: Path) -> str:
    """An evaluation file of five good rows."""
    return jsonl(tmp_path / "dev.jsonl", rows(5, start=900))
