"""Held-out loss: what a plain forward pass with labels says, whatever the batch.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import tiny
from numeric import LOSS

from tasks.contracts.errors import EvaluationError
from tasks.contracts.records import Row
from tasks.evaluate.predict import predict
from tasks.models import tokenizer_digest
from tasks.serving.summarizer import Generator, SummarizerSettings, encode, encode_completion
from tasks.tracking.predictions_table import COLUMNS, read_table

ROWS = [
    replace(row, references=(*row.references, "Yes.", "No, no, no, at the station.")[: i % 3 + 1])
    for i, row in enumerate(tiny.make_rows(7))
]
DOCUMENTS, REFERENCES = [r.document for r in ROWS], [r.references for r in ROWS]
SETTINGS = SummarizerSettings("Summarize:\n{document}\nSummary: ", 60, "tail", 12, 3)


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(base: Path, folder: Path, settings: SummarizerSettings = SETTINGS) -> Path:
    return tiny.packaged(base, folder, settings)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"), context=160)


@pytest.fixture
def model(base: Path, tmp_path: Path) -> Path:
    return packaged(base, tmp_path / "package")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return tiny.write_rows(tmp_path / "rows.jsonl", ROWS)


def plain(generator: Any, document: str, reference: str, shift: int = 0) -> float:
    """transformers' own loss with labels; `shift` moves the mask's beginning."""
    import torch

    prompt = encode(generator.tokenizer, document, generator.settings)
    completion = encode_completion(generator.tokenizer, reference)
    ids = torch.tensor([prompt + completion])
    labels = ids.clone()
    labels[0, : len(prompt) + shift] = -100
    with torch.inference_mode():
        return float(generator.model(input_ids=ids, labels=labels).loss)


def test_it_is_the_mean_over_completion_tokens_of_a_plain_forward_pass(model: Path) -> None:
    """One reference a document, float32. A mask that is one token off gives another number."""
    generator = Generator(model, "cpu")
    found = generator.losses(DOCUMENTS, [r[:1] for r in REFERENCES])
    for document, (reference, *_), one in zip(DOCUMENTS, REFERENCES, found, strict=True):
        assert one.value == pytest.approx(plain(generator, document, reference), rel=LOSS)
        for shift in (-1, 1):
            assert abs(one.value - plain(generator, document, reference, shift)) > 1e-3
        assert one.tokens == len(encode_completion(generator.tokenizer, reference))


def test_the_end_of_text_is_a_token_of_it(model: Path) -> None:
    """A model that cannot end its answer pays for it."""
    generator = Generator(model, "cpu")
    document, reference = DOCUMENTS[0], REFERENCES[0][0]
    completion = encode_completion(generator.tokenizer, reference)
    assert completion[-1] == generator.tokenizer.eos_token_id
    import torch

    prompt = encode(generator.tokenizer, document, generator.settings)
    ids = torch.tensor([prompt + completion[:-1]])
    labels = ids.clone()
    labels[0, : len(prompt)] = -100
    with torch.inference_mode():
        open_ended = float(generator.model(input_ids=ids, labels=labels).loss)
    assert abs(generator.losses([document], [[reference]])[0].value - open_ended) > 1e-3


def test_the_batch_changes_nothing(model: Path) -> None:
    """One by one, three at a time or all at once: prompts and references of many lengths."""
    found = []
    for size in (1, 3, 64):
        generator = Generator(model, "cpu")
        generator.settings = replace(generator.settings, batch_size=size)
        found.append(generator.losses(DOCUMENTS, REFERENCES))
    for one, other, all_at_once in zip(*found, strict=True):
        assert one.value == pytest.approx(other.value, rel=LOSS)
        assert one.value == pytest.approx(all_at_once.value, rel=LOSS)
        assert one.tokens == other.tokens == all_at_once.tokens


def test_an_architecture_that_gives_all_logits_is_read_rightly(model: Path) -> None:
    """Such a model accepts `logits_to_keep` and ignores it."""
    from tasks.evaluate.predict import load_code

    wanted = Generator(model, "cpu").losses(DOCUMENTS, REFERENCES)
    tiny.edit_package(model, "logits_to_keep=positions,", "logits_to_forget=positions,")
    found = load_code(model).Generator(model, "cpu").losses(DOCUMENTS, REFERENCES)
    assert [one.value for one in found] == pytest.approx([one.value for one in wanted], rel=LOSS)


def test_each_reference_of_a_document_counts_the_same(model: Path) -> None:
    """The mean of their means: a long reference weighs no more than a short one."""
    generator = Generator(model, "cpu")
    found = generator.losses(DOCUMENTS, REFERENCES)
    assert {len(r) for r in REFERENCES} == {1, 2, 3}
    for document, references, one in zip(DOCUMENTS, REFERENCES, found, strict=True):
        each = [plain(generator, document, reference) for reference in references]
        assert one.value == pytest.approx(sum(each) / len(each), rel=LOSS)


def test_a_reference_is_never_cut(model: Path) -> None:
    """Where it and its prompt exceed the context together, more of the document goes."""
    generator = Generator(model, "cpu")
    document, word = DOCUMENTS[0], generator.tokenizer("z", add_special_tokens=False)["input_ids"]
    assert len(word) == 1
    served = len(encode(generator.tokenizer, document, generator.settings))
    assert served == 60
    short, fits, over = ("z" * n for n in (5, 160 - served - 1, 160 - served + 9))
    found = generator.losses([document] * 3, [[short], [fits], [over]])
    assert [one.tokens for one in found] == [6, 100, 110]
    assert [one.cut_tokens for one in found] == [0, 0, 10]
    tight = replace(generator.settings, max_source_tokens=50)
    assert len(encode(generator.tokenizer, document, tight)) == 50
    generator.settings = tight
    assert found[2].value == pytest.approx(plain(generator, document, over), rel=LOSS)


def test_a_reference_that_fills_the_context_is_an_error(model: Path) -> None:
    """It leaves no room for the bare prompt: which, how long, and the fix."""
    generator = Generator(model, "cpu")
    with pytest.raises(ValueError, match=r"reference of 151 tokens \('zzz.* a context of 160"):
        generator.losses(DOCUMENTS[:1], [["z" * 150]])


def test_under_map_reduce_it_is_taken_on_the_cut_document(model: Path) -> None:
    """As in training: the loss of a reference needs a prompt that is the same for every model."""
    generator = Generator(model, "cpu")
    direct = generator.losses(DOCUMENTS, REFERENCES)
    generator.settings = replace(generator.settings, summarize="map_reduce")
    assert generator.losses(DOCUMENTS, REFERENCES) == direct


def test_the_table_has_it_only_where_it_is_asked_for(
    model: Path, rows: Path, tmp_path: Path
) -> None:
    """The child's answer has its mean; a ROUGE recipe's evaluation does not even compute it."""
    with_loss, without = tmp_path / "a.json", tmp_path / "b.json"
    answer = predict(str(model), str(rows), str(with_loss), "cpu", loss=True)
    table = read_table(with_loss)
    generator = Generator(model, "cpu")
    wanted = [one.value for one in generator.losses(DOCUMENTS, REFERENCES)]
    assert [p.scores["loss"] for p in table] == wanted
    assert answer["means"]["loss"] == pytest.approx(sum(wanted) / len(wanted))
    assert answer["loss_cut_rows"] == 0
    tiny.edit_package(model, "    def losses(", "    def no_losses(")
    assert "loss" not in predict(str(model), str(rows), str(without), "cpu")["means"]
    assert json.loads(without.read_text())["columns"] == [*COLUMNS, "cut_tokens", "parts"]
    assert [p.scores | {"loss": p.scores["loss"]} for p in table] == [
        p.scores | {"loss": loss} for p, loss in zip(read_table(without), wanted, strict=True)
    ]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        (
            "    loss_definition =",
            "    was_not_there =",
            "made by a version of precis that computes no",
        ),
        ("nats a completion token with", "bits a token with", "computes no such loss"),
        (
            "nats.append(-float(",
            "nats.append(float('inf') * float(",
            "loss of 7 .* not a finite number",
        ),
        ("nats.append(-float(", "nats.append(float('nan') * float(", "such as row 'row-0-0'"),
        (
            "use_cache=False,\n            ).logits",
            "labels='none',\n            ).logits",
            "the loss of rows 1 to 7 failed",
        ),
    ],
)
def test_a_loss_that_cannot_be_taken_stops_the_evaluation(
    model: Path, rows: Path, tmp_path: Path, old: str, new: str, says: str
) -> None:
    """An older package, another definition, a number that is none, a failure: no table is written."""
    tiny.edit_package(model, old, new)
    with pytest.raises(EvaluationError, match=says):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu", loss=True)
    assert not (tmp_path / "table.json").exists()


def test_a_lost_loss_stops_the_evaluation(model: Path, rows: Path, tmp_path: Path) -> None:
    """Fewer losses than rows is a failure, not a shift by one."""
    tiny.edit_package(model, "for several in made\n        ]", "for several in made[1:]\n        ]")
    with pytest.raises(EvaluationError, match="the loss of rows 1 to 7 failed"):
        predict(str(model), str(rows), str(tmp_path / "table.json"), "cpu", loss=True)


def test_on_a_real_model_it_is_lower_for_what_belongs_together(
    shared: Path, tmp_path: Path
) -> None:
    """The next turn of a dialogue is likelier than another dialogue's; each as a plain pass says."""
    with (shared / "data/dialogsum/dev.jsonl").open() as lines:
        dialogues = [json.loads(line)["dialogue"] for line in islice(lines, 6)]
    heads, tails = zip(*(d.rsplit("\n", 1) for d in dialogues), strict=True)
    settings = replace(SETTINGS, template="{document}\n", max_source_tokens=900, batch_size=4)
    generator = Generator(packaged(shared / "models/dialog-7m", tmp_path / "real", settings), "cpu")
    own = generator.losses(heads, [[tail] for tail in tails])
    foreign = generator.losses(heads, [[tail] for tail in (*tails[1:], tails[0])])
    assert sum(one.value for one in own) < sum(one.value for one in foreign)
    for head, tail, one in zip(heads, tails, own, strict=True):
        assert one.value == pytest.approx(plain(generator, head, tail), rel=LOSS)


def test_a_tokenizer_is_known_by_what_it_does(base: Path, tmp_path: Path, shared: Path) -> None:
    """Packages of one base share it, whatever the JSON's layout; other tokens, or another rule, do not."""
    digest = tokenizer_digest.tokenizer_digest
    assert digest(packaged(base, tmp_path / "a")) == digest(base)
    copy = packaged(base, tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        values = json.loads((copy / name).read_text())
        (copy / name).unlink()  # a link to the base's
        (copy / name).write_text(json.dumps(values, indent=7, sort_keys=True))
    assert digest(copy) == digest(base)
    values["eos_token"] = {"content": values["eos_token"], "special": True}
    (copy / "tokenizer_config.json").write_text(json.dumps(values))
    assert digest(copy) == digest(base)
    (copy / "tokenizer_config.json").write_text(json.dumps(values | {"add_bos_token": False}))
    assert digest(copy) != digest(base)
    small, large = (shared / f"models/dialog-{size}" for size in ("7m", "17m"))
    assert digest(small) == digest(large) != digest(base)


def test_rows_of_the_table_keep_their_losses_in_order(model: Path, tmp_path: Path) -> None:
    """Longer prompts are computed first; each row still has its own."""
    reversed_rows: list[Row] = ROWS[::-1]
    for name, some in (("a", ROWS), ("b", reversed_rows)):
        path = tiny.write_rows(tmp_path / f"{name}.jsonl", some)
        predict(str(model), str(path), str(tmp_path / f"{name}.json"), "cpu", loss=True)
    one, other = (
        {p.id: p.scores["loss"] for p in read_table(tmp_path / f"{name}.json")} for name in "ab"
    )
    assert one == pytest.approx(other, rel=LOSS)
