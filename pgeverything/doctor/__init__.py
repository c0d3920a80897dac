"""The health check: looks at everything that can go wrong, and says what is wrong, why, and what to do.

A module adds its own by a line in :data:`EXAMINATIONS`: a name, and a plan that returns its checks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..engine.plan import Atomic, Plan, Query, nothing
from ..engine.probe import Probe
from ..engine.refusals import connection_lost
from ..engine.statements import statements
from ..errors import NotMigrated, SchemaError, UnsafeRead
from . import modules, queues, schema, server, vacuum, workers
from .reach import unreachable, way
from .values import Check, Examination, Health, Verdict

__all__ = ["EXAMINATIONS", "Check", "Examination", "Health", "Verdict", "doctor", "unreachable"]

SQL = statements("doctor")
STATUS = statements("status")

SERVER: tuple[Examination, ...] = (
    Examination("connections", server.connections),
    Examination("wraparound", server.wraparound),
    Examination("vacuum", vacuum.held_back),
)
"""What can be examined without our schema."""

EXAMINATIONS: tuple[Examination, ...] = (
    Examination("privileges", schema.rights),
    Examination("indexes", schema.indexes),
    Examination("partitions", schema.partitions),
    Examination("autovacuum", vacuum.tables),
    Examination("locks", vacuum.blocked),
    Examination("workers", workers.examine),
    Examination("queues", queues.examine),
    Examination("dead letters", queues.dead_letters),
    Examination("events", modules.events),
    Examination("subscriptions", modules.subscriptions),
    Examination("schedules", modules.schedules),
    Examination("cache", modules.cache),
    Examination("audit", modules.audit),
)
"""What the modules examine."""


def doctor(name: str, probe: Probe) -> Plan[Health]:
    """Examine everything.

    Args:
        name: our schema.
        probe: the way to the database.
    """
    standby: bool = yield from Query(STATUS["server"], {}, lambda rows: rows[0][3])
    checks = list((yield from _examine(Examination("server", lambda: server.server(standby)))))
    checks += way(probe)
    for each in SERVER:
        checks += yield from _examine(each)
    (fits,) = yield from _examine(Examination("schema", lambda: schema.schema(name)))
    checks.append(fits)
    if fits.verdict == "ok":
        for each in EXAMINATIONS:
            checks += yield from _examine(each)
    return Health.of(checks, migrated=False if fits.figures.get("pending") else fits.verdict == "ok" or None)


def _examine(examination: Examination) -> Plan[Sequence[Check]]:
    """Carry one out. What this role may not see is unknown, and never keeps the others from being made."""
    try:
        return (yield from Atomic(_bounded(examination.plan)))
    except Exception as error:
        original = error.__cause__ if isinstance(error, SchemaError | UnsafeRead) and error.__cause__ else error
        state, why = getattr(original, "sqlstate", None), str(original).partition("\n")[0]
        if isinstance(error, NotMigrated):
            fix = "restore it from the output of `pgeverything migrate --sql`"
            return [Check(examination.name, "problem", f"something of the schema is gone ({why})", fix)]
        if isinstance(error, SchemaError) or state == "42501":
            fix = "grant it, or ask as another role (docs/how-to/roles.md)"
            return [Check(examination.name, "unknown", f"this role may not look: {why}", fix)]
        if state in ("55P03", "57014"):
            fix = "look for who holds an exclusive lock (pg_locks), and try again"
            return [Check(examination.name, "problem", f"a table is locked or far too slow to read ({why})", fix)]
        if state is None or connection_lost(error):
            raise
        return [
            Check(
                examination.name, "unknown", f"it could not be examined: {why}", "see what Postgres says, and try again"
            )
        ]


def _bounded(plan: Callable[[], Plan[Sequence[Check]]]) -> Plan[Sequence[Check]]:
    yield from Query(SQL["bounds"], {}, nothing)
    return (yield from plan())
