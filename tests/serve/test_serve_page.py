"""The page of `precis serve` in a real browser."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import playwright.sync_api
import pytest
import served_models
from served_models import LONG, NAME

pytestmark = [pytest.mark.full, pytest.mark.usefixtures("one_thread")]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ANSWERED = "!['', '...'].includes(document.getElementById('answer').textContent)"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_the_page_summarizes(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """Without the key it says what is missing; with it, the judged text, its version, and what was cut."""
    with (
        served_models.store(tmp_path_factory, tmp_path),
        tempfile.TemporaryDirectory() as sockets,
        served_models.served(tmp_path, Path(sockets), api_key="k") as server,
        playwright.sync_api.sync_playwright() as driver,
    ):
        page = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]).new_page()
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        page.fill("#document", LONG)
        page.click("button")
        page.wait_for_function(ANSWERED)
        assert "send the API key" in (page.text_content("#answer") or "")
        page.fill("#key", "k")
        page.click("button")
        page.wait_for_function("document.getElementById('about').textContent")
        assert page.text_content("#answer") == served_models.texts_of(tmp_path_factory, 1)[-1]
        assert f"{NAME} v1; the document was cut by" in (page.text_content("#about") or "")
        assert not faults
