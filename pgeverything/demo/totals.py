"""The demo's totals: a table that a durable subscription keeps, and the audit trail watches.

Each parsed file is an event. The workers add it to its package's row in the transaction that acknowledges it, so the
table is right whatever was killed when, and it can be made anew from the log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from ..app import PgEverything
from .tasks import PARSED, TABLES, TOTALS

_PATIENCE = 60.0
_LOOK = 0.05

Counts: TypeAlias = tuple[int, int, int, int]
"""Files, lines, functions and classes."""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the log holds and what the subscription made of it.

    `equal`: whether each package's totals are the sum over its events. `rebuilt`: whether they were again, `seconds`
    after the table was emptied and the subscription rewound.
    """

    events: int
    packages: int
    equal: bool
    rebuilt: bool
    seconds: float


@dataclass(frozen=True, slots=True)
class Trail:
    """What the audit trail tells: of a package's row, and of the whole table at an earlier time.

    `as_of` is whether the trail gives the table as it was then; `changed` counts the rows that are others now.
    """

    package: str
    changes: int
    actor: str | None
    reason: str | None
    as_of: bool
    changed: int


class Projection:
    """The table, the subscription and the log.

    Args:
        pg: the demo's schema.
        check: raises when the workers have ended.
    """

    def __init__(self, pg: PgEverything, check: Callable[[], object]) -> None:
        self._pg, self._check = pg, check

    def settled(self) -> dict[str, Counts]:
        """Wait until the subscription has handled every event, and return the table."""
        deadline = time.monotonic() + _PATIENCE
        while (lag := self._pg.pubsub.lag(TOTALS)).events:
            self._check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"subscription {TOTALS!r} is {lag.events} events behind after {_PATIENCE:g} s")
            time.sleep(_LOOK)
        with self._pg.transaction() as tx:
            rows = tx.connection.execute(f"select * from {TABLES}.totals").fetchall()  # noqa: S608 - a constant
        return {row[0]: row[1:] for row in rows}

    def summed(self) -> dict[str, Counts]:
        """Return what the table must hold: the sum over the log."""
        found: dict[str, Counts] = {}
        for package, counts in self._events():
            found[package] = _plus(found.get(package, (0, 0, 0, 0)), counts)
        return found

    def _events(self) -> Iterator[tuple[str, Counts]]:
        for event in self._pg.events.read(PARSED):
            data = event.data
            yield str(event.key), (1, data["lines"], data["functions"], data["classes"])

    def rebuild(self) -> dict[str, Counts]:
        """Empty the table and rewind the subscription in one transaction; return the table when it is full again."""
        with self._pg.transaction() as tx:
            tx.audit.context(actor="the demo", reason="rebuild")
            # First the rows and then the subscription, as who handles an event does: so they cannot deadlock.
            tx.connection.execute(f"delete from {TABLES}.totals")  # noqa: S608 - a constant
            tx.pubsub.seek(TOTALS, "earliest")
        return self.settled()

    def totals(self) -> Totals:
        """Compare the table with the log, and again after a rebuild."""
        held, due = self.settled(), self.summed()
        began = time.monotonic()
        rebuilt = self.rebuild()
        seconds = time.monotonic() - began
        return Totals(sum(counts[0] for counts in due.values()), len(due), held == due, rebuilt == due, seconds)

    def trail(self, package: str, then: datetime, was: dict[str, Counts]) -> Trail:
        """Ask the audit trail about a package's row, and for the whole table as it was at a time."""
        history = list(self._pg.audit.history(f"{TABLES}.totals", package))
        rows = self._pg.audit.as_of(f"{TABLES}.totals", then)
        now = self.settled()
        return Trail(
            package=package,
            changes=len(history),
            actor=history[-1].actor,
            reason=history[-1].reason,
            as_of={row["package"]: _counts(row) for row in rows} == was,
            changed=sum(now[name] != was.get(name) for name in now),
        )


def _plus(one: Counts, other: Counts) -> Counts:
    return (one[0] + other[0], one[1] + other[1], one[2] + other[2], one[3] + other[3])


def _counts(row: dict[str, Any]) -> Counts:
    return row["files"], row["lines"], row["functions"], row["classes"]
