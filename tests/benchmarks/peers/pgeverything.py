"""This project's queue."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from psycopg_pool import ConnectionPool

from peers import QUEUE, Peer, Producer
from pgeverything import PgEverything

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

_BULK = 5_000
_CONCURRENCY = 100


def _ignore(number: int) -> None:
    """The producer's side of a task that only workers run."""


class PgEverythingProducer(Producer):
    def __init__(self, pg: PgEverything) -> None:
        self._task = pg.task(queue=QUEUE, name="noop")(_ignore)

    def enqueue_each(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self._task.enqueue(number)

    def enqueue_many(self, first: int, count: int) -> None:
        for start in range(first, first + count, _BULK):
            numbers = range(start, min(start + _BULK, first + count))
            self._task.enqueue_many([(number,) for number in numbers])


class PgEverythingPeer(Peer):
    name = "pgeverything"
    choices = f"synchronous client, enqueue_many of {_BULK:,}, worker concurrency {_CONCURRENCY}"
    drained = """
        SELECT NOT EXISTS (SELECT FROM pgeverything.ready) AND NOT EXISTS (SELECT FROM pgeverything.running)
    """
    pending = "SELECT (SELECT count(*) FROM pgeverything.ready) + (SELECT count(*) FROM pgeverything.running)"
    finished = "SELECT count(*) FROM pgeverything.finished"

    def install(self, url: str) -> None:
        with ConnectionPool(url, min_size=1) as pool:
            PgEverything(pool).migrate()

    @contextmanager
    def producer(self, url: str) -> Iterator[PgEverythingProducer]:
        with ConnectionPool(url, min_size=1) as pool:
            yield PgEverythingProducer(PgEverything(pool))

    def work(self, url: str, handler: Callable[[int], None], ready: Callable[[], None]) -> None:
        pg = PgEverything(url)

        @pg.task(queue=QUEUE, name="noop")
        async def noop(number: int) -> None:
            handler(number)

        worker = pg.worker(queues=[QUEUE], concurrency=_CONCURRENCY)
        pg.jobs.counts()  # the first use connects
        ready()
        worker.run()

    def fill_finished(self, connection: psycopg.Connection, count: int) -> None:
        # Spread over a week of daily partitions, as a queue that finishes that many would have them.
        connection.execute(
            """
            DO $$ BEGIN FOR d IN 1..7 LOOP
                EXECUTE format('CREATE TABLE pgeverything.finished_%%s PARTITION OF pgeverything.finished '
                               'FOR VALUES FROM (%%L) TO (%%L)',
                               to_char(current_date - d, 'YYYYMMDD'), current_date - d, current_date - d + 1);
            END LOOP; END $$
            """.replace("%%", "%")
        )
        connection.execute(
            """
            INSERT INTO pgeverything.finished (id, queue, task, state, priority, args, created_at, started_at,
                                               finished_at, attempt, crashes, worker)
            SELECT -n, %s, 'noop', 'succeeded', 0, jsonb_build_object('number', n), at, at, at, 1, 0, 1
            FROM generate_series(1, %s) AS n, LATERAL (SELECT current_date - (1 + n %% 7) + time '12:00') AS t (at)
            """,
            (QUEUE, count),
        )


PEER = PgEverythingPeer()
