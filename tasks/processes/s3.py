"""An S3 client, and its errors as ours. AWS_ENDPOINT_URL is read by boto3 itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import PrecisError


def client(**config: Any) -> Any:
    """A boto3 client with its own session; `config`: botocore's client settings.

    The default session keeps the first credentials it sees, and threads must not share it.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import InvalidEndpointConfigurationError

    session = boto3.session.Session()
    try:
        return session.client("s3", config=Config(**config))
    except ValueError as error:  # what boto3 raises for an AWS_ENDPOINT_URL without http://
        raise InvalidEndpointConfigurationError(msg=str(error)) from error


@contextlib.contextmanager
def refusals(where: str, kind: type[PrecisError], fix: str) -> Iterator[None]:
    """Turn boto3's errors into `kind`: where, the message of the store, and how to fix it."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise kind(f"{where}: {error}; {fix}") from error
