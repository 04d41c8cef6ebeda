"""The MLflow run that keeps a registered model's page: one a model, so that the page's address stays.

MLflow has no files of a registered model, and a flow's own run would be another one each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.contracts import digest
from tasks.tracking import artifacts, mlflow_run

FLOW, PAGE = "precis.flow", "page"  # in place of a flow's name: searches for flows do not find it
CONTENT = "precis.page_digest"
LINK = (  # in the registered model's description
    "[Page of this model]({run.link}): versions with gains, what made each, refusals, looks. `{run.uri}`; "
    "as a file: `precis page`. (Written by precis; text around it stays.)"
)
NOTE = (
    "Keeps the page of the registered model, as the artifact page.html. precis writes it again when the "
    "champion or the history has changed; if this run is deleted, it makes another."
)


@dataclass(frozen=True)
class PageRun:
    """Where a page is. `content`: the digest of what it tells; empty before it is stored."""

    experiment_id: str
    run_id: str
    content: str

    @property
    def uri(self) -> str:
        """For `mlflow artifacts download`, and for programs."""
        return f"runs:/{self.run_id}/page.html"

    @property
    def link(self) -> str:
        """For MLflow's own pages: right on whatever address they are seen, also of the embedded store."""
        return f"#/experiments/{self.experiment_id}/runs/{self.run_id}/artifacts/page.html"


def of_model(client: Any, name: str, experiment_id: str) -> PageRun:
    """The run of a model's page, made if there is none. Of two that were made at once the older counts."""
    found = client.search_runs(
        [experiment_id],
        f"tags.`{FLOW}` = '{PAGE}'",
        order_by=["attributes.start_time ASC"],
        max_results=100,
    )
    if found:
        run = min(found, key=lambda run: (run.info.start_time, run.info.run_id))
        return PageRun(experiment_id, run.info.run_id, run.data.tags.get(CONTENT, ""))
    tags = {FLOW: PAGE, "precis.name": name, "mlflow.note.content": NOTE}
    info = client.create_run(experiment_id, tags=tags, run_name=f"page of {name}").info
    return PageRun(experiment_id, info.run_id, "")


def store(client: Any, run: PageRun, file: Path, content: str) -> str:
    """Store `file`, which is called page.html; returns the page's address."""
    artifacts.forget(run.uri)
    artifacts.repository_of(run.run_id).log_artifact(str(file), None)
    client.set_tag(
        run.run_id, CONTENT, content
    )  # after the file: a crash before it has it stored again
    client.set_terminated(run.run_id)
    return address(run)


def address(run: PageRun) -> str:
    """The page's address on the MLflow server; its URI where there is none."""
    url = mlflow_run.url_of(run.experiment_id, run.run_id)
    return f"{url}/artifacts/page.html" if url else run.uri


def digest_of(text: str) -> str:
    """The digest of what a page tells."""
    return digest.of_value(text)
