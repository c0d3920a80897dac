"""What one transaction did, in all modules: they share its number as they share its commit."""

from __future__ import annotations

from dataclasses import dataclass

from .audit import Entry
from .audit.values import read_entries
from .engine.plan import Plan, Query, whole
from .engine.statements import statements
from .events import Event
from .events.values import read_events
from .jobs import Job
from .jobs.read import read_jobs
from .jobs.values import MOST_BIGINT, check_whole

SQL = statements("trace")


@dataclass(frozen=True, slots=True)
class Trace:
    """What a transaction wrote to the audit trail, published and enqueued, each in the order in which it did."""

    transaction_id: int
    entries: tuple[Entry, ...]
    events: tuple[Event, ...]
    jobs: tuple[Job, ...]


def trace(transaction_id: int) -> Plan[Trace]:
    """Return what a transaction did.

    Args:
        transaction_id: its number, which audit entries have, and `tx.transaction_id()` tells.
    """
    check_whole(transaction_id, "transaction_id", 0, MOST_BIGINT)
    params = {"id": transaction_id}
    entries = yield from Query(SQL["entries"], params, read_entries)
    events = yield from Query(SQL["events"], params, read_events)
    jobs = yield from Query(SQL["jobs"], params, read_jobs)
    return Trace(transaction_id, tuple(entries), tuple(events), tuple(jobs))


def current() -> Plan[int]:
    """Return the number of the transaction that is open."""
    return (yield from Query(SQL["current"], {}, whole))
