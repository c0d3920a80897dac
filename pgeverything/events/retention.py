"""How long events are kept: whole partitions are dropped, oldest first, and the next ones are created ahead."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from ..durations import Duration, seconds
from ..engine.plan import Plan, Query, Sleep, nothing, one, same, whole
from ..engine.statements import statements
from ..errors import InvalidArgument
from ..jobs.values import MOST_BIGINT, check_whole
from .read import horizon, position_at
from .values import PARTITION

log = logging.getLogger("pgeverything.events")
SQL = statements("events")

AHEAD = 8
"""How many partitions are ready for what comes."""

_REMEMBER = 7 * 86400.0  # seconds for which idempotency keys are remembered
_FORGET = 10_000
_TRIES = 20


def drop_before(before: int | datetime) -> Plan[int]:
    """Drop events before a position or a time, by whole partitions of 5 million positions.

    So some events before it stay, and the partition that is being written to always does. Publishers are not held up,
    nor is a reader; a partition that somebody reads right now, or has read in a transaction that is still open, is left
    for the next time.

    Args:
        before: a position, or a datetime with a time zone.

    Returns:
        The highest position that has been dropped, now or earlier; 0 if none.

    Raises:
        InvalidArgument: it is neither.
    """
    if isinstance(before, datetime):
        if before.tzinfo is None:
            raise InvalidArgument("before must be a datetime with a time zone, for example datetime.now(UTC)")
        upto, _ = yield from position_at(before - timedelta(microseconds=1))
    else:
        check_whole(before, "before", 0, MOST_BIGINT)
        upto = before - 1
    while (yield from Query(SQL["drop"], {"upto": upto}, one)):
        pass
    for attempt in range(_TRIES):
        if attempt:
            yield Sleep(0.02)
        while (yield from Query(SQL["discard"], {}, one)):
            pass
        if not (yield from Query(SQL["discardable"], {}, one)):
            break
    return (yield from Query(SQL["dropped"], {}, whole))


def retain(keep: Duration | None) -> Plan[None]:
    """Keep events for so long, and let workers drop older ones, by whole partitions of 5 million positions.

    Args:
        keep: a duration, like "90d"; None keeps events for ever, which is how a log begins.

    Raises:
        InvalidArgument: it is not a duration.
    """
    length = None if keep is None else seconds(keep, "keep", zero=False)
    yield from Query(SQL["keep"], {"seconds": length}, nothing)


def tend() -> Plan[None]:
    """Do what a log needs now and then: partitions ahead and behind, counts, and old idempotency keys."""
    made = yield from Query(SQL["extend"], {"ahead": AHEAD}, one)
    if made:
        log.info("created %s partitions of the event log", made)
    first = yield from Query(SQL["uncounted"], {}, whole)
    if (yield from horizon(first + PARTITION - 1)) >= first + PARTITION:  # nothing will be added to it
        yield from Query(SQL["count"], {"first": first}, nothing)
    forgotten = yield from Query(SQL["forget"], {"seconds": _REMEMBER, "limit": _FORGET}, same)
    if forgotten:
        log.debug("forgot %s idempotency keys", len(forgotten))
    _, before = (yield from Query(SQL["kept"], {}, same))[0]
    if before is not None:
        old = yield from Query(SQL["dropped"], {}, whole)
        new = yield from drop_before(before)
        if new > old:
            log.info("dropped the events of positions %s to %s", old + 1, new)
