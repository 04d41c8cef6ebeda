"""docs/cli.md, from the command's own help: `python -m flows.cli.reference > docs/cli.md`."""

from __future__ import annotations

import contextlib
import io
import os

WIDTH = "100"
TOP = """# The `precis` command

Made by `make docs` from `precis --help` and flows/cli/reference.py; a test holds it up to date.

Exit status: 0 when a verb did its work, whatever the verdict; 1 when it failed; 2 for bad usage; 130
after Ctrl-C. Results go to standard output; logs and errors go to standard error. An error says what is
wrong, where, and how to fix it; `--debug` adds tracebacks. Paths in a recipe are relative to the folder
that the command runs in.

By default a run needs no server: Prefect starts a temporary one, and MLflow keeps its SQLite store and
artifacts under `mlruns/`. `PREFECT_API_URL` and `MLFLOW_TRACKING_URI` name servers of your own, as in
every other Prefect and MLflow program. `PRECIS_WORK` moves the scratch space.
"""
JSON = """## `--json`

One JSON object on standard output, and nothing else.

`precis run`:

| key | value |
|---|---|
| `verdict` | `PROMOTE`, `REJECT` or `INCONCLUSIVE`; `NOT_APPROVED` where people refused it |
| `name` | the registered model |
| `version` | the version that was registered, or null |
| `champion_version` | the version that the challenger was compared with; null: the untuned base |
| `skipped` | steps whose stored result was used |
| `feedback` | `sealed`: deciding rows' numbers are told of a promotion alone; or `open` |
| `rows` | how many evaluation rows there are: `deciding`, `all` |
| `metrics` | each: means `base`, `lead3`, `champion`, `challenger`; `gain`, `low`, `high`; none if sealed |
| `open_part` | of the open rows, which decide nothing: `metrics`, `guardrails`, `notes` and more; or null |
| `reasons`, `notes` | what decided, and what did not but is worth knowing; lists of sentences |
| `looks` | challengers judged on these evaluation rows, this one included |
| `approval` | where people are asked: `state`, `by`, `comment`, `pairs`, `until`; or null |
| `cuts` | texts that did not fit: `what`, `done`, `count`, `of`, `mean`, `largest` |
| `costs` | of each `step`, `estimated` and `measured`: `seconds` and `memory_gib` (null: not known) |
| `mlflow_run_id`, `prefect_flow_run_id` | the run, in MLflow and in Prefect |
| `model_digest`, `evaluation_digest` | of the challenger, and of all that its scores depend on |
| `report` | `runs:/` URI of the report |

`precis evaluate`:

| key | value |
|---|---|
| `verdict` | `DECAYED`, `STEADY` or `INCONCLUSIVE` |
| `reasons`, `headline` | why, and all of it in a sentence |
| `name`, `champion_version`, `model_digest` | the model that was scored |
| `metric` | the deciding metric |
| `sealed`, `fresh` | the champion on the evaluation set and on the fresh rows |
| `drop`, `low`, `high`, `alpha` | how much worse the fresh rows are; one-sided bounds, each at alpha |
| `max_decay` | `evaluation.max_decay`: the drop that is allowed |
| `skipped`, `mlflow_run_id`, `prefect_flow_run_id` | as in `precis run` |
| `schema_version` | of this object |

`precis champion` prints null when there is no champion: `name`, `version`, `model_digest`, `mlflow_run_id`,
`since`, `description`, and `promoted_by`, a record as in `precis history`.

`precis history` prints a list of records, oldest first: `kind` (`promotion`, `refusal` or `rollback`),
`time`, `name`, `verdict`, `reasons`, `version`, `opponent_version`, `metric`, `gain`, `low`, `high`, `looks`,
`evaluation_digest`, `model_digest`, `mlflow_run_id`, `schema_version`; and where people are asked `approval`
(`waits`, `approved`, `refused` or `expired`), `approved_by` (who answered), `comment`, `approval_until`. A
promotion that waits has no `version`. Under sealed feedback a refusal's `gain`, `low` and `high` are null.

`precis lineage`: `name`, `version`, `model_digest`, `predecessor`, `rollback_to`, `registered_by_run`,
`trained_by_run`, `datasets`, `base` (`model`, `revision`, `digest`), `adapter` (`uri`, `digest`), `pruned`,
`recipe`, `settings`, `code` (`commit`, `dirty`) and more; null is not known.

`precis who-learned`: `learners` (`name`, `version` or null, `run_id`, `train_digest`, and `rows` with `id`
and `how`: `id`, `exact`, `similar`, `holds` or `part`), `searched`, and `unknown`: of whom it cannot be told.
"""


def page() -> str:
    """The whole page as Markdown."""
    import typer

    from flows.cli.app import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    helps = [f"## `precis {verb}`\n\n```text\n{_help(verb)}```\n" for verb in verbs]
    return "\n".join([TOP, f"```text\n{_help()}```\n", *helps, JSON])


def _help(*verb: str) -> str:
    """What `precis VERB --help` prints on a terminal of WIDTH columns."""
    from flows.cli.entry import main

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            main([*verb, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    return text.getvalue()


if __name__ == "__main__":
    print(page(), end="")
