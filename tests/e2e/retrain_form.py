"""The form of retrain/demo in a browser: what stands in it, what it says of mistakes, and its submission."""

from __future__ import annotations

import re

from playwright.sync_api import Locator, Page, expect
from pydantic import BaseModel

from flows.recipe_form import ADVANCED, COMMON, GROUPS, as_recipe
from tasks.contracts.recipe import Recipe

# Group and title of a field as the form shows them, its widget for a number first (None: it has one).
CHANGES = [
    ("Data", "Training rows", "int", 300),
    ("Data", "Evaluation rows", "int", 50),
    ("Training", "Sequence length (tokens)", None, 512),
    ("Merge (advanced)", "Least rows in the drift check", None, 4),
    ("Merge (advanced)", "Least tokens in the drift check", None, 100),
]


def open_form(page: Page, prefect: str) -> None:
    """From the list of deployments to the custom run of retrain/demo."""
    page.goto(f"{prefect}/deployments")
    flow = page.get_by_role("link", name="retrain", exact=True)
    row = page.get_by_role("row").filter(has=flow)
    row.get_by_role("link", name="demo", exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.wait_for_url("**/deployments/deployment/*/run*")


def the_form_says_what_the_recipe_says(page: Page) -> None:
    """What people change stands first, in its groups; the rest is under its title, or one line."""
    top = field(page, "Recipe")
    expect(top).to_be_visible()
    described(top, Recipe, ("name",))
    for group, names in COMMON.items():
        described(field(top, title_of(Recipe, group)), GROUPS[group], names)
    for group, model in GROUPS.items():
        place = field(field(top, "Advanced settings"), f"{title_of(Recipe, group)} (advanced)")
        rest = [name for name in model.model_fields if name not in COMMON.get(group, ())]
        if group in (
            "base",
            "prompt",
            "merge",
            "gate",
            "register",
        ):  # the demo's recipe leaves them as they are
            expect(place).to_have_text(re.compile(r"Defaults\s*Settings\s*Property is type"))
        else:
            described(place, model, rest)
    labels = top.locator(".schema-form-property__label").all_text_contents()
    first = labels[: labels.index("Advanced settings (Optional)")]
    assert len(first) == 2 + sum(1 + len(names) for names in COMMON.values())
    expect(field(field(top, "Data"), "Training data")).to_contain_text("A file (JSONL, JSON, CSV")
    expect(field(field(top, "Training"), "Learning rate").get_by_role("spinbutton")).to_have_value(
        "0.002"
    )
    busy = field(page, "If this model is being retrained already")
    expect(busy).to_contain_text("wait: this run follows it.")


def title_of(model: type[BaseModel], name: str) -> str:
    """The title of a setting or a group."""
    fields = {info.alias or own: info for own, info in model.model_fields.items()}
    title = fields[name].title
    assert title, name
    return title


def described(scope: Locator, model: type[BaseModel], names: tuple[str, ...] | list[str]) -> None:
    """Each of these settings is seen in `scope` with its description."""
    for name in names:
        info = model.model_fields[name]
        place = field(scope, title_of(model, name))
        expect(place).to_be_visible()
        if info.description:
            expect(place).to_contain_text(info.description)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            described(place, info.annotation, list(info.annotation.model_fields))


def field(scope: Page | Locator, title: str) -> Locator:
    """The part of the form, a group or a single setting, under this very title."""
    label = "> .p-label__header .schema-form-property__label"
    titles = ", ".join(f'{label}:text-is("{text}")' for text in (title, f"{title} (Optional)"))
    return scope.locator(f".schema-form-property:has({titles})").first


def mistakes_are_named(page: Page) -> None:
    """A required field that is blank and a number out of range at their fields; nothing starts."""
    form = page.url
    data, name = field(field(page, "Data"), "Training data"), field(page, "Registered model")
    rows = field(field(page, "Data"), "Training rows")
    before = box(data).input_value()
    box(data).fill("")
    rows.get_by_role("button", name="int", exact=True).click()
    rows.get_by_role("spinbutton").fill("0")
    page.get_by_role("button", name="Submit").click()
    expect(data).to_contain_text("'train' is a required property")
    expect(rows).to_contain_text("0 is not valid under any of the given schemas")
    box(data).fill(before)
    rows.get_by_role("spinbutton").fill("300")
    box(name).fill("no / name")  # this UI does not know patterns, and the server answers
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'no / name' does not match").first).to_be_visible()
    box(name).fill("demo")
    assert page.url == form


def box(place: Locator) -> Locator:
    """The place where a text or a number is typed."""
    return place.locator("textarea, input").first


def the_newer_form_names_mistakes(page: Page) -> None:
    """Prefect's newer UI, under /v2, shows the same form: its fields, one line for a group, and mistakes."""
    page.goto(re.sub(r"(https?://[^/]+)/", r"\1/v2/", page.url.split("?", maxsplit=1)[0]))
    page.get_by_label("Training data", exact=True).fill("")
    page.get_by_label("Learning rate (Optional)", exact=True).fill("-3")
    expect(page.get_by_label("Documents that do not fit (Optional)")).to_have_count(0)
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text("'train' is a required property", exact=True)).to_be_visible()
    rate = page.get_by_text("-3 is less than or equal to the minimum of 0", exact=True)
    expect(rate).to_be_visible()


def submit(page: Page) -> None:
    """Change settings by their widgets and start the run; all others come back as deployed."""
    merge = field(page, "Merge (advanced)")
    merge.get_by_role("button", name="Settings", exact=True).click()
    for group, title, widget, number in CHANGES:
        place = field(field(page, group), title)
        if widget:
            place.get_by_role("button", name=widget, exact=True).click()
        place.get_by_role("spinbutton").fill(str(number))
    with page.expect_response(lambda answer: "create_flow_run" in answer.url) as found:
        page.get_by_role("button", name="Submit").click()
    answer = found.value
    assert answer.status == 201, answer.text()
    # The deployment's page lists it; the notice with a button to it flies in and out.
    run = f"/runs/flow-run/{answer.json()['id']}"
    page.locator(f"a[href*='{run}']").first.click()
    page.wait_for_url(f"**{run}*")
    sent = answer.json()["parameters"]
    deployed = page.request.get(answer.url.replace("/create_flow_run", "")).json()["parameters"]
    assert deployed["recipe"][ADVANCED]["merge"] is None
    recipe = deployed["recipe"]
    recipe["data"] |= {"train_rows": 300, "evaluation_rows": 50}
    recipe["training"]["max_length"] = 512
    plain = Recipe(**as_recipe(recipe)).model_dump(mode="json")["merge"]
    recipe[ADVANCED]["merge"] = plain | {"drift_rows": 4, "drift_tokens": 100}
    assert sent == deployed  # tuples, lists and Nones among them
