"""README and docs: short, their links and paths lead somewhere, their examples are valid and minimal."""

from __future__ import annotations

import importlib
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import recipes
from tasks.contracts.recipe import Recipe

ROOT = Path(__file__).parents[2]
TRACKED = set(
    subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
)
# docs/log holds working notes as they were written; CHANGELOG names files of its time.
PAGES = sorted(
    ROOT / name
    for name in TRACKED
    if name.endswith(".md") and not name.startswith("docs/log/") and name != "CHANGELOG.md"
)
OUR_FOLDERS = "flows|tasks|deployments|tests|docs"
# A file or folder of ours, as pages name it; what stands for any name (STEP, NAME, *) is no path.
OUR_PATH = re.compile(rf"(?<![\w./-])((?:{OUR_FOLDERS})/[\w./-]*[\w/])(?![\w*<{{-])")
PLACEHOLDER = re.compile(r"(^|[/_.])[A-Z]{3,}([/_.]|$)")


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain_text = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w -]", "", text.lower()).strip().replace(" ", "-") for text in plain_text}


@pytest.mark.parametrize(("name", "most_lines"), [("README.md", 130), ("docs/benchmarks.md", 200)])
def test_a_page_stays_short(name: str, most_lines: int) -> None:
    """A longer page is not read; details go to a page of their own."""
    assert len((ROOT / name).read_text().splitlines()) <= most_lines


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a tracked file or folder, and its anchor a heading there."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken, f"{page_id(page)}: {broken}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_paths_exist(page: Path) -> None:
    """A path of this repository that a page names is there."""
    missing = [path for path in OUR_PATH.findall(page.read_text()) if not _exists(path)]
    assert not missing, f"{page_id(page)}: {missing}"


def _exists(path: str) -> bool:
    if PLACEHOLDER.search(path):
        return True
    return (ROOT / path.rstrip(".")).exists() or (ROOT / path.split("::", maxsplit=1)[0]).exists()


def test_every_page_is_in_the_reading_order() -> None:
    """docs/index.md links to every page of docs/."""
    linked = set(re.findall(r"\]\(([\w-]+\.md)", (ROOT / "docs/index.md").read_text()))
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages - {"index.md"} <= linked


def test_the_deployment_shown_exists() -> None:
    """docs/deployments.md deploys a recipe of this repository, by a flow that is there."""
    page = (ROOT / "docs/deployments.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = yaml.safe_load((ROOT / "deployments/prefect.yaml").read_text())
    (entry,) = yaml.safe_load(block.replace("*pool", "pool"))
    assert set(entry) <= set().union(*file["deployments"])
    recipe = recipes.load(ROOT / entry["build"][0]["deployments.steps.load_recipe"]["path"])
    assert entry["name"] == recipe.name
    module, _, function = entry["entrypoint"].rpartition(".")
    assert hasattr(importlib.import_module(module), function)


def test_the_automations_are_named_as_they_are() -> None:
    """Each automation of docs/deployments.md has a name that deployments/automations.py gives."""
    page = (ROOT / "docs/deployments.md").read_text()
    code = (ROOT / "deployments/automations.py").read_text()
    names = re.findall(r"`(precis: [^`]+)`", page)
    assert names
    for name in names:
        kind = re.split(r" for MODEL| of MODEL| to (?:slack|plain) ", name)[0]
        assert f'"{kind}' in code, name


def recipe_examples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every YAML block of a page that is a recipe or a part of one."""
    groups = set(Recipe.model_fields)
    for page in PAGES:
        for number, block in enumerate(
            re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
        ):
            if "work_pool" in block:  # a part of prefect.yaml
                continue
            for document in yaml.safe_load_all(block):
                if isinstance(document, dict) and set(document) <= groups:
                    yield f"{page_id(page)}-{number}", document


EXAMPLES = dict(recipe_examples())


def test_readme_shows_a_whole_recipe() -> None:
    """The recipe in README is found, so that the tests below look at it."""
    assert EXAMPLES["README.md-0"]["name"] == "meetings"


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_example_is_valid(name: str, tmp_path: Path) -> None:
    """An example is a recipe by itself, or on top of the demo's."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(_over_the_demo(EXAMPLES[name])))
    recipes.load(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_example_names_only_what_a_clone_has(name: str) -> None:
    """No file outside the repository."""
    assert "../" not in yaml.safe_dump(EXAMPLES[name])


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_recipe_example_holds_only_what_differs(name: str) -> None:
    """A default that an example repeats would be stated twice, and go stale."""
    example = EXAMPLES[name]
    repeated = []
    for group, values in example.items():
        model = Recipe.model_fields[group].annotation
        fields = getattr(model, "model_fields", {}) if isinstance(values, dict) else {}
        repeated += [
            f"{group}.{key}"
            for key, value in (values.items() if isinstance(values, dict) else ())
            if key in fields and not fields[key].is_required() and fields[key].default == value
        ]
    assert not repeated


def _over_the_demo(example: dict[str, Any]) -> dict[str, Any]:
    if "data" in example and "base" in example:
        return example
    demo: dict[str, Any] = yaml.safe_load((ROOT / "deployments/recipes/demo.yaml").read_text())
    for group, values in example.items():
        demo[group] = demo.get(group, {}) | values if isinstance(values, dict) else values
    return demo
