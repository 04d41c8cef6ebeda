"""NLI and BERTScore against float64 by hand, long texts, and model folders that cannot be used.

Over 250 lines: its tests share two models and the numbers by hand.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import mlflow
import numpy as np
import pytest
import tiny
from numpy.typing import NDArray
from prefect.logging import disable_run_logger
from tiny_encoders import LABELS, encoder

from tasks.contracts import digest
from tasks.contracts.errors import EvaluationError
from tasks.contracts.recipe import Gate
from tasks.contracts.records import Output, Scores
from tasks.evaluate import bertscore, metric_model, nli
from tasks.evaluate.model_metrics import problems, write
from tasks.evaluate.scores import score_texts, scores_of
from tasks.evaluate.task import add_metric, add_model_metrics, preflight, require_metric_models
from tasks.tracking import artifacts, connection, mlflow_run, step_cache
from tasks.tracking.predictions_table import read_table, write_table

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENT = "Anna has an old map. Ben has a new bike.\nShe works in the office, he has tea?"
OUTPUTS = ["Ben has a bike. Anna works.", "anna has tea", "", "Zoe: red, red, red."]
REFERENCES = [("Ben has a new bike.", "He works."), ("Anna has tea.",), ("tea",), ("Zoe", "red")]
CLOSE = 1e-5  # between float32 in batches, and float64 one by one


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder(tmp_path_factory.mktemp("nli"), labels=LABELS, positions=32)


@functools.cache
def _loaded(folder: Path, kind: str) -> tuple[Any, Any]:
    """A tokenizer and a model in float64, by transformers alone."""
    import transformers

    model = getattr(transformers, kind).from_pretrained(folder).double()
    return transformers.AutoTokenizer.from_pretrained(folder), model


def _vectors(folder: Path, text: str, layer: int) -> NDArray[np.float64]:
    """Of every token, special ones first and last, with length 1."""
    import torch

    tokenizer, model = _loaded(folder, "AutoModel")
    inputs = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs, output_hidden_states=True).hidden_states[layer]
    values: NDArray[np.float64] = hidden[0].numpy()
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _f1(folder: Path, output: str, reference: str, layer: int) -> float:
    ours, theirs = _vectors(folder, output, layer), _vectors(folder, reference, layer)
    alike = ours @ theirs.T
    precision, recall = alike[1:-1].max(axis=1).mean(), alike[:, 1:-1].max(axis=0).mean()
    return float(2 * precision * recall / (precision + recall))


@pytest.mark.parametrize("layer", [1, 4, None])
def test_bertscore_is_greedy_matching_by_hand(plain: Path, layer: int | None) -> None:
    """Each token with its most similar one, by cosine, in float64; special tokens count nothing."""
    found, split = bertscore.scores(plain, OUTPUTS, [one[:1] for one in REFERENCES], layer)
    for output, (reference, *_), value in zip(OUTPUTS, REFERENCES, found, strict=True):
        by_hand = _f1(plain, output, reference, layer or 3) if output else 0.0
        assert value == pytest.approx(by_hand, abs=CLOSE)
    assert split == 0
    assert len({round(value, 4) for value in found}) == len(found)


def test_several_references_count_as_the_recipe_says(plain: Path) -> None:
    """The best, the mean, or the first."""
    each = [_f1(plain, OUTPUTS[0], reference, 3) for reference in REFERENCES[0]]
    expected: dict[Literal["best", "mean", "first"], float] = {
        "best": max(each),
        "mean": sum(each) / 2,
        "first": each[0],
    }
    for several, by_hand in expected.items():
        [value], _ = bertscore.scores(plain, OUTPUTS[:1], REFERENCES[:1], several=several)
        assert value == pytest.approx(by_hand, abs=CLOSE), several


def test_a_text_is_itself(plain: Path) -> None:
    """BERTScore of a text with itself is 1, also of one that is read in parts."""
    texts = ["Anna has tea.", "the old map " * 70]
    found, split = bertscore.scores(plain, texts, [(text,) for text in texts])
    assert found == pytest.approx([1.0, 1.0], abs=1e-12)
    assert max(found) <= 1
    assert split == 1


def _entailed(folder: Path, premise: str, hypothesis: str) -> float:
    import torch

    tokenizer, model = _loaded(folder, "AutoModelForSequenceClassification")
    inputs = tokenizer(premise, hypothesis, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0].numpy()
    return float(np.exp(logits[1]) / np.exp(logits).sum())


def test_nli_is_summac_zs_by_hand(classifier: Path) -> None:
    """The mean over the output's sentences of the most that a sentence of the document entails each."""
    found, split = nli.scores(classifier, [DOCUMENT] * len(OUTPUTS), OUTPUTS)
    premises = [
        *("Anna has an old map.", "Ben has a new bike."),
        "She works in the office, he has tea?",
    ]
    sentences = [["Ben has a bike.", "Anna works."], ["anna has tea"], [], ["Zoe: red, red, red."]]
    for hypotheses, value in zip(sentences, found, strict=True):
        best = [max(_entailed(classifier, p, h) for p in premises) for h in hypotheses]
        assert value == pytest.approx(np.mean(best) if best else 0.0, abs=CLOSE)
    assert split == 0
    assert len({round(value, 4) for value in found}) == len(found)


@pytest.mark.parametrize("text", ["the old map has tea, " * 20, "bike" * 24, "a" * 99])
def test_a_long_sentence_is_split_and_nothing_of_it_is_lost(classifier: Path, text: str) -> None:
    """Its pieces are the text, fit the model, and are read one by one; those of documents are counted."""
    model = metric_model.load(classifier, "AutoModelForSequenceClassification")
    most = model.room(pair=True) // 2
    pieces = model.pieces(text, most)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert 1 < len(pieces) < 2 * max(model.counts([text])[0] / most, 1) + 2
    assert max(model.counts(pieces)) <= most
    found, split = nli.scores(classifier, [text, "Anna has tea."], ["Ben has a bike.", text])
    assert split == 1  # of the documents; outputs are not counted, since logs tell nothing of them
    best = max(_entailed(classifier, piece, "Ben has a bike.") for piece in pieces)
    each = [_entailed(classifier, "Anna has tea.", piece) for piece in pieces]
    assert found == pytest.approx([best, np.mean(each)], abs=CLOSE)


def test_the_end_of_a_long_text_counts(plain: Path) -> None:
    """BERTScore's library would cut it off."""
    long, other = "the old map " * 70 + "has tea", "the old map " * 70 + "works, red bike"
    found, split = bertscore.scores(plain, [long, other], [(long,), (long,)])
    assert found[1] < found[0] - 1e-4
    assert split == 1  # the reference; outputs are not counted, since logs tell nothing of them
    assert bertscore.scores(plain, [long], [("Anna has tea.",)])[1] == 0


def test_positions_of_roberta_begin_after_padding(tmp_path: Path) -> None:
    """Of 34 positions 33 hold tokens, as padding's number is 0; a text of more is split, not refused."""
    folder = encoder(tmp_path / "roberta", positions=34, kind="Roberta")
    assert metric_model.load(folder, "AutoModel", may_lack="pooler").limit == 33
    [value], split = bertscore.scores(folder, ["map " * 100], [("map " * 100,)])
    assert value == pytest.approx(1)
    assert split == 1


def test_memory_is_bounded_by_batches_of_tokens() -> None:
    """A batch holds so many tokens with padding at most, and one text at least; none is left out."""
    lengths = [5, 3000, 9000, 1, 40, 40, 4000]
    found = list(metric_model.batches(lengths, 4096))
    assert sorted(i for batch in found for i in batch) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 4096 for b in found)


@pytest.mark.parametrize("name", ["nli", "bertscore"])
def test_the_table_gets_a_column(name: str, classifier: Path, plain: Path, tmp_path: Path) -> None:
    """Every other column stays, and a second metric is added to the first."""
    rows = score_texts(tiny.make_rows(3), [Output(f"{n}. Yes.", True, 5, 3, 0) for n in range(3)])
    write_table(tmp_path / "a.json", rows)
    folder = classifier if name == "nli" else plain
    table, target = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert 0 <= write(table, target, name, str(folder))["mean"] <= 1
    added = read_table(tmp_path / "b.json")
    assert [{k: v for k, v in r.scores.items() if k != name} for r in added] == [
        row.scores for row in rows
    ]
    assert all(0 <= row.scores[name] <= 1 for row in added)
    assert [row.text for row in added] == [row.text for row in rows]


@pytest.mark.full
def test_the_task_stores_a_table_and_uses_it_again(
    classifier: Path, tmp_path: Path, home_with_store: Path
) -> None:
    """Out of sight under sealed feedback; found again by the digests of folder and table."""
    connection.connect()
    recipe = tiny.make_recipe(tmp_path, gate={"nli_model": str(classifier)})
    rows = score_texts(tiny.make_rows(3), [Output(f"{n}. Yes.", True, 5, 3, 0) for n in range(3)])
    write_table(tmp_path / "challenger.json", rows)
    with disable_run_logger():
        with mlflow_run.run_for("m", "earlier", {}) as run:
            uri = run.log_file(tmp_path / "challenger.json", "sealed/predictions")
            scores = replace(
                scores_of(rows, "model", "seal", uri),
                table_digest=digest.of_file(tmp_path / "challenger.json"),
            )
            added = add_metric.fn(scores, recipe, "challenger", "nli", classifier)
            logged = run.client.get_run(run.id).data
        assert added.uri == f"runs:/{run.id}/sealed/predictions/challenger-nli.json"
        assert added.metric_models["nli"].digest == metric_model.folder_digest(classifier)
        assert added.evaluation_digest == "seal"
        table = read_table(artifacts.fetch(added.uri))
        assert [row.scores.keys() - {"nli"} for row in table] == [r.scores.keys() for r in rows]
        assert not [name for name in logged.metrics if name.endswith("/nli")]
        assert step_cache.results(logged.tags, "evaluate", Scores) == [added]
        with mlflow_run.run_for("m", "today", {}) as run:
            assert add_metric.fn(scores, recipe, "challenger", "nli", classifier) == added
            assert run.skipped == ["nli.challenger"]
    assert add_model_metrics(scores, tiny.make_recipe(tmp_path), "challenger") is scores
    mlflow.set_tracking_uri(None)


def test_a_folder_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    """By the flow's first line, and by `precis check`; both models at once."""
    gate = {"nli_model": str(tmp_path / "a"), "bertscore_model": str(tmp_path / "b")}
    recipe = tiny.make_recipe(tmp_path, gate=gate)
    assert len(preflight(recipe)) == 2
    with pytest.raises(EvaluationError, match=r"(?s)gate\.nli_model .*gate\.bertscore_model "):
        require_metric_models(recipe)


def _relabelled(folder: Path, labels: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"id2label": labels}))


def _set(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {name: value}))

    return change


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def _broken(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"no safetensors")


def _without_tokenizer(folder: Path) -> None:
    for path in (*folder.glob("tok*"), folder / "vocab.txt"):
        path.unlink()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (shutil.rmtree, "is no folder on this machine"),
        (lambda f: _relabelled(f, {"0": "yes", "1": "no", "2": "so"}), "'yes', 'no', 'so'"),
        (lambda f: _relabelled(f, None), r"none of its labels says entailment \(none\)"),
        (lambda f: _relabelled(f, {"0": "entail", "1": "supports"}), "more than one of its labels"),
        (lambda f: _relabelled(f, {"0": "not_entailment", "1": "x"}), "'not_entailment', 'x'"),
        (_set("auto_map", {"AutoModel": "m.M"}), "needs code of its own"),
        (_pickled, "safetensors"),
        (_broken, "safetensors"),
        (lambda f: (f / "config.json").unlink(), r"config\.json"),
        (lambda f: (f / "config.json").write_text("["), r"config\.json"),
        (_without_tokenizer, "has no tokenizer"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_before_the_run(
    change: Callable[[Path], object], told: str, classifier: Path, tmp_path: Path
) -> None:
    """What is wrong, where, and the fix; nothing is loaded for it."""
    folder = tmp_path / "model"
    shutil.copytree(classifier, folder)
    assert problems(Gate(nli_model=str(folder))) == []
    change(folder)
    [problem] = problems(Gate(nli_model=str(folder)))
    assert re.search(told, problem)
    assert str(folder) in problem
    assert "base.model" not in problem


@pytest.mark.parametrize(
    ("change", "layer", "told"),
    [
        (lambda _: None, 5, "bertscore_layer is 5, and .* has 4 layers"),
        (_set("is_encoder_decoder", True), None, "choose an encoder alone"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_told_before_the_run(
    change: Callable[[Path], None], layer: int | None, told: str, plain: Path, tmp_path: Path
) -> None:
    """A layer that it has not, and a decoder."""
    shutil.copytree(plain, tmp_path / "model")
    change(tmp_path / "model")
    [problem] = problems(Gate(bertscore_model=str(tmp_path / "model"), bertscore_layer=layer))
    assert re.search(told, problem)


def test_a_head_that_would_be_random_is_refused(plain: Path) -> None:
    """An encoder without a classifier's weights, which transformers would draw; nothing is scored."""
    with pytest.raises(EvaluationError, match=r"has no weights for classifier\.bias"):
        nli.scores(plain, ["a"], ["b"])


def test_weights_that_are_no_numbers_are_refused(plain: Path, tmp_path: Path) -> None:
    """NaN would make every score NaN."""
    import torch
    from transformers import AutoModel

    shutil.copytree(plain, tmp_path / "model")
    model = AutoModel.from_pretrained(plain)
    model.encoder.layer[0].output.dense.bias.data[0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(EvaluationError, match="not finite"):
        bertscore.scores(tmp_path / "model", ["a"], [("b",)])
