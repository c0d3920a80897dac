"""procrastinate, with psycopg."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

import procrastinate

from peers import QUEUE, Peer, Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg
    from procrastinate.tasks import Task
    from procrastinate.types import JSONDict

_BULK = 5_000
_CONCURRENCY = 10


class ProcrastinateProducer(Producer):
    def __init__(self, task: Task[..., None, ...]) -> None:
        self._task = task

    def enqueue_each(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self._task.defer(number=number)

    def enqueue_many(self, first: int, count: int) -> None:
        for start in range(first, first + count, _BULK):
            numbers = range(start, min(start + _BULK, first + count))
            arguments: list[JSONDict] = [{"number": number} for number in numbers]
            self._task.batch_defer(*arguments)


class Procrastinate(Peer):
    name = "procrastinate"
    choices = (
        f"synchronous client (its pool checks a connection at each use), batch_defer of {_BULK:,}, "
        f"worker concurrency {_CONCURRENCY}, LISTEN on, finished jobs kept (default)"
    )
    drained = "SELECT NOT EXISTS (SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing'))"
    pending = "SELECT count(*) FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
    finished = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"

    def install(self, url: str) -> None:
        app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))
        with app.open():
            app.schema_manager.apply_schema()

    @contextmanager
    def producer(self, url: str) -> Iterator[ProcrastinateProducer]:
        app = procrastinate.App(connector=procrastinate.SyncPsycopgConnector(conninfo=url))

        @app.task(queue=QUEUE, name="noop")
        def noop(number: int) -> None:
            """Stand in for the worker's task of the same name."""

        with app.open():
            yield ProcrastinateProducer(noop)

    def work(self, url: str, handler: Callable[[int], None], ready: Callable[[], None]) -> None:
        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=url))

        @app.task(queue=QUEUE, name="noop")
        async def noop(number: int) -> None:
            handler(number)

        async def run() -> None:
            async with app.open_async():
                ready()
                await app.run_worker_async(queues=[QUEUE], concurrency=_CONCURRENCY)

        asyncio.run(run())

    def fill_finished(self, connection: psycopg.Connection, count: int) -> None:
        # The foreign key check of each event would take longer than the insert, and these rows are right.
        connection.execute("SET session_replication_role = replica")
        connection.execute(
            """
            INSERT INTO procrastinate_jobs (queue_name, task_name, args, status, attempts)
            SELECT %s, 'noop', jsonb_build_object('number', n), 'succeeded', 1
            FROM generate_series(1, %s) AS n
            """,
            (QUEUE, count),
        )
        connection.execute(
            """
            INSERT INTO procrastinate_events (job_id, type, at)
            SELECT job.id, event.type::procrastinate_job_event_type, clock_timestamp() - interval '1 day'
            FROM procrastinate_jobs AS job, unnest(ARRAY['deferred', 'started', 'succeeded']) AS event (type)
            """
        )
        connection.execute("RESET session_replication_role")


PEER = Procrastinate()
