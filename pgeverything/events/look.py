"""Looking at the log: its end, versions, and who holds readers back."""

from __future__ import annotations

from dataclasses import dataclass

from ..engine.plan import Plan, Query, Rows, one_or_none, whole
from ..engine.statements import statements
from ..jobs.values import check_name
from .patterns import check_topic, compile_pattern
from .read import horizon

SQL = statements("events")


@dataclass(frozen=True, slots=True)
class OpenPublisher:
    """A transaction that has published and not ended: readers do not pass `position` before it does.

    `age` is in seconds since its transaction began. `state` and `query` are those of `pg_stat_activity`: `idle in
    transaction` is a program that forgot to commit. A prepared transaction has no `pid` but a `prepared` name, and is
    ended with `COMMIT PREPARED` or `ROLLBACK PREPARED`.
    """

    position: int
    pid: int | None
    prepared: str | None
    user: str | None
    application: str
    state: str
    age: float
    query: str


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic of the log: how many events are kept, in how many bytes of data as stored, and where the last one is."""

    name: str
    events: int
    bytes: int
    last_position: int | None


def head() -> Plan[int]:
    """Return the position of the last event that can be read now, 0 when there has been none.

    Raises:
        UnsafeRead: this transaction is REPEATABLE READ or SERIALIZABLE, or the server is a standby.
    """
    dropped = yield from Query(SQL["dropped"], {}, whole)
    return (yield from horizon(dropped))


def version(topic: str, key: str) -> Plan[int]:
    """Return the version of a topic and key: how many events they have had, 0 for none."""
    check_topic(topic)
    check_name(key, "key", 1024)
    return (yield from Query(SQL["version"], {"topic": topic, "key": key}, one_or_none)) or 0


def topics(pattern: str | None = None) -> Plan[list[Topic]]:
    """Return the topics, by name, with what is committed of each.

    The counts are exact. What a worker has counted, partition by partition, is added up; the rest, at most 5 million
    events where a worker runs, is read through, which takes about a second.

    Args:
        pattern: only these topics; `*` is one token, `>` the rest.
    """
    return (yield from Query(SQL["topics"], compile_pattern(pattern).params(), _topics))


def _topics(rows: Rows) -> list[Topic]:
    return [Topic(*row) for row in rows]


def stalled_by() -> Plan[list[OpenPublisher]]:
    """Return the open publishers, oldest fence first: readers get no further than the position of the first.

    An empty list means that readers see everything that is committed. A publisher that is there for milliseconds is
    nothing to worry about; one with an `age` of minutes keeps every reader and subscriber waiting.
    """
    return (yield from Query(SQL["stalled_by"], {}, _publishers))


def _publishers(rows: Rows) -> list[OpenPublisher]:
    return [OpenPublisher(*row) for row in rows]
