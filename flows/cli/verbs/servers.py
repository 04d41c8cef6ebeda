"""`precis notify-data` and `up`: what is done with servers."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.verbs.options import OptionalModelName


def notify_data(
    name: OptionalModelName = None,
    s3_event: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="In place of NAME: an S3 notification; -: standard input."
        ),
    ] = None,
    source: Annotated[
        str | None, typer.Option(metavar="URI", help="What arrived, with NAME.")
    ] = None,
) -> None:
    """Tell the Prefect server of new data.

    They are for the model NAME, or for every deployment that trains on an object of an S3 event: bare,
    or from SNS, SQS or EventBridge.
    """
    if (name is None) == (s3_event is None):
        raise typer.BadParameter("name either a model or an --s3-event")
    from flows import notify

    print("\n".join(notify.data(name, source, s3_event)))


def up(
    postgres: Annotated[
        bool, typer.Option("--postgres", help="PostgreSQL and S3, not SQLite and files.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the Prefect server.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server.")] = 5000,
    s3_port: Annotated[int, typer.Option(help="Port of the S3 server, with --postgres.")] = 9000,
    runs: Annotated[int, typer.Option(metavar="N", help="Flow runs at once.")] = 2,
) -> None:
    """Start servers, a worker and all deployments.

    Prefect and MLflow run on this machine until Ctrl-C, and leave nothing behind.
    """
    from flows.stack.up import Plan
    from flows.stack.up import up as serve

    serve(
        Plan(
            prefect_port=port,
            mlflow_port=mlflow_port,
            s3_port=s3_port,
            postgres=postgres,
            runs_at_once=runs,
        )
    )
