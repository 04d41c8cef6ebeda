"""A base with a longer context: one folder that training, merge, evaluation and serving all read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from tasks.contracts import digest
from tasks.contracts.errors import BaseModelError
from tasks.contracts.recipe import Base, Recipe
from tasks.contracts.records import Row
from tasks.evaluate.predict import load_code
from tasks.merge import merge
from tasks.models import find_base, loading, package, settings
from tasks.models.prepared_base import BaseFolder, PreparedBase, read_config
from tasks.train import qlora

OWN, WANTED = 96, 256
METHODS = ("ntk", "linear", "dynamic", "yarn")


@pytest.fixture(scope="module")
def unscaled_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base that reads 96 tokens, and says so in its tokenizer's settings too."""
    folder = tiny.make_tiny_base(tmp_path_factory.mktemp("base") / "base", context=OWN)
    edit(folder / "tokenizer_config.json", model_max_length=OWN)
    return folder


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def recipe(
    unscaled_base: Path, /, tokens: int | None = WANTED, rope: str | None = "ntk", **parts: Any
) -> Recipe:
    return tiny.make_recipe(
        unscaled_base,
        base={"context_tokens": tokens, "rope": rope, "quantization": "none"},
        training={"max_length": WANTED, "max_steps": 2, "learning_rate": 2e-2},
        **parts,
    )


def prepared(chosen: Recipe) -> PreparedBase:
    return find_base.find_base(chosen)


def config(folder: Path | str) -> dict[str, Any]:
    return read_config(Path(folder))


def test_a_scaled_base_is_links_and_a_config_of_its_own(home: Path, unscaled_base: Path) -> None:
    """No weights are copied; the base is untouched; a second look finds the same folder and digest."""
    before = digest.of_folder(unscaled_base)
    ref = prepared(recipe(unscaled_base))
    folder = ref.path
    assert folder.parent == home / "mlruns/work/scaled"
    own = {path.name for path in folder.iterdir() if not path.is_symlink()}
    assert own == {"config.json", "tokenizer_config.json"}
    assert {path.name for path in folder.iterdir()} == {
        path.name for path in unscaled_base.iterdir()
    }
    assert config(folder)["max_position_embeddings"] == WANTED
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == WANTED
    (folder / "left-over.json").write_text("{}")
    assert prepared(recipe(unscaled_base)) == ref
    assert (ref.digest, digest.of_folder(unscaled_base)) == (digest.of_folder(folder), before)


def test_every_context_and_method_is_another_base(home: Path, unscaled_base: Path) -> None:
    """Digests, and so the keys of training, merge and evaluation, differ; unset, all is as it was."""
    refs = [
        prepared(recipe(unscaled_base, tokens, rope))
        for tokens in (200, WANTED)
        for rope in METHODS
    ]
    untouched = prepared(recipe(unscaled_base, None, None))
    assert (untouched.path, untouched.digest) == (unscaled_base, digest.of_folder(unscaled_base))
    assert len({ref.digest for ref in [*refs, untouched]}) == 9
    served = refs[-4].settings
    bases = [
        package.package_base(ref, served, home / "packages" / str(n))
        for n, ref in enumerate([*refs, untouched])
    ]
    assert len({model.digest for model in bases}) == 9
    for model, ref in zip(bases, [*refs, untouched], strict=True):
        assert not (Path(model.path) / "config.json").is_symlink()
        assert (Path(model.path) / "model.safetensors").is_symlink()
        assert config(model.path) == config(ref.path)


def test_a_limit_without_scaling_is_another_job_too(
    home: Path, unscaled_base: Path, tmp_path: Path
) -> None:
    """Completions are cut at it, even where the prompt's own limit leaves the settings equal."""
    rows = tiny.write_rows(tmp_path / "rows.jsonl", tiny.make_rows(4))
    short = {"prompt": {"max_source_tokens": 40}, "evaluation": {"max_new_tokens": 8}}
    limited, free = (recipe(unscaled_base, tokens, None, **short) for tokens in (60, None))
    bases = prepared(limited), prepared(free)
    assert bases[0].settings == bases[1].settings
    assert bases[0].path == unscaled_base
    assert [base.max_row_tokens for base in bases] == [60, OWN]
    jobs = [qlora._job(rows, base, limited) for base in bases]
    assert jobs[0] != jobs[1]
    assert "context_tokens" not in jobs[1], "jobs of recipes without it keep their digest"


def test_a_base_that_was_not_scaled_is_refused(unscaled_base: Path) -> None:
    """The plain folder prepared by mistake: steps would train other positions than the recipe says."""
    with pytest.raises(BaseModelError, match="reads 96 tokens and not the 256 of"):
        tiny.prepared(unscaled_base, recipe(unscaled_base))


def test_scaling_that_no_row_would_use_is_refused(home: Path, unscaled_base: Path) -> None:
    """Rows cut within the own maximum lose by it; one token past it, they may want the reserve."""
    chosen = recipe(unscaled_base)
    folder = BaseFolder.read(prepared(chosen).path)
    for longest, fits in ((OWN, False), (OWN + 1, True)):
        training = chosen.training.model_copy(update={"max_length": longest})
        shorter = chosen.model_copy(update={"training": training})
        if fits:
            assert settings.max_row_tokens(shorter, folder) == longest
        else:
            with pytest.raises(BaseModelError, match="cuts every row within the 96 tokens"):
                settings.max_row_tokens(shorter, folder)


@pytest.mark.parametrize(
    ("tokens", "rope", "message"),
    [
        (300, None, "past the 96 tokens"),
        (96, "ntk", "nothing to scale"),
        (64, "linear", "nothing to scale"),
    ],
)
def test_a_context_that_does_not_fit_the_base(
    home: Path, unscaled_base: Path, tokens: int, rope: str | None, message: str
) -> None:
    """The run and the check say the same."""
    base = Base(model=str(unscaled_base), context_tokens=tokens, rope=rope)
    with pytest.raises(BaseModelError, match=message):
        find_base.locate(base)
    lookup = find_base.look_up(base, home)
    assert len(lookup.problems) == 1
    assert message in lookup.problems[0]
    assert not (home / "mlruns").exists()


@pytest.mark.parametrize("rope", ["ntk", "yarn"])
def test_training_merge_evaluation_and_serving_turn_alike(
    home: Path, unscaled_base: Path, rope: str, tmp_path: Path
) -> None:
    """The trained base, the untuned package and the merged one, each loaded by its own code."""
    chosen = recipe(unscaled_base, rope=rope)
    ref = prepared(chosen)
    rows = tiny.write_rows(tmp_path / "rows.jsonl", long_rows(8))
    values = chosen.model_dump(mode="json")
    made = qlora.train(str(rows), ref.as_json(), values, str(tmp_path / "job"))
    out = merge.merge_and_check(
        ref.as_json(), made["adapter"], str(rows), values, str(tmp_path / "merged")
    )
    assert out["drift"]["kl"] < 1e-3
    untuned = package.package_base(ref, ref.settings, tmp_path / "untuned")
    models = [loading.load_base(ref.path, "none", torch.float32)]
    for folder in (Path(untuned.path), tmp_path / "merged"):
        generator = load_code(folder).Generator(folder, "cpu")
        assert max(len(batch) for batch in generator.batches([rows.read_text()])) == 1
        summary = generator.summarize(["Anna: Yes, yes.\n" * 100])[0]
        assert OWN < summary.prompt_tokens <= WANTED - chosen.evaluation.max_new_tokens
        models.append(generator.model)
    unscaled = loading.load_base(unscaled_base, "none", torch.float32)
    positions = torch.arange(WANTED)[None]
    first, *others = (model.model.rotary_emb(torch.zeros(1), positions) for model in models)
    for other in others:
        assert torch.equal(first[0], other[0])
        assert torch.equal(first[1], other[1])
    assert not torch.allclose(first[0], unscaled.model.rotary_emb(torch.zeros(1), positions)[0])


def long_rows(count: int) -> list[Row]:
    """Dialogues past the own maximum."""
    rows = tiny.make_rows(count)
    return [Row(r.id, r.source, (r.document + "\n") * 4, r.references) for r in rows]


def test_under_dynamic_rope_a_summary_is_of_its_document_alone(
    home: Path, unscaled_base: Path, tmp_path: Path
) -> None:
    """Not of those judged before it, nor of those in its batch: the served model sees one at a time."""
    chosen = recipe(unscaled_base, rope="dynamic", evaluation={"batch_size": 8})
    ref = prepared(chosen)
    assert ref.settings.batch_size == 1
    folder = Path(package.package_base(ref, ref.settings, tmp_path / "package").path)
    documents = [row.document for row in long_rows(4)]
    together = load_code(folder).Generator(folder, "cpu").summarize(documents)
    alone = [
        load_code(folder).Generator(folder, "cpu").summarize([document])[0]
        for document in documents
    ]
    assert {summary.prompt_tokens > OWN for summary in alone} == {True}
    assert len({summary.prompt_tokens for summary in alone}) > 1
    assert [summary.text for summary in together] == [summary.text for summary in alone]
