"""What can be found out about a database only from outside a session: the way to it, and what a pooler on it breaks."""

from __future__ import annotations

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import errors as pg
from psycopg.conninfo import conninfo_to_dict

from .. import settings
from .listen import Listener

_CONNECT_SECONDS = 10  # who asks waits for the answer; psycopg's own limit is 130 s
_TRY_SECONDS = 3.0
_SESSIONS = 3  # transactions that are kept open so that a pooler has to choose another session of the server


@dataclass(frozen=True, slots=True)
class Probe:
    """The way to a database.

    Attributes:
        refused: why there is none, None when there is.
        pooled: whether a pooler answers, and not the server itself.
        listens: whether notifications arrive.
        prepares: whether prepared statements survive a change of the pooler's session; None when they are turned off or
            it could not be seen.
        closes: whether our libpq can close one so that a pooler knows of it.
        ahead: by how many seconds the server's clock is ahead of ours.
    """

    refused: str | None = None
    pooled: bool = False
    listens: bool = False
    prepares: bool | None = None
    closes: bool = True
    ahead: float = 0.0


def probe(conninfo: str, channel: str) -> Probe:
    """Find out, blocking; in a thread, because the caller's may have an event loop."""
    with ThreadPoolExecutor(1, "pgeverything probe") as thread:
        return thread.submit(lambda: asyncio.run(aprobe(conninfo, channel))).result()


async def aprobe(conninfo: str, channel: str) -> Probe:
    """Find out, awaiting.

    Args:
        conninfo: where to connect to.
        channel: what workers listen to; a test notification is sent on it.
    """
    try:
        async with await _connect(conninfo) as connection:
            # A pooler makes up the number by which its client may cancel a statement; the server sends its process's.
            cursor = await connection.execute("select pg_backend_pid()")
            pooled = await cursor.fetchone() != (connection.info.backend_pid,)
            sent = time.time()
            row = await (await connection.execute("select extract(epoch from clock_timestamp())::float8")).fetchone()
            ahead = row[0] - (sent + time.time()) / 2 if row else 0.0
    except psycopg.OperationalError as error:
        return Probe(" ".join(str(error).split()) or type(error).__name__)
    listens = await _hears(conninfo, channel)
    prepares = await _prepares(conninfo) if pooled and settings.flag("PGEVERYTHING_PREPARE", True) else None
    closes = psycopg.capabilities.has_send_close_prepared()
    return Probe(None, pooled, listens, prepares, closes, ahead)


async def _connect(conninfo: str) -> psycopg.AsyncConnection[Any]:
    options: dict[str, Any] = {"fallback_application_name": "pgeverything doctor"}
    if "connect_timeout" not in conninfo_to_dict(conninfo) and "PGCONNECT_TIMEOUT" not in os.environ:
        options["connect_timeout"] = _CONNECT_SECONDS
    return await psycopg.AsyncConnection.connect(conninfo, autocommit=True, prepare_threshold=None, **options)


async def _hears(conninfo: str, channel: str) -> bool:
    """Whether a worker would trust LISTEN here: by the worker's own test."""

    async def notify(payload: str) -> None:
        async with await _connect(conninfo) as connection:
            await connection.execute("select pg_notify(%s, %s)", [channel, payload])

    listener = Listener(conninfo, channel, lambda _: None, notify)
    listening = asyncio.create_task(listener.run())
    try:
        await listener.tested.wait()
        return listener.works
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)


async def _prepares(conninfo: str) -> bool | None:
    """Run a prepared statement again while others keep the sessions of the server that it was prepared in."""
    async with AsyncExitStack() as held:

        async def connect() -> psycopg.AsyncConnection[Any]:
            connection = await _connect(conninfo)
            held.push_async_callback(connection.close)  # not `async with`: it would ask the server before it closes
            return connection

        async def process() -> Any:
            return await (await connection.execute("select pg_backend_pid()")).fetchone()

        try:
            async with asyncio.timeout(_TRY_SECONDS):
                connection = await connect()
                connection.prepare_threshold = 0
                first = await process()
                for _ in range(_SESSIONS):
                    other = await connect()
                    await other.execute("begin")
                    await other.execute("select 1")
                    if await process() != first:
                        return True
        except (pg.InvalidSqlStatementName, pg.DuplicatePreparedStatement):
            return False
        except (TimeoutError, pg.OperationalError):
            pass  # no session was to be had
    return None
