"""`precis page`: one HTML page of a model, with no sealed number on it.

Over 250 lines: its tests share one store.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import mlflow
import once
import pytest
from prefect.client.orchestration import get_client
from register import made_store
from register.made_store import NAME, REASON, Store

from flows import model_page, verified_note
from flows.cli.entry import main
from flows.model_page import page_of, publish, write_page
from flows.stack import embedded
from tasks.contracts.errors import DataError, NoSuchChampion, RegistryError
from tasks.register import claims, version_tags
from tasks.register.description import END, START
from tasks.register.task import add_verified, link_page, verified_now
from tasks.report.task import model_page_markdown, page_key, render_model_page
from tasks.tracking import artifacts, history


@pytest.fixture
def store(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Two versions, a refusal and a rollback."""
    yield made_store.put(home, tmp_path_factory)
    mlflow.set_tracking_uri(None)


def test_versions_refusals_and_looks_are_on_it(store: Store) -> None:
    """What is served, what made each version, why others were refused, and looks by opponent and set."""
    page = page_of(store.client, NAME)
    assert (page.champion, [row.number for row in page.versions]) == (3, [1, 2, 3])
    assert [row.made.run_id for row in page.versions] == [
        store.first.run_id, store.second.run_id, store.first.run_id,
    ]  # fmt: skip
    assert [record.mlflow_run_id for record in page.refusals] == [store.refused.run_id]
    assert page.looks == [("the untuned base", "e" * 64, 1), ("v1", "e" * 64, 3)]
    html = render_model_page(page)
    for text in ("version 3, champion since", "+0.0300", "worse, beyond noise", "rolled back to v1",
                 store.second.dataset.train_digest[:8], store.refused.run_id[:8], "20 rows"):  # fmt: skip
        assert text in html, text
    # The base's name and the rollback's reason are users' own words.
    assert "llama &lt;b&gt;" in html
    assert REASON not in html
    assert "<script" not in html


def test_no_sealed_number_is_on_it(store: Store) -> None:
    """A refusal shows a gain only where its entry has one: that of sealed feedback has none."""
    refused = render_model_page(page_of(store.client, NAME))
    assert "+0.0600" not in refused  # of the refusal, had it been open
    record = json.loads(store.client.get_run(store.refused.run_id).data.tags[history.RECORD])
    opened = record | {"gain": 0.06, "low": 0.01, "high": 0.1}
    store.client.set_tag(store.refused.run_id, history.RECORD, json.dumps(opened))
    store.client.log_metric(store.refused.run_id, "gain/rougeL", 0.0777)
    html = render_model_page(page_of(store.client, NAME))
    assert "+0.0600" in html
    assert "0.0777" not in html


def test_a_refusal_says_whose_it_is(store: Store) -> None:
    """The gate's names its verdict; what people refused had passed the gate, and is not called promoted."""
    assert "<td>refused (REJECT)</td>" in render_model_page(page_of(store.client, NAME))
    record = json.loads(store.client.get_run(store.refused.run_id).data.tags[history.RECORD])
    by_people = record | {"verdict": "PROMOTE", "approval": "refused", "approved_by": "Ann"}
    store.client.set_tag(store.refused.run_id, history.RECORD, json.dumps(by_people))
    html = render_model_page(page_of(store.client, NAME))
    assert "<td>passed the gate, refused</td>" in html
    assert "<td>PROMOTE" not in html


def test_who_waits_is_not_refused(store: Store) -> None:
    """It stands under a heading of its own, which is there for nobody else; its look counts."""
    assert "Waiting for approval" not in render_model_page(page_of(store.client, NAME))
    run = store.refused.run_id
    record = json.loads(store.client.get_run(run).data.tags[history.RECORD])
    waits = {"kind": "promotion", "verdict": "PROMOTE", "approval": "waits", "looks": 9}
    waits |= {"approval_until": "2999-01-01T00:00:00+00:00"}
    store.client.set_tag(run, history.RECORD, json.dumps(record | waits))
    page = page_of(store.client, NAME)
    assert ([one.mlflow_run_id for one in page.waiting], page.refusals) == ([run], [])
    assert page.looks[-1][2] == 9
    _, _, after = render_model_page(page).partition("<h2>Waiting for approval</h2>")
    waiting, _, refused = after.partition("<h2>Refused</h2>")
    assert "passed the gate, waits for approval until 2999" in waiting
    assert refused.partition("<h2>")[0].strip() == "<p>None.</p>"


def test_a_rollback_that_made_no_version_is_no_version_s_entry(store: Store) -> None:
    """It has its target's number, and the target's promotion keeps its row, gain and look."""
    before = page_of(store.client, NAME)
    number = store.client.get_experiment_by_name(NAME).experiment_id
    run = store.client.create_run(number, tags={"precis.flow": "rollback"}).info.run_id
    record = json.loads(store.client.get_run(store.second.run_id).data.tags[history.RECORD])
    back = record | {"kind": "rollback", "verdict": None, "version": 2, "mlflow_run_id": run}
    back |= {"time": "2026-11-28T11:00:00.000+00:00", "gain": None, "looks": None}
    store.client.set_tag(run, history.RECORD, json.dumps(back))
    page = page_of(store.client, NAME)
    assert (page.versions, page.looks) == (before.versions, before.looks)
    assert [row.entry.kind for row in page.versions if row.entry] == [
        "promotion", "promotion", "rollback",
    ]  # fmt: skip


def test_an_alias_that_was_moved_is_told(store: Store) -> None:
    """No version is called served; the page says what to do."""
    store.client.set_registered_model_alias(NAME, claims.ALIAS, "1")
    html = render_model_page(page_of(store.client, NAME))
    assert f"precis rollback {NAME} --to 3" in html
    assert "champion since" not in html


def test_what_was_deleted_is_called_not_known(store: Store) -> None:
    """A version whose run MLflow has no more stays on the page."""
    store.client.set_model_version_tag(NAME, "2", claims.RUN_ID, "0" * 32)
    row = page_of(store.client, NAME).versions[1]
    assert (row.made.known, row.run_url) == (False, None)
    assert "not known" in render_model_page(page_of(store.client, NAME))


def test_it_is_written_whole_or_not_at_all(store: Store) -> None:
    """An earlier page is replaced; a folder that is not there is a sentence, and so is an unknown name."""
    file = Path("page.html")
    file.write_text("before")
    assert write_page(NAME, file).read_text().startswith("<!doctype html>")
    assert [path.name for path in Path().iterdir() if "page" in path.name] == ["page.html"]
    with pytest.raises(DataError, match="cannot be written"):
        write_page(NAME, Path("nowhere/page.html"))
    with pytest.raises(NoSuchChampion, match="nearest"):
        write_page("sum", file)


def test_its_markdown_tells_the_same(store: Store) -> None:
    """For Prefect: what users wrote can be no link or picture there, and sealed numbers are not on it."""
    page = page_of(store.client, NAME)
    text = model_page_markdown(page, "runs:/abc/page.html")
    for found in ("**Served: version 3**", "+0.0300", "worse, beyond noise", "rolled back to v1's model",
                  store.second.dataset.train_digest[:8], store.refused.run_id[:8], "`llama <b> abc`",
                  "`runs:/abc/page.html`", "| v1 | `eeeeeeeeeeeeeeee` | 3 |"):  # fmt: skip
        assert found in text, found
    assert REASON not in text
    assert "+0.0600" not in text
    moved = replace(page, problem="someone moved it")
    assert "Served" not in model_page_markdown(moved, "")


def test_where_it_was_verified_is_on_it(store: Store) -> None:
    """Of the model that is champion, earlier versions too; a note a machine and way, edited ones left out."""
    digest = store.first.model.digest
    for texts in (3, 5):
        add_verified(store.client, NAME, 1, digest, verified_now("precis verify", texts))
    add_verified(store.client, NAME, 3, digest, verified_now("precis serve", 4, "vllm 0.30.0"))
    add_verified(store.client, NAME, 3, "another model", verified_now("precis serve", 9, "other"))
    store.client.set_model_version_tag(NAME, "2", version_tags.VERIFIED, "x")
    page = page_of(store.client, NAME)
    one, two = page.verified
    assert one.endswith("MLflow: 5 stored summaries written again")
    assert two.endswith("vllm 0.30.0: 4 stored summaries written again")
    assert socket.gethostname() in one
    assert one in unescape(render_model_page(page))


def test_where_it_was_verified_is_noted_or_logged(store: Store) -> None:
    """Of a version that has the model still; a registry that takes no note ends nothing."""
    logged: list[str] = []
    note, digest = verified_now("precis verify", 3), store.first.model.digest
    verified_note.add(NAME, 1, digest, note, logged.append)
    assert (len(page_of(store.client, NAME).verified), logged) == (1, [])
    verified_note.add(NAME, 9, digest, note, logged.append)
    assert [line.partition(": where it was verified")[0] for line in logged] == [f"{NAME} v9"]


def test_the_description_keeps_what_people_wrote(store: Store) -> None:
    """The block is put at the end, and replaced where it is; half a block is people's own text."""
    client = store.client
    client.update_registered_model(NAME, "Ours.\n")
    link_page(client, NAME, "one")
    first = client.get_registered_model(NAME).description
    assert first == f"Ours.\n\n\n{START}\none\n{END}"
    client.update_registered_model(NAME, f"{START} {first}\nAnd more.")
    link_page(client, NAME, "two \\1")
    changed = client.get_registered_model(NAME)
    assert changed.description == f"{START} Ours.\n\n\n{START}\ntwo \\1\n{END}\nAnd more."
    link_page(client, NAME, "two \\1")
    again = client.get_registered_model(NAME)
    assert again.last_updated_timestamp == changed.last_updated_timestamp
    client.update_registered_model(NAME, "x" * 4990)
    with pytest.raises(RegistryError, match="too long for a link"):
        link_page(client, NAME, "two")
    assert client.get_registered_model(NAME).description == "x" * 4990
    link_page(client, "nobody", "two")


@pytest.mark.full
def test_it_is_kept_in_mlflow_and_prefect(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run a model keeps it; it is stored again when what it tells has changed, and not otherwise.

    Of two that store it at once the last stores the latest, though it had read an earlier state.
    """
    keep = model_page.keep_page

    def late(*given: Any) -> str:
        """Keeps what was read before another one's change and its page."""
        monkeypatch.setattr(model_page, "keep_page", keep)
        store.client.set_registered_model_alias(NAME, claims.ALIAS, "3")
        assert publish(store.client, NAME)
        return keep(*given)

    once.put_prefect_database(Path("prefect"))
    with embedded.server() as wait:
        wait()
        address = publish(store.client, NAME)
        assert publish(store.client, NAME) is None
        store.client.set_registered_model_alias(NAME, claims.ALIAS, "1")
        assert publish(store.client, NAME) == address
        with get_client(sync_client=True) as prefect:
            kept = prefect.read_latest_artifacts()
        html = artifacts.fetch(str(address)).read_text()
        store.client.set_registered_model_alias(NAME, claims.ALIAS, "2")
        monkeypatch.setattr(model_page, "keep_page", late)
        assert publish(store.client, NAME) == address
        assert publish(store.client, NAME) is None
        with get_client(sync_client=True) as prefect:
            (latest,) = prefect.read_latest_artifacts()
    assert "version 3, champion since" in artifacts.fetch(str(address)).read_text()
    assert "**Served: version 3**" in str(latest.data)
    assert address
    assert f"precis rollback {NAME} --to 3" in html
    assert [artifact.key for artifact in kept] == [f"page-{NAME}"]
    assert f"precis rollback {NAME} --to 3" in kept[0].data
    assert address in store.client.get_registered_model(NAME).description
    experiment = store.client.get_experiment_by_name(NAME).experiment_id
    (run,) = store.client.search_runs([experiment], "tags.`precis.flow` = 'page'")
    assert (run.info.status, f"runs:/{run.info.run_id}/page.html") == ("FINISHED", address)


def test_keys_of_prefect_artifacts() -> None:
    """Two names never have the same key."""
    assert page_key("demo-2") == "page-demo-2"
    keys = [page_key(name) for name in ("Demo", "demo", "demo.", "DEMO")]
    assert len(set(keys)) == 4
    assert all(re.fullmatch("[a-z0-9-]+", key) for key in keys)


def test_the_command_writes_it(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`precis page NAME` names the file; a name that nobody knows is a sentence and status 1."""
    assert main(["page", NAME, "--out", "page.html"]) == 0
    assert "page.html" in capsys.readouterr().out
    pages = (Path("page.html").read_text(), render_model_page(page_of(store.client, NAME)))
    written, made = (re.sub(r"\d\d:\d\d", "", page) for page in pages)  # when it was made
    assert written == made
    assert main(["page", "sum"]) == 1
    assert "nearest" in capsys.readouterr().err
