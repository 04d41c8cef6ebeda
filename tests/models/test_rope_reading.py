"""A scaled base reads on where the plain one is lost, and whole bills fit."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from transformers import AutoTokenizer

from tasks.contracts.recipe import Base, Data, Recipe
from tasks.contracts.records import read_rows
from tasks.ingest.prepare import prepare
from tasks.models import find_base, loading, rope_view
from tasks.models.encoding import encode_for
from tasks.models.prepared_base import read_config

ROOT = Path(__file__).parents[2]
# The demo's base learned from rows of 1,024 tokens; the demo's dialogues, one after the other, are
# long text whose next token hangs on what stands far before it.
LEARNED = 1024


def perplexity(
    rope: str | None, tokens: int, scratch: Path, text: int = 3 * LEARNED
) -> tuple[float, float]:
    """exp(mean loss) of `text` tokens: within the old maximum, and past it. About two seconds."""
    base = ROOT / "deployments/demo/base"
    chosen = Base(model=str(base), context_tokens=tokens, rope=rope)
    folder = rope_view.scaled(base, read_config(base), chosen, scratch)
    model = loading.load_base(folder, "none", torch.float32).eval()
    ids = demo_tokens(text)
    with torch.inference_mode():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1]
        losses = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return math.exp(losses[:LEARNED].mean()), math.exp(losses[LEARNED:].mean())


def demo_tokens(count: int) -> list[int]:
    from tokenizers import Tokenizer

    demo = ROOT / "deployments/demo"
    tokenizer = Tokenizer.from_file(str(demo / "base/tokenizer.json"))
    ids: list[int] = []
    for line in (demo / "data/train.jsonl").read_text().splitlines():
        ids += tokenizer.encode(json.loads(line)["dialogue"]).ids
        if len(ids) >= count:
            break
    return ids[:count]


def test_past_its_maximum_a_scaled_model_reads_on(tmp_path: Path, one_thread: None) -> None:
    """Untuned: perplexity stays near its own where the unscaled model's explodes."""
    own, lost = perplexity(None, LEARNED, tmp_path)
    assert own < 2
    assert lost > 10 * own
    # Untuned, ntk loses the end of its range, hence four times for text of three; linear needs tuning.
    for rope, near in (("ntk", 1.25), ("yarn", 1.25), ("dynamic", 1.5)):
        within, past = perplexity(rope, 4 * LEARNED, tmp_path)
        assert within < near * own, rope
        assert past < near * own, rope
    _, past = perplexity("linear", 2 * LEARNED, tmp_path, text=2 * LEARNED)
    _, unscaled = perplexity(None, LEARNED, tmp_path, text=2 * LEARNED)
    assert past < unscaled / 3


def test_whole_bills_fit_when_the_context_is_set(home: Path, shared: Path) -> None:
    """100 real bills of 5,000 to 14,000 characters over dialog-7m, which reads 2,048 tokens."""
    base = shared / "models/dialog-7m"
    data = Data(
        train=str(shared / "data/billsum/us_train_100.jsonl"),
        evaluation_share=0.2,
        fields={"document": "text", "summary": "summary", "id": "bill_id"},
    )
    reports = {}
    for tokens, rope in ((None, None), (6144, "ntk")):
        chosen = Recipe(
            name="bills",
            data=data,
            base=Base(model=str(base), context_tokens=tokens, rope=rope),
            training={"max_length": 6144},
            evaluation={"max_new_tokens": 768},
        )
        prepared = find_base.find_base(chosen)
        folder = home / str(tokens)
        dataset = prepare(data, chosen.prompt, prepared.settings, prepared.path, folder)
        reports[tokens] = json.loads((folder / "report.json").read_text())
    assert dataset.train_rows + dataset.evaluation_rows > 90
    cut = {
        tokens: sum(report[side]["truncated_prompts"]["count"] for side in ("train", "evaluation"))
        for tokens, report in reports.items()
    }
    assert cut[None] > 0.5 * (dataset.train_rows + dataset.evaluation_rows)
    assert cut[6144] == 0
    assert reports[6144]["train"]["truncated_prompts"]["limit"] == 6144 - 768
    tokenizer = AutoTokenizer.from_pretrained(prepared.path)
    examples = encode_for(read_rows(folder / "train.jsonl"), tokenizer, prepared)
    assert examples.truncated == 0, "prompt and summary together"
    assert max(map(len, examples.input_ids)) > 2048
