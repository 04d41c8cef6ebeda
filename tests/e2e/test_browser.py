"""A person's whole way in a real browser, on a stack that `precis up` itself runs.

Over 250 lines: its tests share their fixtures.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright
from retrain_form import (
    mistakes_are_named,
    open_form,
    submit,
    the_form_says_what_the_recipe_says,
    the_newer_form_names_mistakes,
)
from servers import alive, wait_for
from stack import PRECIS, Stack, free_port

from tasks.contracts.records import DatasetRef
from tasks.report.task import ModelPage, VersionRow, render_model_page
from tasks.tracking.history import HistoryRecord
from tasks.tracking.making import Making

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
VIEW = {"width": 1280, "height": 900}
SHOWS_ALL_ARTIFACTS = {"width": 1280, "height": 1240}
SHOWS_A_PLOT = {"width": 1280, "height": 1460}
PAGE_SECONDS, RUN_SECONDS = 60, 900
FINAL = re.compile("PROMOTE|REJECT|INCONCLUSIVE|BUSY|Completed|Failed|Crashed|Cancelled")


@dataclass(frozen=True)
class Up:
    """A running stack's two addresses."""

    prefect: str
    mlflow: str


def test_a_person_retrains_in_the_browser(tmp_path: Path) -> None:
    """From the form to a champion in MLflow, by clicks and links alone; then nothing is left."""
    with up(Stack(tmp_path)) as stack, browser(tmp_path) as page:
        open_form(page, stack.prefect)
        the_newer_form_names_mistakes(page)
        open_form(page, stack.prefect)
        the_form_says_what_the_recipe_says(page)
        picture(page, "form")
        mistakes_are_named(page)
        submit(page)
        run_page = page.url
        a_promotion_is_seen(page)
        the_report_is_read(page)
        page.goto(run_page)
        mlflow_page = to_mlflow(page, stack)
        the_run_names_prefects(mlflow_page, run_page)
        the_registry_names_the_champion(mlflow_page)
        the_model_s_page_is_read(mlflow_page, stack, tmp_path)
        nothing_else_ran(page, stack)


@contextmanager
def up(stack: Stack) -> Iterator[Up]:
    """`precis up` in a folder, ended by TERM: then none of its processes is left."""
    ports = free_port(), free_port()
    words = [str(PRECIS), "up", "--port", str(ports[0]), "--mlflow-port", str(ports[1])]
    log = stack.folder / "up.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            words,
            cwd=stack.folder,
            env=stack.environment(),
            stdout=out,
            stderr=out,
            start_new_session=True,
        )

    def ready() -> bool:
        assert process.poll() is None, log.read_text()[-3000:]
        return "Ctrl-C" in log.read_text()

    family: list[psutil.Process] = []
    try:
        wait_for(ready, 300, "precis up does not say that it is ready")
        yield Up(*(f"http://127.0.0.1:{port}" for port in ports))
    finally:
        if process.poll() is None:
            family = psutil.Process(process.pid).children(recursive=True)
            process.terminate()
        assert process.wait(120) == 0, log.read_text()[-3000:]
    assert len(family) >= 6  # each server and the worker, and what holds it
    assert not alive(family)


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A headless Chromium; where a test fails, what it showed last is `last.png` in `folder`."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = chromium.new_page(viewport=VIEW)  # type: ignore[arg-type]
        page.context.set_default_timeout(PAGE_SECONDS * 1000)
        expect.set_options(timeout=PAGE_SECONDS * 1000)
        try:
            yield page
        finally:
            page.screenshot(path=folder / "last.png")
            chromium.close()


def a_promotion_is_seen(page: Page) -> None:
    """Progress on the way, the verdict as the state, its sentence as the message."""
    page.set_viewport_size(SHOWS_ALL_ARTIFACTS)  # type: ignore[arg-type]
    tab(page, "Artifacts")
    comes(page, "training")
    state = page.locator(".state-badge").first
    expect(state).to_have_text(FINAL, timeout=RUN_SECONDS * 1000)
    expect(state).to_have_text("PROMOTE")
    # The graph is drawn for the tasks that it finds; artifacts made just before the end may not have
    # been listed yet, and once a run has ended the page asks for them no more.
    page.reload()
    tab(page, "Artifacts")
    comes(page, "report")
    picture(page, "run")
    page.set_viewport_size(VIEW)  # type: ignore[arg-type]
    tab(page, "Details")
    expect(page.get_by_text("PROMOTED demo v1: rougeL +").first).to_be_visible()
    tab(page, "Artifacts")


def tab(page: Page, name: str) -> None:
    page.get_by_role("tablist").get_by_text(name, exact=True).click()


def artifact(page: Page, key: str) -> Locator:
    """An artifact's card; those of tasks are loaded when that part of the page comes into view."""
    expect(page.get_by_role("heading", name="Task runs")).to_be_visible()
    page.mouse.move(700, VIEW["height"] - 200)  # off the graph, which a wheel would zoom
    page.mouse.wheel(0, 5000)
    return page.locator("a[href*='/artifacts/artifact/']").filter(
        has=page.get_by_text(key, exact=True)
    )


def comes(page: Page, key: str) -> None:
    """Scrolls on until it is there: what is drawn above later pushes an artifact out of view again."""
    end = time.monotonic() + RUN_SECONDS
    while not artifact(page, key).first.is_visible():
        assert time.monotonic() < end, f"no artifact {key!r} within {RUN_SECONDS} s"
        page.wait_for_timeout(500)


def the_report_is_read(page: Page) -> None:
    """Verdict, tables and plots: each picture is drawn."""
    artifact(page, "report").first.click()
    expect(page.get_by_role("heading", name="PROMOTED demo v1: rougeL +")).to_be_visible()
    row = page.get_by_role("row").filter(has=page.get_by_role("cell", name="rougeL", exact=True))
    expect(row.first).to_be_visible()
    for title in ("Training loss", "Gain per example", "Gain against document length"):
        plot = page.get_by_role("img", name=title)
        expect(plot).to_be_visible()
        expect(plot).to_have_js_property("complete", True)
        assert plot.evaluate("image => image.naturalWidth") > 500
    page.set_viewport_size(SHOWS_A_PLOT)  # type: ignore[arg-type]
    picture(page, "report")
    page.set_viewport_size(VIEW)  # type: ignore[arg-type]


def to_mlflow(page: Page, stack: Up) -> Page:
    """By the run's link artifact."""
    tab(page, "Artifacts")
    artifact(page, "mlflow-run").first.click()
    link = page.get_by_role("link", name="MLflow run", exact=True)
    with page.context.expect_page() as opened:
        link.click()
    page = opened.value
    page.wait_for_url(f"{stack.mlflow}/**")
    return page


def the_run_names_prefects(page: Page, run_page: str) -> None:
    """MLflow's page of the run links back to Prefect's."""
    expect(page.get_by_text("Finished").first).to_be_visible()
    back = page.get_by_role("link", name="Prefect flow run")
    expect(back).to_have_attribute("href", run_page.split("?", maxsplit=1)[0])


def the_registry_names_the_champion(page: Page) -> None:
    """From MLflow's page of the run on to the version, and to the model's list of versions."""
    page.get_by_role("main").locator("a[href*='#/models/demo']").first.click()
    page.wait_for_url("**/#/models/demo/versions/1")
    expect(page.get_by_role("heading", name="Version 1")).to_be_visible()
    expect(page.get_by_text("PROMOTED demo: rougeL +").first).to_be_visible()
    expect(page.get_by_role("main").get_by_text("champion").first).to_be_visible()
    page.get_by_role("main").get_by_role("link", name="demo").first.click()
    page.wait_for_url("**/#/models/demo")
    row = page.get_by_role("row").filter(has_text="Version 1")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("champion")
    page.get_by_role("button", name="Close", exact=True).click()  # the assistant beside it
    picture(page, "registry")


def the_model_s_page_is_read(page: Page, stack: Up, folder: Path) -> None:
    """Linked from the model's description, shown in MLflow, among Prefect's artifacts, and as a file."""
    with page.context.expect_page() as opened:
        page.get_by_role("link", name="Page of this model").click()
    viewer = opened.value
    shown = viewer.frame_locator("iframe").last
    expect(shown.get_by_role("heading", name="demo", exact=True)).to_be_visible()
    expect(shown.get_by_text("version 1, champion since")).to_be_visible()
    shown.get_by_role("link", name="recipe").click()
    expect(
        shown.get_by_text("version 1, champion since")
    ).to_be_visible()  # it is no link in a frame
    run = viewer.url.split("/runs/")[1].split("/")[0]
    viewer.close()
    answer = page.request.get(f"{stack.mlflow}/get-artifact?path=page.html&run_uuid={run}")
    (folder / "page.html").write_bytes(answer.body())
    page.goto((folder / "page.html").as_uri())
    nothing_is_cut_off(page)
    expect(page.get_by_role("listitem")).to_contain_text("stored summaries written again")
    picture(page, "page")
    for link, found in (("recipe", "name: demo"), (re.compile("^[0-9a-f]{8}$"), "Finished")):
        with page.context.expect_page() as opened:
            page.get_by_role("link", name=link).first.click()
        expect(opened.value.get_by_text(found).first).to_be_visible()
        opened.value.close()
    page.goto(f"{stack.prefect}/artifacts/key/page-demo")
    page.locator("a[href*='/artifacts/artifact/']").first.click()
    expect(page.get_by_role("heading", name="demo", exact=True).first).to_be_visible()
    link = page.get_by_role("link", name="this page in MLflow")
    expect(link).to_have_attribute("href", re.compile(f"{run}/artifacts/page.html$"))


def nothing_is_cut_off(page: Page) -> None:
    """On a wide window no text ends at a border; on a narrow one tables scroll, and nothing else does."""
    script = """() => [...document.querySelectorAll('body, body *')]
        .filter(e => e.clientWidth && getComputedStyle(e).display != 'inline')
        .filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => `${e.tagName} ${e.className}: ${e.innerText}`)"""
    assert page.evaluate(script) == []
    page.set_viewport_size({"width": 480, "height": 900})
    assert [one for one in page.evaluate(script) if not one.startswith("DIV wide")] == []
    page.set_viewport_size(VIEW)  # type: ignore[arg-type]


def test_long_words_on_a_models_page_are_not_cut_off(tmp_path: Path) -> None:
    """Names and reasons as long as MLflow takes them, without a space to break at."""
    entry = HistoryRecord(
        kind="promotion", time="2026-11-28T10:00:00.000+00:00", name="n" * 200, verdict="PROMOTE",
        reasons=("r" * 300, "rougeL gained"), version=1, metric="rougeL", gain=0.1, low=0.05, high=0.2,
        looks=12, evaluation_digest="e" * 64, model_digest="m" * 64, mlflow_run_id="f" * 32,
    )  # fmt: skip
    dataset = DatasetRef("runs:/x", "d" * 64, "d" * 64, "d" * 64, 1_500_000, 500, 0)
    made = Making("f" * 32, True, base_model="/models/" + "b" * 200, base_revision="a" * 40,
                  datasets=(dataset,), recipe="runs:/x/recipe.yaml")  # fmt: skip
    url = "http://127.0.0.1/#/experiments/1/runs/x"
    versions = [VersionRow(1, "m" * 64, entry, None, made, url),
                VersionRow(2, "m" * 64, replace(entry, kind="rollback"), 1, made, None)]  # fmt: skip
    refused = replace(entry, kind="refusal", verdict="INCONCLUSIVE", version=None)
    model = ModelPage(
        name=entry.name, champion=2, since="2026-11-28 10:00 UTC", problem="", versions=versions,
        waiting=[], refusals=[refused], run_urls={"f" * 32: url}, written="2026-11-28 10:00",
        store="sqlite:////" + "s" * 200, verified=["v" * 300],
    )  # fmt: skip
    (tmp_path / "page.html").write_text(render_model_page(model))
    with browser(tmp_path) as page:
        page.goto((tmp_path / "page.html").as_uri())
        nothing_is_cut_off(page)
        page.goto("about:blank")
        page.set_content(render_model_page(replace(model, problem="p" * 300)))
        nothing_is_cut_off(page)


def nothing_else_ran(page: Page, stack: Up) -> None:
    """No automation started anything: no data arrived, nothing decayed."""
    answer = page.request.post(f"{stack.prefect}/api/flow_runs/filter", data={})
    runs = [run for run in answer.json() if not run["auto_scheduled"]]
    assert [run["state"]["name"] for run in runs] == ["PROMOTE"]


def picture(page: Page, name: str) -> None:
    """Keep what the page shows, where PRECIS_SCREENSHOTS names a folder."""
    if not (folder := os.environ.get("PRECIS_SCREENSHOTS")):
        return
    from PIL import Image

    path = Path(folder) / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    page.mouse.wheel(0, -5000)
    seen, drawn = b"", page.screenshot()
    while drawn != seen:  # graphs and pictures move while they are drawn
        seen, drawn = drawn, page.screenshot()
    path.write_bytes(drawn)
    if path.stat().st_size > 250_000:
        Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)
