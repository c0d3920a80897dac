"""How an installation is: the server, the schema, workers, queues, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from .engine.plan import Plan, Query, same
from .engine.statements import statements
from .jobs.control import queues
from .jobs.read import counts
from .jobs.values import Queue, State
from .schema import migrate

SQL = statements("status")

PATIENCE = 30.0  # seconds that work may lie without a live worker: less is a deployment, not a fault


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A registered worker process.

    `heartbeat_age` and `lease` are in seconds; it is `alive` while its last heartbeat is younger than its lease.
    `running` counts the jobs in its name; `finished`, `failed` and `refused` are what it reports with its heartbeats.
    """

    id: int
    name: str
    queues: Sequence[str]
    concurrency: int
    started_at: datetime
    heartbeat_age: float
    lease: float
    alive: bool
    asleep: bool
    running: int
    finished: int
    failed: int
    refused: int


@dataclass(frozen=True, slots=True)
class Status:
    """All of it; `problems` are sentences that say what is wrong and what to do, none when all is well.

    While a migration is pending there is nothing more to know: workers, queues and counts are empty.
    """

    server: str
    database: str
    role: str
    standby: bool
    schema: str
    migration: int
    pending: Sequence[str]
    workers: Sequence[WorkerStatus]
    queues: Sequence[Queue]
    counts: dict[State, int]
    problems: Sequence[str]


def workers() -> Plan[list[WorkerStatus]]:
    """Return every registered worker, the oldest first; those that fell silent stay until others take their jobs."""
    return (yield from Query(SQL["workers"], {}, lambda rows: [WorkerStatus(*row) for row in rows]))


def status(schema: str) -> Plan[Status]:
    """Look at everything once, and judge it."""
    server, database, role, standby = (yield from Query(SQL["server"], {}, same))[0]
    history = yield from migrate.status(schema)
    pending = [f"{each.version:04d} {each.name}" for each in history if each.applied_at is None]
    migration = max((each.version for each in history if each.applied_at is not None), default=0)
    if pending:
        what = f"schema {schema!r} lacks {', '.join(pending)}: run `pgeverything migrate`"
        return Status(server, database, role, standby, schema, migration, pending, [], [], {}, [what])
    registered = yield from workers()
    starved = yield from Query(SQL["starved"], {"patience": PATIENCE}, same)
    return Status(
        server,
        database,
        role,
        standby,
        schema,
        migration,
        pending,
        registered,
        (yield from queues()),
        (yield from counts()),
        problems(registered, [(queue, age) for queue, age in starved], standby=standby),
    )


def problems(registered: Sequence[WorkerStatus], starved: Sequence[tuple[str, float]], *, standby: bool) -> list[str]:
    """Say what is wrong.

    Args:
        registered: the workers.
        starved: queues whose work nobody takes, and for how many seconds its oldest has lain.
        standby: whether the server is one that takes no writes.
    """
    found = []
    if standby:
        found.append("this server is a standby, which takes no writes: connect to the primary")
    found += [
        f"queue {queue!r} has work that is {age:.0f} s old and no live worker: start one that serves it"
        for queue, age in starved
    ]
    found += [
        f"worker {each.name} was last heard {each.heartbeat_age:.0f} s ago (its lease is {each.lease:g} s) and has "
        f"{each.running} job(s): any live worker takes them over"
        for each in registered
        if not each.alive
    ]
    return found
