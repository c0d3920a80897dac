"""Reading the log: how far it is safe, and batches of events."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ..engine.plan import Plan, Query, Rows, same, whole
from ..engine.statements import statements
from ..errors import RetentionGap, UnsafeRead
from .patterns import Topics
from .values import PARTITION, Event, read_events

SQL = statements("events")

_WIDE = 4  # a range of so many batches is read through; in a longer one the events are looked up by topic or key
_RARE = 8  # and so it is again when less than one in so many of its positions was wanted
_MOST_SPAN = 100_000  # positions that one statement reads through


def horizon(after: int = 0, *, own: bool = False) -> Plan[int]:
    """Return the highest position up to which a reader may read and forget: nothing will appear at or below it.

    Cheap when nothing was published above `after`, which a reader who polls passes as the position it is at.

    Args:
        after: what has been read already; the result is never lower.
        own: leave out the fence of this very transaction, which has appended something itself.

    Raises:
        UnsafeRead: this transaction is REPEATABLE READ or SERIALIZABLE, or the server is a standby.
    """
    position, isolation, standby = (yield from Query(SQL["horizon"], {"after": after, "own": own}, same))[0]
    if standby:
        raise UnsafeRead("the event log is read on the primary: a standby does not know its open publishers")
    if position is None:
        raise UnsafeRead(
            f"the event log is read in READ COMMITTED, not in {isolation.upper()}: an older snapshot misses events "
            "below the positions it passes"
        )
    return int(position)


def batch(
    topics: Topics,
    *,
    after: int,
    upto: int,
    limit: int,
    key: str | None = None,
    type: str | None = None,  # noqa: A002 - the public name of the thing
) -> Plan[list[Event]]:
    """Return the first events above `after` and up to `upto`, in order.

    Fewer than `limit` means that there are no more up to `upto`, which must not be above a :func:`horizon`.

    Raises:
        RetentionGap: events above `after` have been dropped.
    """
    return read_events((yield from rows(topics, after=after, upto=upto, limit=limit, key=key, type_=type)))


def rows(
    topics: Topics, *, after: int, upto: int, limit: int, key: str | None, type_: str | None
) -> Plan[list[tuple[Any, ...]]]:
    """Return the same as rows."""
    found: list[tuple[Any, ...]] = []
    filtered = key is not None or not topics.everything
    low, span = after, limit * (_WIDE if filtered else 1)
    dense, empty = key is None, False
    while low < upto and len(found) < limit:
        # A partition at a time, so that a statement locks and plans one and not two hundred.
        end = min(upto, ((low + 1) // PARTITION + 1) * PARTITION - 1)
        wanted = limit - len(found)
        params = topics.params() | {"after": low, "limit": wanted, "key": key, "type": type_}
        more: Rows
        if filtered and not dense and end > low + span:
            more = yield from Query(SQL["far"], params | {"upto": end}, same)
            end, more = more[0][0], [row[1:] for row in more if row[1] is not None]
        else:
            # No more positions than are wanted, near enough: whatever plan is made for that, it is a good one.
            end = min(end, low + span)
            more = yield from Query(SQL["near"], params | {"upto": end}, same)
            dense = len(more) * _RARE >= end - low
            if not filtered and not dense:
                span = min(span * 2, _MOST_SPAN)  # a gap, or events of another type
        empty = empty or not more
        low = int(more[-1][0]) if len(more) == wanted else end
        found += more
    if empty:  # a partition that was dropped has none; one that was not is whole
        yield from check_kept(after)
    return found


def check_kept(after: int) -> Plan[None]:
    """Raise when events above `after` have been dropped.

    To be run after the events were read, in a statement of its own: what was dropped before they were read is seen to
    be dropped then.

    Raises:
        RetentionGap: they have been.
    """
    dropped = yield from Query(SQL["dropped"], {}, whole)
    if after < dropped:
        raise RetentionGap(
            f"events of positions {after + 1} to {dropped} were dropped by retention before they were read here; "
            f"after={dropped} goes on with what is left",
            after + 1,
            dropped,
        )


def position_at(at: datetime) -> Plan[tuple[int, int]]:
    """Return two positions: all events up to the first were recorded by then, all above the second later.

    Between the two, which is nothing or a moment's worth of concurrent publishers, look at `recorded_at`.
    """
    return (yield from Query(SQL["position_at"], {"at": at}, _pair))


def _pair(rows: Rows) -> tuple[int, int]:
    return rows[0][0], rows[0][1]
