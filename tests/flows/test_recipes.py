"""Reading recipes: overrides, and errors that name every problem and how to fix it.

Over 250 lines: what is refused is one list.
"""

from __future__ import annotations

import os
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest

from flows import recipes
from tasks.contracts.errors import RecipeError
from tasks.contracts.recipe import Recipe

ROOT = Path(__file__).parents[2]
SMALL = "name: a\ndata: {train: t.jsonl}\nbase: {model: b}\n"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(SMALL)
    return path


def test_a_recipe_holds_only_what_differs(small: Path) -> None:
    """Everything not named has a default."""
    recipe = recipes.load(small)
    assert recipe == Recipe.model_validate(
        {"name": "a", "data": {"train": "t.jsonl"}, "base": {"model": "b"}}
    )


def test_set_takes_any_dotted_key_and_yaml_values(small: Path) -> None:
    """Numbers, lists and strings arrive as what they are, 1e-3 included."""
    recipe = recipes.load(
        small,
        [
            "training.learning_rate=1e-3",
            "adapter.target_modules=[q_proj, v_proj]",
            "gate.metric=rouge1",
        ],
    )
    assert recipe.training.learning_rate == 1e-3
    assert recipe.adapter.target_modules == ("q_proj", "v_proj")
    assert recipe.gate.metric == "rouge1"


def test_every_problem_is_told_at_once_with_the_nearest_key(small: Path) -> None:
    """A misspelt key, a negative epoch count and a foreign key, in one error."""
    small.write_text(SMALL + "training: {num_epochs: 2, num_train_epochs: -1}\nlearning_rate: 3\n")
    with pytest.raises(RecipeError) as raised:
        recipes.load(small, ["gate.alfa=0.1"])
    text = str(raised.value)
    assert "training.num_epochs: unknown key; did you mean num_train_epochs?" in text
    assert "training.num_train_epochs: Input should be greater than 0 (it is -1)" in text
    assert "learning_rate: unknown key; did you mean training.learning_rate?" in text
    assert "gate.alfa: unknown key; did you mean alpha?" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("name: a\nbase: {model: b}", "data: is required"),
        (SMALL + "prompt: {template: no document}", "exactly once"),
        (SMALL + "gate: {metric: bleu}", "gate.metric"),
        (SMALL + "prompt: {summarize: map_reduce, truncate: error}", "choose tail, head or middle"),
        (SMALL + "gate: {length_ratio: [2, 0.5]}", "length_ratio"),
        (SMALL + "training: {learning_rate: .inf}", "finite"),
        (SMALL + "training: {optim: adamx}", "training.optim"),
        (SMALL + "training: {max_steps: 0}", "trains nothing"),
        (SMALL + "adapter: {kind: vera}", "adapter.kind: .*'lora', 'dora' or 'rslora'"),
        (
            "name: a\ndata: {train: t}\nbase: {model: b, quantization: int4}",
            "'nf4', 'fp4', 'int8' or",
        ),
        (SMALL + "training: 5", "training: must be a group of settings"),
        (SMALL + "adapter: {r: x}", "adapter.r: must be a whole number .it is 'x'"),
        (SMALL + "evaluation: {devices: 0.5}", "evaluation.devices: must be a whole number"),
        (
            SMALL + "evaluation: {cluster: spark}",
            "evaluation.cluster: write dask or ray for a cluster",
        ),
        (
            SMALL + "evaluation: {cluster: dask:host}",
            "as in dask:tcp:..host:8786 .*it is .dask:host",
        ),
        (SMALL + "evaluation: {cluster: ray:tcp://h:1}", "evaluation.cluster: write dask or ray"),
        (SMALL + "training: {lr: 1}", "training.lr: .*did you mean training.learning_rate"),
        (SMALL + "adapter: {lora_r: 1}", "adapter.lora_r: .*did you mean adapter.r"),
        (SMALL + "register: {as: lora}", "register.as: .*'merged' or 'adapter'"),
        (SMALL + "register: {ass: adapter}", "register.ass: .*did you mean as[?]"),
        (
            SMALL + "adapter: {kind: dora}\nregister: {as: adapter}",
            "none of them adds adapter.kind",
        ),
        (SMALL + "? [a, b]\n: 3", "not valid YAML"),
        (SMALL + "adapter: {target_modules: []}", "adapter.target_modules.*at least 1"),
        (
            "name: x\ndata: {train: t}\nbase: {model: m, rope: ntk}\n",
            "base: rope is ntk, but context_tokens is not set: set it to",
        ),
        (
            "name: x\ndata: {train: t}\nbase: {model: m, rope: alibi}\n",
            "base.rope: .*'ntk', 'linear'",
        ),
    ],
)
def test_an_invalid_recipe_says_what_and_where(small: Path, text: str, message: str) -> None:
    """Broken YAML, a list, a missing part, a prompt without its document, an unknown metric."""
    small.write_text(text)
    with pytest.raises(RecipeError, match=message):
        recipes.load(small)


def test_keys_given_twice_are_refused_all_at_once(small: Path) -> None:
    """YAML readers keep the last one silently: half of a group would be gone."""
    small.write_text(
        "name: a\nbase: {model: b, model: c}\ndata:\n  train: t\n"
        "gate: {alpha: 0.1}\nname: d\ndata: {train: u}\n"
    )
    with pytest.raises(RecipeError) as raised:
        recipes.load(small)
    problems = [line.removeprefix(f"{small}: ") for line in str(raised.value).splitlines()]
    assert problems == [
        "line 6: name is given again (first in line 1); keep one",
        "line 7: data is given again (first in line 3); keep one",
        "line 2: model is given again (first in line 2); keep one",
    ]


def test_the_same_key_in_two_groups_is_no_repetition(small: Path) -> None:
    """`model` of the base and of nothing else; merged keys (<<) are YAML's own way to override."""
    small.write_text("name: a\ndata: {train: t}\nbase: {<<: {model: b, revision: r}, model: c}\n")
    assert recipes.load(small).base.model == "c"


NO_RECIPES = {
    "an alias bomb": (
        "a: &a [x, x]\n"
        + "".join(f"{c}: &{c} [{', '.join([f'*{b}'] * 9)}]\n" for b, c in pairwise("abcdefghijkl")),
        r"line 5: with its aliases written out it has more than 10,000 values",
    ),
    "a bomb of merged keys": (
        "a: &a {k: 1}\n"
        + "".join(
            f"{c}: &{c} {{<<: [{', '.join([f'*{b}'] * 9)}]}}\n" for b, c in pairwise("abcdefghijkl")
        ),
        r"more than 10,000 values",
    ),
    "an alias of itself": ("name: &a [*a]\n", r"line 1: an alias stands within what it names"),
    "nested without end": ("name: " + "[" * 4000 + "]" * 4000, r"nested too deeply"),
    "300 kB": ("name: " + "x" * 300_000, r"has 300,006 bytes, and a recipe at most 262,144"),
    "a null character": ('name: "a\\0b"\n', r"line 1: null characters"),
    "half a character": ('name: "\\ud800"\n', r"line 1: null characters or half characters"),
    "latin-1": ("name: caf\xe9\n".encode("latin-1"), r"it is not UTF-8 \(byte 9\); save it as"),
    "a thirteenth month": ("name: 2020-13-45\n", r"timestamp cannot be read from this .* line 1"),
    "a number of 5,000 digits": (f"name: {'9' * 5000}\n", r"int cannot be read from this"),
    "another in hexadecimal": (f"name: 0x{'f' * 5000}\n", r"it is a number of thousands of digits"),
    "a bool that is none": ("name: !!bool x\n", r"bool cannot be read from this"),
    "base 60": ("training: {seed: 190:20:30}\n", r"190:20:30 is a number of another base in YAML"),
    "octal": ("training: {seed: 010}\n", r"line 1: 010 is a number of another base"),
    "code": ("name: !!python/object/apply:os.system [x]\n", r"could not determine a constructor"),
    "two documents": ("name: a\n---\nname: b\n", r"expected a single document"),
    "a list": ("- name\n", r"a recipe is a mapping of settings"),
}


@pytest.mark.parametrize("name", NO_RECIPES)
def test_what_is_no_recipe_is_refused_at_once(name: str, tmp_path: Path) -> None:
    """Within limits of size, depth and expansion, by line where there is one."""
    content, message = NO_RECIPES[name]
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.process_time()
    with pytest.raises(RecipeError, match=message) as caught:
        recipes.load(path)
    assert time.process_time() - started < 5
    assert len(str(caught.value)) < 1000


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """A pipe would be waited for, and /dev/zero has no end."""
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "is a pipe, not a recipe; name a YAML file"),
        (Path("/dev/zero"), "is a device"),
        (tmp_path, "is a folder"),
        (tmp_path / ("x" * 5000), "characters): cannot be read: File name too long"),
        (tmp_path / "a\0b", "is no path (embedded null"),
    ):
        with pytest.raises(RecipeError, match=re.escape(what)) as caught:
            recipes.load(path)
        assert len(str(caught.value)) < 400


def test_an_override_is_read_within_the_same_limits(small: Path) -> None:
    """What is no YAML stays text; a bomb is such text."""
    bomb = "[&a [x, x], " + "".join(f"&{c} [{f'*{b}, ' * 99}], " for b, c in pairwise("abcd")) + "]"
    assert recipes.load(small, [f"data.train={bomb}"]).data.train == bomb


def test_a_missing_recipe_says_where_it_looked(tmp_path: Path) -> None:
    """The folder is named: relative paths are the usual mistake."""
    with pytest.raises(RecipeError, match="no such recipe"):
        recipes.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("key", ["training", "=3", "name.first=3"])
def test_a_malformed_set_is_explained(small: Path, key: str) -> None:
    """No equals sign, no key, a key below a value."""
    with pytest.raises(RecipeError, match="--set"):
        recipes.load(small, [key])


def test_every_field_has_a_title_for_the_form() -> None:
    """The Prefect UI shows titles and descriptions; none may be missing."""
    schema = Recipe.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    assert not [
        name
        for group in groups
        for name, field in group.get("properties", {}).items()  # none: a plain JSON value
        if not field.get("title") and "$ref" not in field  # a group has its own
    ]


def test_every_description_is_shown_whole_in_the_form() -> None:
    """The Prefect UI shows descriptions as Markdown: HTML marks in one would be left out unseen."""
    schema = Recipe.model_json_schema()
    groups = [schema, *schema["$defs"].values()]
    fields = [field for group in groups for field in group.get("properties", {}).items()]
    assert not [name for name, field in fields if set("<>`*") & set(field.get("description", ""))]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "deployments/recipes").glob("*.yaml")), ids=lambda p: p.name
)
def test_the_shipped_recipes_are_valid_and_say_nothing_twice(path: Path) -> None:
    """A recipe file repeats no default."""
    import yaml

    recipe = recipes.load(path)
    differs = recipe.model_dump(mode="json", exclude_defaults=True)
    written = yaml.safe_load(path.read_text())
    assert {g: set(v) if isinstance(v, dict) else v for g, v in written.items()} == {
        g: set(v) if isinstance(v, dict) else v for g, v in differs.items()
    }
