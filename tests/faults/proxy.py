"""A connection that fails when it is told to: a proxy between a worker and its server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Self

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url


class Proxy:
    """Passes bytes between clients and the server of `url`, in the test's own event loop.

    Attributes:
        url: the database behind the proxy.
        dropped: set when an answer was dropped.
    """

    def __init__(self, url: str) -> None:
        self._server = conninfo_to_dict(url)
        self._original = make_url(url)
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._mark: bytes | None = None
        self.dropped = asyncio.Event()
        self._passing = asyncio.Event()
        self._passing.set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        # The server's own address is in the query of the URL when it is a Unix socket's.
        query = {name: value for name, value in self._original.query.items() if name not in {"host", "port"}}
        url = self._original.set(host="127.0.0.1", port=port, query=query)
        self.url = url.render_as_string(hide_password=False)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()
        self._passing.set()
        for writer in self._connections.values():
            writer.transport.abort()
        await asyncio.gather(*self._connections)

    def drop_answer_to(self, mark: bytes) -> None:
        """Let the next request that contains these bytes reach the server, and break the connection at its answer."""
        self._mark = mark
        self.dropped.clear()

    def hang(self) -> None:
        """Pass nothing on, and tell nobody."""
        self._passing.clear()

    def resume(self) -> None:
        """Pass on again, beginning with what has piled up."""
        self._passing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections[task] = writer
        task.add_done_callback(self._connections.pop)
        host, port = str(self._server.get("host") or "127.0.0.1"), str(self._server.get("port") or 5432)
        if host.startswith("/"):
            server_reader, server_writer = await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            server_reader, server_writer = await asyncio.open_connection(host, int(port))
        last = False  # the next answer is the one to drop

        async def request(data: bytes) -> None:
            nonlocal last
            if self._mark is not None and self._mark in data:
                self._mark, last = None, True
            server_writer.write(data)
            await server_writer.drain()

        async def answer(data: bytes) -> None:
            if last:
                # What came back follows the commit: the statement is a transaction of its own.
                self.dropped.set()
                raise ConnectionResetError("the test dropped the answer")
            writer.write(data)
            await writer.drain()

        pumps = [
            asyncio.create_task(self._pump(reader, request)),
            asyncio.create_task(self._pump(server_reader, answer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in (writer, server_writer):
                end.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, send: Callable[[bytes], Awaitable[None]]) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._passing.wait()
                await send(data)
