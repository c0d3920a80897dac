"""LISTEN on a connection of its own: tested before it is trusted, opened again when it is lost.

A notification is a hint and never the only way to learn of work: whoever waits here also polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Awaitable, Callable

import psycopg
from psycopg import sql

log = logging.getLogger("pgeverything.listen")

_TEST_SECONDS = 2.0
_LONGEST_RETRY = 30.0


class Listener:
    """Calls `heard(payload)` for every notification, and `heard("")` when some may have been missed.

    Args:
        conninfo: a direct connection; behind a transaction pooler LISTEN does not work, which the self-test finds out.
        channel: what to listen to.
        heard: called in the event loop.
        notify: sends a notification through another connection, as a publisher would.
        own: a channel of this process alone, for hints that nobody else needs to be woken by.
    """

    def __init__(
        self,
        conninfo: str,
        channel: str,
        heard: Callable[[str], None],
        notify: Callable[[str], Awaitable[None]],
        own: str | None = None,
    ) -> None:
        self._conninfo, self._heard, self._notify = conninfo, heard, notify
        self._channels = [channel] if own is None else [channel, own]
        self.works = False
        self.tested = asyncio.Event()

    async def run(self) -> None:
        """Listen until cancelled, reconnecting with growing pauses."""
        pause = 0.1
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True, fallback_application_name="pgeverything listen"
                ) as connection:
                    for channel in self._channels:
                        await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
                    if not await self._self_test(connection):
                        log.warning("LISTEN does not work on this connection (a transaction pooler?): polling instead")
                        self.tested.set()
                        return
                    self.works = True
                    self.tested.set()
                    self._heard("")
                    pause = 0.1
                    await self._listen(connection)
            except psycopg.Error as error:
                log.warning("the LISTEN connection was lost, polling until it is back: %s", error)
            self.works = False
            self.tested.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_RETRY)

    async def _listen(self, connection: psycopg.AsyncConnection) -> None:
        """Pass notifications on until the connection is lost.

        Every listening process is sent every notification, so taking one has to be cheap: libpq's own calls take less
        than half of the time of `connection.notifies()`.
        """
        loop, socket, pgconn = asyncio.get_running_loop(), connection.fileno(), connection.pgconn
        encoding = connection.info.encoding
        lost: asyncio.Future[None] = loop.create_future()

        def arrived() -> None:
            try:
                pgconn.consume_input()
            except psycopg.Error as error:
                loop.remove_reader(socket)
                if not lost.done():
                    lost.set_exception(error)
            while notification := pgconn.notifies():
                self._heard(notification.extra.decode(encoding, "replace"))

        loop.add_reader(socket, arrived)
        try:
            arrived()
            await lost
        finally:
            loop.remove_reader(socket)

    async def _self_test(self, connection: psycopg.AsyncConnection) -> bool:
        """Whether a notification that another connection sends arrives here."""
        probe = f"test {uuid.uuid4()}"
        await self._notify(probe)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TEST_SECONDS):
                async for notification in connection.notifies():
                    if notification.payload == probe:
                        return True
                    self._heard(notification.payload)
        return False
