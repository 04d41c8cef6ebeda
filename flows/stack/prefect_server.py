"""`prefect server start` on an SQLite that waits: `python -P -m flows.stack.prefect_server server start ...`.

Prefect 3.8.8 begins most transactions on SQLite by reading. One that then wants to write while another has
written meanwhile fails at once with "database is locked", whatever the timeout: its snapshot is old. Here a
transaction takes the write lock at its beginning, and waits for it. No setting of Prefect's says so; the
database's configuration is a dependency of its server that may be set before it starts.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect.cli import app
from prefect.server.database import dependencies
from prefect.server.database.configurations import AioSqliteConfiguration
from prefect.server.utilities.database import get_dialect
from prefect.settings import PREFECT_API_DATABASE_CONNECTION_URL
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction


class WaitingSqlite(AioSqliteConfiguration):
    """SQLite whose transactions are begun for writing."""

    @asynccontextmanager
    async def begin_transaction(
        self, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncIterator[AsyncSessionTransaction]:
        """A transaction that holds the write lock from its beginning; `with_for_update` changes nothing."""
        async with super().begin_transaction(session, with_for_update=True) as transaction:
            yield transaction


def main() -> None:
    """Run the `prefect` command of this process's arguments, with that configuration."""
    url = str(PREFECT_API_DATABASE_CONNECTION_URL.value())
    if get_dialect(url).name == "sqlite":
        dependencies.MODELS_DEPENDENCIES["database_config"] = WaitingSqlite(connection_url=url)
    app()


if __name__ == "__main__":
    main()
