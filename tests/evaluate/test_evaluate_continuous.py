"""Continuous decoding writes what `generate` writes of each document alone, or leaves it to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import shapes
import tiny
import torch

from tasks.models import find_base, package
from tasks.models.package_code import load_code
from tasks.processes import step_process
from tasks.serving.summarizer import (
    CONTINUOUS_MODEL_TYPES,
    Generator,
    SummarizerSettings,
    Summary,
    cache,
    encode,
)

SETTINGS = SummarizerSettings(
    "Summarize:\n{document}\nSummary: ", 200, "tail", 24, 3, decoding="continuous"
)
LONG = "\n".join(row.document for row in tiny.make_rows(4, seed=3))
# Of very different lengths, and more than there are slots.
DOCUMENTS = [LONG, "x", *(row.document for row in tiny.make_rows(6)), LONG[200:420], ""]
# Windows are another matter: see test_what_is_not_known_is_left_to_generate.
WHOLE: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False, "layer_types": ["full_attention"] * 2},
    "qwen3": {},
    "phi": {},
    "phi3": {"sliding_window": None},
}


pytestmark = pytest.mark.usefixtures("one_thread")


def packaged(base: Path, folder: Path, settings: SummarizerSettings = SETTINGS) -> Path:
    return tiny.packaged(base, folder, settings)


def unbatched(generator: Generator, documents: list[str]) -> list[Summary]:
    """By transformers' generate, one at a time."""
    kept = generator.settings
    generator.settings = replace(kept, decoding="generate", batch_size=1)
    found = generator.summarize(documents)
    generator.settings = kept
    return [replace(summary, batch=0) for summary in found]


def continuously(generator: Generator, documents: list[str] = DOCUMENTS) -> list[Summary]:
    assert generator.decoder() is not None, generator.refusal
    return [replace(summary, batch=0) for summary in generator.summarize(documents)]


@pytest.mark.parametrize("model_type", shapes.each(WHOLE, ("llama", "phi", "qwen2")))
def test_every_token_is_that_of_unbatched_generate(model_type: str, tmp_path: Path) -> None:
    """For each shape, with slots that are taken over and prompts from 10 to 200 tokens."""
    base = shapes.make_base(tmp_path / "base", model_type, **WHOLE[model_type])
    generator = Generator(packaged(base, tmp_path / "package"), "cpu")
    found = continuously(generator)
    assert found == unbatched(generator, DOCUMENTS)
    assert len({summary.text for summary in found}) > 3
    assert generator.model.config._attn_implementation == "sdpa"


def test_the_types_that_are_known_are_those_tested() -> None:
    assert set(WHOLE) == CONTINUOUS_MODEL_TYPES


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads in groups."""
    return shapes.make_base(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def generator(llama: Path, tmp_path: Path) -> Generator:
    return Generator(packaged(llama, tmp_path / "package"), "cpu")


def test_steps_of_one_shape_write_the_same(generator: Generator) -> None:
    """As on a GPU: packed steps filled up, slots that have ended kept along, a look every few tokens."""
    steps = generator.decoder().steps
    steps.static, steps.prefill_tokens = True, 256
    assert continuously(generator) == unbatched(generator, DOCUMENTS)
    shape = steps.inputs["ids"].shape
    assert continuously(generator, ["y", LONG]) == unbatched(generator, ["y", LONG])
    assert steps.inputs["ids"].shape == shape == (256,)


def test_stop_strings_end_a_summary(generator: Generator) -> None:
    """After the very token that generate stops at."""
    known = unbatched(generator, DOCUMENTS)[0].text
    stop = known[6:9]
    generator.settings = replace(SETTINGS, stop=(stop, "never written"))
    found = continuously(generator)
    assert found == unbatched(generator, DOCUMENTS)
    assert found[0].text == known[: known.index(stop)].strip()
    assert found[0].finished
    assert found[0].output_tokens < SETTINGS.max_new_tokens


def test_any_of_several_end_tokens_ends_a_summary(generator: Generator) -> None:
    """One of them comes first and leaves it empty; others are written up to the token limit."""
    prompts = [encode(generator.tokenizer, text, SETTINGS) for text in DOCUMENTS]
    ids = dict(generator.decoder().write(prompts))
    generator.end_ids = [2, ids[1][0], ids[2][5]]
    generator._decoder = None
    found = continuously(generator)
    assert found == unbatched(generator, DOCUMENTS)
    assert (found[1].text, found[1].output_tokens, found[1].finished) == ("", 0, True)
    assert {summary.finished for summary in found} == {True, False}


def test_parts_of_long_documents_are_written_too(generator: Generator) -> None:
    """map_reduce gives the same either way."""
    generator.settings = replace(SETTINGS, summarize="map_reduce", max_source_tokens=60)
    found = continuously(generator)
    generator.settings = replace(generator.settings, decoding="generate")
    assert found == [replace(summary, batch=0) for summary in generator.summarize(DOCUMENTS)]
    assert max(summary.parts for summary in found) > 1


@pytest.mark.parametrize("rope", ["ntk", "linear", "yarn", "dynamic"])
def test_scaled_positions(rope: Any, llama: Path, tmp_path: Path) -> None:
    """Angles that depend on the position alone are kept to; dynamic ones are left to generate."""
    recipe = tiny.make_recipe(
        llama, base={"context_tokens": 1024, "rope": rope}, training={"max_length": 1024}
    )
    made = package.package_base(find_base.find_base(recipe), SETTINGS, tmp_path / "package")
    generator = Generator(Path(made.path), "cpu")
    if rope == "dynamic":
        assert generator.decoder() is None
        assert "dynamic" in str(generator.refusal)
        return
    assert continuously(generator, DOCUMENTS[:3]) == unbatched(generator, DOCUMENTS[:3])


@pytest.mark.parametrize(
    ("model_type", "why"),
    [("gemma2", "gemma2"), ("mistral", "window"), ("qwen2", "window"), ("gemma", "not tried")],
)
def test_what_is_not_known_is_left_to_generate(model_type: str, why: str, tmp_path: Path) -> None:
    """Windows, caps, types that were not tried: summaries come from generate, and the reason is given."""
    base = shapes.make_base(tmp_path / "base", model_type)
    generator = Generator(packaged(base, tmp_path / "package"), "cpu")
    assert generator.decoder() is None
    assert why in str(generator.refusal)
    assert len(generator.summarize(DOCUMENTS[:2])) == 2


def test_a_base_that_penalizes_repetition_is_left_to_generate(generator: Generator) -> None:
    """What generate takes from the base's generation_config is not taken here."""
    generator.model.generation_config.repetition_penalty = 1.3
    assert generator.decoder() is None
    assert "RepetitionPenalty" in str(generator.refusal)


def test_the_package_s_own_decoder_runs(llama: Path, tmp_path: Path) -> None:
    """What is edited in the package, and nowhere else, decides; with generate it is not even imported."""
    made = packaged(llama, tmp_path / "package")
    tiny.edit_package(made, "PREFILL_SHARE = 0.75", "PREFILL_SHARE = 1 / 0")
    with pytest.raises(ZeroDivisionError):
        load_code(made).Generator(made, "cpu").summarize(["x"])
    replace(SETTINGS, decoding="generate").save(made)
    assert load_code(made).Generator(made, "cpu").decoder() is None


def test_auto_is_continuous_where_there_is_a_gpu(llama: Path, tmp_path: Path) -> None:
    """On a CPU generate is as fast; a GPU runs more at once than a batch of generate holds."""
    made = packaged(llama, tmp_path / "package", replace(SETTINGS, decoding="auto"))
    generator = Generator(made, "cpu")
    assert generator.decoder() is None
    assert generator.refusal is None
    expected = unbatched(generator, DOCUMENTS)
    generator.device = "cuda"  # only its name: there is no GPU here
    assert generator.decoder().steps.slots == 256
    assert continuously(generator) == expected


def test_auto_leaves_to_generate_what_memory_has_no_room_for(llama: Path, tmp_path: Path) -> None:
    """Slots, and what packed steps compute, take more than generate does: no run ends for that."""
    made = packaged(llama, tmp_path / "package", replace(SETTINGS, decoding="auto"))
    generator = Generator(made, "cpu")
    expected = unbatched(generator, DOCUMENTS)
    generator.device = "cpu:0"  # not the name by which auto knows a CPU
    generator.decoder().fits = lambda tokens: False
    assert [replace(summary, batch=0) for summary in generator.summarize(DOCUMENTS)] == expected
    assert "no room" in str(generator.refusal)
    assert generator.decoder() is None


def test_room_is_what_memory_leaves_beside_the_work(
    generator: Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt fits with its summary's keys and values, to the token; 2 GiB are the packed steps'."""
    decoder, config = generator.decoder(), generator.model.config
    token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    monkeypatch.setattr(cache, "reachable_bytes", lambda device: (2 << 30) + 100 * token + 7)
    monkeypatch.setattr("torch.cuda.memory_allocated", lambda device: 7)
    decoder.cache.device = torch.device("cuda")  # the arithmetic is a GPU's
    room = 100 - SETTINGS.max_new_tokens
    assert decoder.fits(room)
    assert not decoder.fits(room + 1)


def test_a_call_given_up_leaves_the_decoder_whole(generator: Generator) -> None:
    """Summaries that nobody waits for are forgotten, and the next call is served."""
    plan = {0: [0, 1, 2], 1: [3, 4, 5]}
    left = generator.summarize_batches(DOCUMENTS, plan)
    next(left)
    left.close()  # type: ignore[attr-defined]
    assert continuously(generator, DOCUMENTS[:2]) == unbatched(generator, DOCUMENTS[:2])


@pytest.mark.full
def test_the_served_model_writes_continuously_too(llama: Path, tmp_path: Path) -> None:
    """By MLflow, where this project cannot be imported; its generate, which would fail, is not asked."""
    from tasks.register import log_model

    made = packaged(llama, tmp_path / "package")
    expected = [summary.text for summary in Generator(made, "cpu").summarize(DOCUMENTS[:4])]
    before = "        prompts = [encode("
    tiny.edit_package(made, before, f"        raise OSError\n{before}")
    log_model.lay_out(made, tmp_path / "served")
    call = {"uri": str(tmp_path / "served"), "tracking_uri": str(tmp_path / "mlruns")}
    call |= {"documents": DOCUMENTS[:4]}
    target = "tasks.register.reload_check:predict"
    assert step_process.run(target, call, tmp_path / "child", fresh=True) == expected
