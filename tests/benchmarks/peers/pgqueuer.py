"""pgqueuer, with asyncpg."""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg  # type: ignore[import-untyped]
from pgqueuer import PgQueuer
from pgqueuer.queries import Queries

from peers import QUEUE, Peer, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from pgqueuer.models import Job

_BULK = 5_000
_BATCH = 500


class PgQueuerProducer(Producer):
    def __init__(self, loop: asyncio.AbstractEventLoop, queries: Queries) -> None:
        self._loop = loop
        self._queries = queries

    def enqueue_each(self, first: int, count: int) -> None:
        async def run() -> None:
            for number in range(first, first + count):
                await self._queries.enqueue(QUEUE, b"%d" % number)

        self._loop.run_until_complete(run())

    def enqueue_many(self, first: int, count: int) -> None:
        async def run() -> None:
            for start in range(first, first + count, _BULK):
                numbers = range(start, min(start + _BULK, first + count))
                size = len(numbers)
                await self._queries.enqueue([QUEUE] * size, [b"%d" % number for number in numbers], [0] * size)

        self._loop.run_until_complete(run())


class PgQueuerPeer(Peer):
    name = "pgqueuer"
    choices = f"asyncpg, enqueue of {_BULK:,}, worker batch_size {_BATCH} on one connection"
    drained = "SELECT NOT EXISTS (SELECT FROM pgqueuer)"
    pending = "SELECT count(*) FROM pgqueuer"
    finished = "SELECT count(*) FROM pgqueuer_log WHERE status = 'successful'"

    def install(self, url: str) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(url)
            try:
                await Queries.from_asyncpg_connection(connection).install()
            finally:
                await connection.close()

        asyncio.run(run())

    @contextmanager
    def producer(self, url: str) -> Iterator[PgQueuerProducer]:
        with asyncio.Runner() as runner:
            connection = runner.run(asyncpg.connect(url))
            try:
                yield PgQueuerProducer(runner.get_loop(), Queries.from_asyncpg_connection(connection))
            finally:
                runner.run(connection.close())

    def work(self, url: str, handler: Callable[[int], None], ready: Callable[[], None]) -> None:
        async def run() -> None:
            connection = await asyncpg.connect(url)
            queuer = PgQueuer.from_asyncpg_connection(connection)

            @queuer.entrypoint(QUEUE)
            async def noop(job: Job) -> None:
                handler(int(job.payload or b""))

            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, queuer.shutdown.set)
            ready()
            await queuer.run(batch_size=_BATCH)
            await connection.close()

        asyncio.run(run())

    def fill_finished(self, connection: psycopg.Connection, count: int) -> None:
        # A finished job leaves its row and keeps one log line for each state it had; the worker's half-minute
        # aggregation has long marked them as counted.
        connection.execute(
            """
            INSERT INTO pgqueuer_log (created, job_id, status, priority, entrypoint, aggregated)
            SELECT clock_timestamp() - interval '1 day', -n, state.status, 0, %s, true
            FROM generate_series(1, %s) AS n,
                 unnest(ARRAY['queued', 'picked', 'successful']::pgqueuer_status[]) AS state (status)
            """,
            (QUEUE, count),
        )


PEER = PgQueuerPeer()
