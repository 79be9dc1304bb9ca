"""Connections to PostgreSQL: how they are made, and what is said when they can't be."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from socket import gaierror
from typing import Any, Final

import asyncpg

from ciphermq import limits
from ciphermq.errors import CatalogError
from ciphermq.settings import DatabaseSection

_TIMEOUT: Final = limits.DATABASE_TIMEOUT

# Every statement here is after rows by name, thousands in one statement at most. The planner, which
# knows little of arrays, would now and then read a whole table to find them.
_SERVER_SETTINGS: Final = {
    "application_name": "ciphermq",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    # Whatever the server's default is: what was confirmed must be there after a crash.
    "synchronous_commit": "on",
}


class PostgresPool:
    """A few connections, made anew when they are lost. Its errors never hold the password."""

    def __init__(self, database: DatabaseSection) -> None:
        self._database = database
        self._password = database.secret()
        self._pool: asyncpg.Pool | None = None
        self.where = (
            f"PostgreSQL at {database.host}:{database.port} (user {database.user!r}, database "
            f"{database.dbname!r})"
        )

    @property
    def open(self) -> bool:
        """Whether it was started and not stopped."""
        return self._pool is not None

    async def start(self) -> None:
        """Make the first connection; `CatalogError` with where and why when there is none."""
        database = self._database
        try:
            self._pool = await asyncpg.create_pool(
                host=database.host,
                port=database.port,
                user=database.user,
                password=self._password,
                database=database.dbname,
                ssl=self._tls(),
                timeout=_TIMEOUT,
                command_timeout=_TIMEOUT,
                min_size=0,
                max_size=database.connections,
                server_settings=_SERVER_SETTINGS,
            )
            async with self.connection():
                pass
        except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            await self.stop()
            raise self.failed(error) from None

    async def stop(self) -> None:
        """Close all connections. May be repeated."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(_TIMEOUT):
                await pool.close()
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pool.terminate()

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.pool.PoolConnectionProxy[Any]]:
        """One of the connections, for a while."""
        pool = self._pool
        if pool is None:
            raise CatalogError("the catalog is not open")
        connection = await pool.acquire(timeout=_TIMEOUT)
        try:
            yield connection
        except asyncpg.PostgresError:
            raise
        except BaseException:
            # Who knows what it is in the middle of: it must not be given out again.
            connection.terminate()
            raise
        finally:
            await pool.release(connection, timeout=_TIMEOUT)

    def failed(self, error: BaseException) -> CatalogError:
        """What a failure comes to, for the operator."""
        return CatalogError(f"{self.where}: {self.explain(error)}")

    def explain(self, error: BaseException) -> str:
        """What went wrong and what to do, without the password."""
        said = _explain(error)
        # No message of theirs is known to hold it; this makes it so.
        return said.replace(self._password, "(hidden)") if self._password else said

    def _tls(self) -> ssl.SSLContext | str:
        database = self._database
        if not database.verified:
            return "disable" if database.tls == "off" else "prefer"
        try:
            return ssl.create_default_context(cafile=database.ca_cert_path)
        except OSError as error:  # ssl's own are of its kind
            why = error.strerror or error
            raise CatalogError(
                f"database.ca_cert_path = {database.ca_cert_path}: can't be read: {why}"
            ) from error


def _explain(error: BaseException) -> str:
    match error:
        case asyncpg.InvalidPasswordError() | asyncpg.InvalidAuthorizationSpecificationError():
            return f"the log-in was refused ({error}): check database.user and its password"
        case asyncpg.InvalidCatalogNameError():
            return f"{error}: make it with `createdb`, or correct database.dbname"
        case asyncpg.InsufficientPrivilegeError():
            return f"{error}: the user must own 1.x's tables and may make more (GRANT CREATE)"
        case asyncpg.TooManyConnectionsError():
            return f"{error}: lower database.connections or raise max_connections there"
        case ssl.SSLCertVerificationError():
            return (
                f"its certificate is not to be trusted ({error.verify_message}): check "
                "database.ca_cert_path, and that database.host is a name in the certificate"
            )
        case ssl.SSLError():
            return f"TLS failed: {error.reason or error}"
        case gaierror():
            return f"the host's name is unknown ({error.strerror}): check database.host"
        case TimeoutError():
            return f"it did not answer within {_TIMEOUT:g} s"
        case ConnectionRefusedError():
            return "nothing listens there (connection refused): start it, or correct database.port"
        case ConnectionError() if "SSL" in str(error):
            return "it does not speak TLS, which database.tls demands"
        case OSError():
            return f"it can't be reached: {error}"
        case _:
            return str(error) or type(error).__name__
