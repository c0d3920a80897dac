"""How an installation is: the server, the schema, workers, queues, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .doctor.modules import schedules
from .doctor.queues import starved
from .doctor.server import STANDBY
from .doctor.workers import WorkerStatus, silent, workers
from .engine.plan import Plan, Query, same
from .engine.statements import statements
from .errors import SchemaTooNew
from .jobs.control import queues
from .jobs.read import counts
from .jobs.values import Queue, State
from .schema import migrate

SQL = statements("status")
DOCTOR = statements("doctor")


@dataclass(frozen=True, slots=True)
class Status:
    """All of it; `problems` and `warnings` are sentences that say what is wrong and what to do.

    While a migration is pending, or one is too new for this library, there is nothing more to know: workers, queues and
    counts are empty.
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
    warnings: Sequence[str]


def status(schema: str) -> Plan[Status]:
    """Look at everything once; `doctor` judges it more thoroughly."""
    server, database, role, standby = (yield from Query(SQL["server"], {}, same))[0]
    history = yield from migrate.status(schema)
    pending = [f"{each.version:04d} {each.name}" for each in history if each.applied_at is None]
    migration = max((each.version for each in history if each.applied_at is not None), default=0)
    what = f"schema {schema!r} lacks {', '.join(pending)}: run `pgeverything migrate`" if pending else None
    try:
        yield from migrate.verify(schema, pending_is_fine=True)
    except SchemaTooNew as error:
        what = str(error)
    if what is not None:
        return Status(server, database, role, standby, schema, migration, pending, [], [], {}, [what], [])
    registered = yield from workers()
    oldest = yield from Query(DOCTOR["oldest"], {}, same)
    checks = [starved(oldest), silent(registered), *(yield from schedules())]
    problems = [str(check) for check in checks if check.verdict == "problem"]
    if standby:
        problems.insert(0, f"{STANDBY}: connect to the primary")
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
        problems,
        [str(check) for check in checks if check.verdict == "warning"],
    )
