"""Where connections come from: resolves a target to a pool or an engine, on first use and once per process or loop."""

from __future__ import annotations

import asyncio
import os
import re
import select
import sys
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from .. import settings
from ..errors import ConfigurationError
from .alchemy import AsyncEngineCarrier, EngineCarrier, is_alchemy
from .carriers import AsyncPoolCarrier, OwnPoolCarrier, PoolCarrier
from .hints import Ears
from .lines import Lines
from .plan import Plan, adrive, drive

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

Target: TypeAlias = "str | Engine | ConnectionPool[Any] | None"
AsyncTarget: TypeAlias = "str | AsyncEngine | AsyncConnectionPool[Any] | None"
SyncCarrier: TypeAlias = OwnPoolCarrier | PoolCarrier | EngineCarrier
Check: TypeAlias = Callable[[str], Plan[None]]
"""A plan to run on the first connection: given the schema, it raises when the schema does not fit this library."""


class Closing(Protocol):
    """What works with a database in the background until it is closed."""

    @property
    def close(self) -> Callable[[], object]:
        """Stop it."""
        ...


class AsyncClosing(Protocol):
    """The same for asyncio."""

    async def close(self) -> None:
        """Stop it."""
        ...


# A server that vanishes without a word (its machine lost power) is noticed in half a minute; by default the kernel
# takes up to two hours for an idle connection and a quarter of one for a statement under way.
_NOTICE = {"keepalives_idle": 15, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_REPEATED = re.compile(r'(?: after|:) "')  # where libpq begins to repeat what it was given
_PATIENCE = {"connect_timeout": 30}  # as long as a pool waits; psycopg's own limit is 130 s


def _options(conninfo: str) -> dict[str, Any]:
    """How our own connections are opened: one statement, one transaction, unless a plan asks for more.

    ``PGEVERYTHING_PREPARE=off`` turns server-side prepared statements off, for PgBouncer before 1.21.
    """
    said = conninfo_to_dict(conninfo)
    return {name: value for name, value in _NOTICE.items() if name not in said} | {
        "autocommit": True,
        "prepare_threshold": 5 if settings.flag("PGEVERYTHING_PREPARE", True) else None,
        "fallback_application_name": "pgeverything",
    }


def _check(connection: psycopg.BaseConnection[Any]) -> None:
    """Raise when the server has hung up. Reads only what has arrived, so it costs microseconds, not a round trip."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    while poll.poll(0):  # twice for a server that says why it hangs up
        connection.pgconn.consume_input()


async def _acheck(connection: psycopg.AsyncConnection[Any]) -> None:
    _check(connection)


def new_pool(conninfo: str, name: str, *, most: int) -> ConnectionPool[Any]:
    """Return a pool of our own connections, which are replaced when the server has hung up on them."""
    return ConnectionPool(
        conninfo, kwargs=_options(conninfo), min_size=1, max_size=most, check=_check, open=True, name=name
    )


def new_async_pool(conninfo: str, name: str, *, least: int = 1, most: int) -> AsyncConnectionPool[Any]:
    """Return the same for asyncio; the caller opens it."""
    return AsyncConnectionPool(
        conninfo, kwargs=_options(conninfo), min_size=least, max_size=most, check=_acheck, open=False, name=name
    )


def _first(conninfo: str) -> dict[str, Any]:
    """How to connect before there is a pool: a server that is not there or refuses us is to say why, and at once.

    A pool would say after 30 s that it has no connection, and tell the reason to the log only.
    """
    limit = {} if "connect_timeout" in conninfo_to_dict(conninfo) or "PGCONNECT_TIMEOUT" in os.environ else _PATIENCE
    return _options(conninfo) | limit


class Database:
    """A target, resolved when it is first used, and again after a fork: a child must not share its parent's sockets."""

    def __init__(self, target: Target, schema: str, check: Check) -> None:
        self.target, self.schema, self._check = target, schema, check
        self._ears = Ears(self.conninfo, schema)
        self.users: weakref.WeakSet[Closing] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._carrier: SyncCarrier | None = None
        self._own: Lines | None = None
        self._pid = 0

    def carrier(self) -> SyncCarrier:
        """Return the carrier, opening it on first use."""
        if self._carrier is not None and self._pid == os.getpid():
            return self._carrier
        with self._lock:
            if self._carrier is None or self._pid != os.getpid():
                carrier = self.open()
                drive(carrier, self._check(self.schema))
                self._carrier = carrier
        return self._carrier

    def open(self) -> SyncCarrier:
        """Return a carrier without looking at the schema, for `migrate`."""
        if is_alchemy(self.target, "Engine"):
            self._pid = os.getpid()
            return EngineCarrier(self.target, self.schema, self._ears)  # type: ignore[arg-type]  # is_alchemy has looked
        if isinstance(self.target, ConnectionPool):
            self._pid = os.getpid()
            return PoolCarrier(self.target, self.schema, self._ears)
        with self._lock:
            if self._own is None or self._pid != os.getpid():
                conninfo = self.conninfo()
                psycopg.connect(conninfo, **_first(conninfo)).close()
                self._own = Lines(new_pool(conninfo, "pgeverything", most=_most()))
                self._pid = os.getpid()
            return OwnPoolCarrier(self._own, self.schema, self._ears)

    def conninfo(self) -> str:
        """Return the target as a libpq connection string."""
        return _conninfo(self.target)

    def close(self) -> None:
        """Close the pool, where it is ours, and first what works with it in the background."""
        for user in list(self.users):
            user.close()
        self._ears.close()
        with self._lock:
            if self._own is not None and self._pid == os.getpid():
                self._own.close()
            self._own = self._carrier = None


class AsyncDatabase:
    """The same for asyncio, resolved once per event loop: a connection belongs to the loop it was opened in."""

    def __init__(self, target: AsyncTarget, schema: str, check: Check) -> None:
        self.target, self.schema, self._check = target, schema, check
        self._carrier: AsyncPoolCarrier | AsyncEngineCarrier | None = None
        self._own: AsyncConnectionPool[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opening = asyncio.Lock()
        self._ears = Ears(self.conninfo, schema)
        self.users: weakref.WeakSet[AsyncClosing] = weakref.WeakSet()

    async def carrier(self) -> AsyncPoolCarrier | AsyncEngineCarrier:
        """Return the carrier, opening it on first use."""
        if self._carrier is not None and self._loop is asyncio.get_running_loop():
            return self._carrier
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._opening, self._own = asyncio.get_running_loop(), asyncio.Lock(), None
            self._carrier = None
        async with self._opening:
            if self._carrier is None:
                carrier = await self.open()
                await adrive(carrier, self._check(self.schema))
                self._carrier = carrier
        return self._carrier

    async def open(self) -> AsyncPoolCarrier | AsyncEngineCarrier:
        """Return a carrier without looking at the schema, for `migrate`."""
        if is_alchemy(self.target, "AsyncEngine"):
            return AsyncEngineCarrier(self.target, self.schema, self._ears)  # type: ignore[arg-type]  # as is_alchemy saw
        if isinstance(self.target, AsyncConnectionPool):
            return AsyncPoolCarrier(self.target, self.schema, self._ears)
        if self._own is None or self._loop is not asyncio.get_running_loop():
            conninfo = await asyncio.to_thread(self.conninfo)  # may start the local server
            await (await psycopg.AsyncConnection.connect(conninfo, **_first(conninfo))).close()
            self._loop = asyncio.get_running_loop()
            self._own = new_async_pool(conninfo, "pgeverything", most=_most())
            await self._own.open()
        return AsyncPoolCarrier(self._own, self.schema, self._ears)

    def conninfo(self) -> str:
        """Return the target as a libpq connection string."""
        return _conninfo(self.target)

    async def close(self) -> None:
        """Close the pool, where it is ours and of this loop, and first what works with it in the background."""
        for user in list(self.users):
            await user.close()
        await asyncio.to_thread(self._ears.close)
        if self._own is not None and self._loop is asyncio.get_running_loop():
            await self._own.close()
        self._own = self._carrier = None


def _most() -> int:
    return settings.number("PGEVERYTHING_POOL_SIZE", 10)


def _readable(url: str, source: str = "the database's URL") -> str:
    """Return a URL as libpq takes it. What it cannot read is refused and not repeated: it may hold a password."""
    conninfo = settings.conninfo(url, source)
    try:
        conninfo_to_dict(conninfo)
    except psycopg.ProgrammingError as error:
        reason = _REPEATED.split(str(error).strip())[0]
        raise ConfigurationError(f"{source} cannot be read ({reason}): write {settings.URL_EXAMPLE}") from None
    return conninfo


def _conninfo(target: Target | AsyncTarget) -> str:
    if isinstance(target, str):
        return _readable(target)
    if isinstance(target, ConnectionPool | AsyncConnectionPool):
        if callable(target.conninfo) or callable(target.kwargs):
            raise ConfigurationError(
                "a worker needs connections of its own: give PgEverything a URL, not a pool that computes one"
            )
        options = {name: value for name, value in (target.kwargs or {}).items() if isinstance(value, str)}
        return psycopg.conninfo.make_conninfo(target.conninfo, **options)
    if target is not None:
        if not (is_alchemy(target, "Engine") or is_alchemy(target, "AsyncEngine")):
            kind = type(target)
            raise ConfigurationError(
                f"target={kind.__module__}.{kind.__qualname__} is not supported: "
                "give a postgresql:// URL, a SQLAlchemy engine, a psycopg_pool pool, or nothing"
            )
        return _readable(target.url.render_as_string(hide_password=False))
    if (named := settings.database_url()) is not None:
        return _readable(*named)
    from ..local import ensure  # noqa: PLC0415 - the one who has a server never loads this

    server = ensure()
    print(  # noqa: T201 - said once, because nobody named it
        f"pgeverything: no database named, using the private local server at {server.data_dir}",
        file=sys.stderr,
    )
    return server.url
