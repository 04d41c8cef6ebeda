"""An MLflow plugin (entry point `mlflow.request_header_provider`): one connection a request.

MLflow's server with several workers, its default, answers on a kept connection some 40 ms late: uvicorn
binds its sockets in a way in which asyncio does not see that they are TCP, so Nagle's algorithm stays
on, and an answer's body waits until the client's kernel acknowledges its head. Where the server closes
the connection after its answer, nothing waits. A new connection costs a tenth of that at most, except
with TLS, where there is a proxy in between anyway: there nothing is changed.
"""

from __future__ import annotations

from mlflow.tracking.request_header.abstract_request_header_provider import RequestHeaderProvider


class OneConnectionEach(RequestHeaderProvider):  # type: ignore[misc]
    """Adds `Connection: close` to what MLflow's client sends to a plain HTTP server."""

    def in_context(self) -> bool:
        """Whether MLflow's tracking URI is a plain HTTP server's."""
        import mlflow

        return str(mlflow.get_tracking_uri()).startswith("http://")

    def request_headers(self) -> dict[str, str]:
        """The header."""
        return {"Connection": "close"}
