"""Several database sessions in one test, each doing what it is told when it is told.

A statement that has to wait runs in a thread of its own; the test goes on when the server says that it waits.
"""

from __future__ import annotations

import concurrent.futures
import json
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psycopg

from pgeverything import Event, PgEverything
from pgeverything.app import Bound
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, Rows, same
from pgeverything.engine.statements import statements
from tests.waiting import eventually

WORKER = statements("worker")
EVENTS = statements("events")
PUBSUB = statements("pubsub")


class Session:
    """A connection, and the worker's own statements on it. Outside `begin()` each statement commits by itself."""

    def __init__(self, url: str, pg: PgEverything, observer: psycopg.Connection[Any]) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.connection.execute("set lock_timeout = '10s'")  # who waits and should not fails, and does not hang
        self.pid = self.connection.info.backend_pid
        self.tx: Bound = pg.on(self.connection)
        self._observer = observer
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def begin(self, isolation: str = "read committed") -> None:
        self.connection.execute(f"begin isolation level {isolation}".encode())

    def commit(self) -> None:
        self.connection.execute("commit")

    def rollback(self) -> None:
        self.connection.execute("rollback")

    def sql(self, text: str, *params: object) -> list[tuple[Any, ...]]:
        cursor = self.connection.execute(text.encode(), params)
        return cursor.fetchall() if cursor.description else []

    def run(self, statement: str, **params: object) -> Rows:
        """Run a statement of the worker."""
        return PsycopgCarrier(self.connection, "pgeverything").execute(Query(WORKER[statement], params, same))

    def events(self, statement: str, **params: object) -> Rows:
        """Run a statement of the event log."""
        return PsycopgCarrier(self.connection, "pgeverything").execute(Query(EVENTS[statement], params, same))

    def pubsub(self, statement: str, **params: object) -> Rows:
        """Run a statement of pub/sub."""
        return PsycopgCarrier(self.connection, "pgeverything").execute(Query(PUBSUB[statement], params, same))

    def waiting(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        """Start a call that has to wait for another session's lock; return when it does."""
        future = self._thread.submit(call, *args, **kwargs)

        def blocked() -> bool:
            assert not future.done(), f"it did not wait, it returned {future.result()!r}"
            row = self._observer.execute("select cardinality(pg_blocking_pids(%s)) > 0", [self.pid]).fetchone()
            return bool(row and row[0])

        eventually(blocked, "the statement to wait for a lock")
        return future

    # What a worker does, by its statements ---------------------------------------------------------------------------

    def register(self, lease: float = 30.0) -> int:
        rows = self.run("register", name=f"session {self.pid}", queues=["default"], concurrency=10, lease=lease)
        return int(rows[0][0])

    def claim(self, worker: int, limit: int = 100, *, soon: bool = False) -> list[tuple[int, int]]:
        """Claim from the front; return (job, token) of each."""
        rows = self.run("claim", queues=["default"], priorities=[0], after=[0], worker=worker, limit=limit, soon=soon)
        return sorted((row[0], row[1]) for row in rows)

    def finish(self, worker: int, claimed: list[tuple[int, int]]) -> list[int]:
        """Acknowledge success; return the accepted jobs."""
        count = len(claimed)
        return sorted(
            self.run(
                "finish",
                worker=worker,
                jobs=[job for job, _ in claimed],
                tokens=[token for _, token in claimed],
                states=["succeeded"] * count,
                results=[None] * count,
                reasons=[None] * count,
            )[0][0]
        )

    def fail(self, worker: int, claimed: list[tuple[int, int]], delay: float | None) -> list[int]:
        """Acknowledge failure; return the accepted jobs."""
        count = len(claimed)
        return sorted(
            self.run(
                "fail",
                worker=worker,
                jobs=[job for job, _ in claimed],
                tokens=[token for _, token in claimed],
                delays=[delay] * count,
                used=[1] * count,
                reasons=["it failed"] * count,
                fingerprints=["f"] * count,
                errors=[json.dumps({"type": "E", "message": "m"})] * count,
            )[0][0]
        )

    def advance(self, batch: int = 1000) -> int:
        return int(self.run("advance", batch=batch)[0][0])

    def rescue(self, stray: float = 30.0) -> int:
        return int(self.run("rescue", stray=stray, most=3, apart=30.0)[0][0])

    def silence(self, worker: int) -> None:
        """Make the worker's last heartbeat an old one."""
        self.sql("update pgeverything.workers set heartbeat_at = now() - interval '1 hour' where id = %s", worker)

    def close(self) -> None:
        self.connection.close()
        self._thread.shutdown()


class Sessions:
    """Opens sessions on one database and closes them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._all: list[Session] = []

    def __enter__(self) -> Self:
        self._pg = PgEverything(self._url)
        self._observer = psycopg.connect(self._url, autocommit=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:  # a statement that still waits would hold up the end of its thread
            for session in self._all:
                self._observer.execute("select pg_terminate_backend(%s)", [session.pid])
        for session in self._all:
            session.close()
        self._observer.close()
        self._pg.close()

    def open(self) -> Session:
        self._all.append(Session(self._url, self._pg, self._observer))
        return self._all[-1]

    def settled(self, pid: int) -> None:
        """Wait until a backend that was told to end has ended."""
        gone = "select not exists (select from pg_stat_activity where pid = %s)"
        eventually(lambda: (self._observer.execute(gone, [pid]).fetchone() or (False,))[0], "the backend to end")

    def three(self) -> tuple[Session, Session, Session]:
        return self.open(), self.open(), self.open()


def append(session: Session, data: Any, **options: Any) -> Event:
    return session.tx.events.append("t", data, **options)
