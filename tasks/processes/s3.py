"""A client of an S3 store, and what such a store refuses, in words. AWS_ENDPOINT_URL is boto3's own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tasks.contracts.errors import PrecisError


def client(**config: Any) -> Any:
    """A boto3 client of a session of its own; `config` are botocore's settings of a client.

    boto3's default session keeps the first credentials it saw, and threads must not share it.
    """
    import boto3
    from botocore.config import Config
    from botocore.exceptions import InvalidEndpointConfigurationError

    session = boto3.session.Session()
    try:
        return session.client("s3", config=Config(**config))
    except ValueError as error:  # all that boto3 makes of an AWS_ENDPOINT_URL without http://
        raise InvalidEndpointConfigurationError(msg=str(error)) from error


@contextlib.contextmanager
def refusals(where: str, kind: type[PrecisError], mend: str) -> Iterator[None]:
    """Turn whatever boto3 raises into `kind`, which says where, what the store said, and the mend."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise kind(f"{where}: {error}; {mend}") from error
