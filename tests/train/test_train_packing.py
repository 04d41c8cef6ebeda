"""Rows packed into one sequence do not see each other, and only completions are learned."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numeric
import pytest
import tiny
import torch

from tasks.models import loading, package
from tasks.models.encoding import IGNORED
from tasks.serving.summarizer import Generator, encode, encode_completion
from tasks.train import attention, qlora
from tasks.train.trainer import completion_loss

ROWS = tiny.make_rows(12)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trainer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A real trainer over nf4, as `train` builds it."""
    folder = tmp_path_factory.mktemp("job")
    rows = tiny.write_rows(folder / "rows.jsonl", ROWS)
    return qlora.build_trainer(rows, tiny.prepared(base), tiny.make_recipe(base), folder)[0]


@pytest.fixture(scope="module")
def batch(trainer: Any) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(trainer.get_train_dataloader()))
    return found


def spans(batch: dict[str, Any]) -> list[tuple[int, int]]:
    bounds = batch["cu_seq_lens_q"].tolist()
    return list(itertools.pairwise(bounds))


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in batch.items() if name not in {"labels", "input_ids"}}


def test_prompt_ids_are_those_that_are_served(base: Path, trainer: Any, tmp_path: Path) -> None:
    """Every packed row begins with the ids that the package's Generator makes of its document."""
    settings = tiny.prepared(base).settings
    (tmp_path / "package").mkdir()
    for path in base.iterdir():
        (tmp_path / "package" / path.name).symlink_to(path)
    package.add_summarizer(tmp_path / "package", settings)
    served = Generator(tmp_path / "package")
    expected = {
        tuple(encode(served.tokenizer, row.document, served.settings)): tuple(
            encode_completion(served.tokenizer, row.references[0])
        )
        for row in ROWS
    }
    trained = {}
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        for start, end in spans(batch):
            cut = next(i for i in range(start, end) if labels[i] != IGNORED)
            trained[tuple(ids[start:cut])] = tuple(ids[cut:end])
            assert labels[start:end] == [IGNORED] * (cut - start) + ids[cut:end]
    assert trained == expected
    assert all(prompt[0] == served.tokenizer.bos_token_id for prompt in trained)
    assert all(completion[-1] == served.tokenizer.eos_token_id for completion in trained.values())


def test_packed_rows_do_not_see_each_other_in_their_logits(
    trainer: Any, batch: dict[str, Any]
) -> None:
    """A row's logits in a pack are its logits alone."""
    model = trainer.model.train()
    assert len(spans(batch)) > 2
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], **inputs(batch)).logits[0]
        for start, end in spans(batch):
            ids = batch["input_ids"][:, start:end]
            bounds = torch.tensor([0, end - start], dtype=torch.int32)
            alone = model(input_ids=ids, cu_seq_lens_q=bounds, max_length_q=end - start).logits[0]
            numeric.assert_close(packed[start:end], alone, numeric.MODEL)


def test_packed_rows_do_not_see_each_other_in_their_gradients(
    trainer: Any, batch: dict[str, Any]
) -> None:
    """The loss of one row has no gradient, not even a small one, in another row's inputs."""
    model = trainer.model.train()
    embedded = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    logits = model(inputs_embeds=embedded, **inputs(batch)).logits[0]
    start, end = spans(batch)[1]
    logits[start:end].logsumexp(-1).sum().backward()
    felt = embedded.grad[0].abs().sum(-1) > 0
    assert felt[start:end].all()
    assert not felt[:start].any()
    assert not felt[end:].any()


def test_row_by_row_attention_is_the_masked_attention(base: Path, batch: dict[str, Any]) -> None:
    """The same logits as transformers' own sdpa with its dense mask."""
    with torch.no_grad():  # with a cache, sdpa would not look for packed rows
        ours, theirs = (
            loading.load_base(base, "none", torch.float32, name)(
                input_ids=batch["input_ids"], use_cache=False, **inputs(batch)
            ).logits
            for name in (attention.register(), "sdpa")
        )
    numeric.assert_close(ours, theirs, numeric.MODEL)


def test_a_sliding_window_is_kept() -> None:
    """Models that look back only so far do so within each row."""
    torch.manual_seed(0)
    query = torch.randn(1, 4, 20, 8)
    key, value = torch.randn(2, 1, 2, 20, 8)
    bounds = torch.tensor([0, 12, 20], dtype=torch.int32)
    output, _ = attention.packed_rows(
        None, query, key, value, None, cu_seq_lens_q=bounds, max_length_q=12, sliding_window=3
    )
    row = torch.arange(20) >= 12
    back = torch.arange(20)[:, None] - torch.arange(20)
    mask = (back >= 0) & (back < 3) & (row[:, None] == row)
    exact_query, exact_key, exact_value = (x.double() for x in (query, key, value))
    expected = torch.nn.functional.scaled_dot_product_attention(
        exact_query,
        exact_key.repeat_interleave(2, 1),
        exact_value.repeat_interleave(2, 1),
        attn_mask=mask,
    )
    numeric.assert_close(output, expected.transpose(1, 2), numeric.PRODUCTS)


@pytest.mark.parametrize("num_items", [None, torch.tensor(77)])
def test_the_loss_is_trl_s_and_on_completions_only(
    trainer: Any, batch: dict[str, Any], num_items: Any
) -> None:
    """Our loss equals TRL's; changing a prompt's labels changes neither."""
    model = trainer.model.train()
    ours = completion_loss(model, dict(batch), num_items)
    theirs = super(type(trainer), trainer).compute_loss(
        model, dict(batch), num_items_in_batch=num_items
    )
    numeric.assert_close(ours, theirs, numeric.LOSS)
    count = int((batch["labels"] != IGNORED).sum())
    logits = model(input_ids=batch["input_ids"], **inputs(batch)).logits[0].log_softmax(-1)
    at = (batch["labels"][0] != IGNORED).nonzero()[:, 0]
    by_hand = -logits[at - 1, batch["input_ids"][0, at]].sum() / (num_items or count)
    numeric.assert_close(ours, by_hand, numeric.LOSS)


def test_the_loss_of_a_padded_batch_is_the_same(trainer: Any, batch: dict[str, Any]) -> None:
    """Without packing, rows of several lengths are padded; the loss is as before."""
    width = max(end - start for start, end in spans(batch))
    padded = {name: [] for name in ("input_ids", "labels", "attention_mask")}  # type: ignore[var-annotated]
    for start, end in spans(batch):
        left = width - (end - start)
        padded["input_ids"].append(batch["input_ids"][0, start:end].tolist() + [0] * left)
        padded["labels"].append(batch["labels"][0, start:end].tolist() + [IGNORED] * left)
        padded["attention_mask"].append([1] * (end - start) + [0] * left)
    model = trainer.model.train()
    model.set_attn_implementation("sdpa")
    try:
        loss = completion_loss(model, {name: torch.tensor(v) for name, v in padded.items()})
    finally:
        model.set_attn_implementation(attention.NAME)
    numeric.assert_close(loss, completion_loss(model, dict(batch)), numeric.LOSS)
