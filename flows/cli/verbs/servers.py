"""`precis notify-data`, `serve` and `up`: what is done with servers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

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


def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The champion of that name, NAME@ALIAS or NAME/VERSION."
        ),
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8080,
    host: Annotated[str, typer.Option(help="0.0.0.0: all of this machine's.")] = "127.0.0.1",
    engine: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help="auto: vLLM where its command is there, else transformers."),
    ] = "auto",
    vllm: Annotated[
        str | None, typer.Option(metavar="COMMAND", help="vLLM's command; default: vllm.")
    ] = None,
    api_key_file: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Holds the key to ask for; default: PRECIS_API_KEY."),
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option(metavar="N", min=1, help="Larger requests are refused (413).")
    ] = 1 << 20,
    request_timeout_seconds: Annotated[
        float, typer.Option(metavar="N", min=0.1, help="The longest answer (504).")
    ] = 120.0,
    poll_seconds: Annotated[
        float, typer.Option(metavar="N", min=0.1, help="How often the registry is looked at.")
    ] = 15.0,
    check_rows: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="Stored texts that a version must give back first."),
    ] = 4,
) -> None:
    """Serve a model over HTTP, and follow its alias.

    A new version starts beside the old one, is checked, and takes over; Ctrl-C ends all of it.
    """
    from flows.serve.plan import ServePlan, read_key
    from flows.serve.serve import serve as run

    run(
        ServePlan(
            reference=model,
            host=host,
            port=port,
            engine=engine,
            vllm=vllm,
            api_key=read_key(api_key_file, os.environ.get("PRECIS_API_KEY")),
            max_request_bytes=max_request_bytes,
            request_timeout_seconds=request_timeout_seconds,
            poll_seconds=poll_seconds,
            check_rows=check_rows,
        )
    )


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
