"""What is done on the side: counting, sweeping, bounds. Whoever uses the cache does a little of it now and then."""

from __future__ import annotations

import logging
import time
from types import EllipsisType
from typing import Protocol

from ..engine.plan import Plan, Query, nothing, same
from ..engine.statements import statements
from ..errors import InvalidArgument
from ..jobs.values import MOST_BIGINT, check_whole
from .values import CacheStats, Tally

log = logging.getLogger("pgeverything.cache")
SQL = statements("cache")

COUNT_EVERY = 10.0  # seconds
SWEEP_EVERY = 250  # writes
_LOOKED_AT = 5  # entries for each that was written, so that at most a fifth of all has expired; half a microsecond each
_MOST_AT_ONCE = 10_000


class Caching(Protocol):
    """A namespace of the cache. Its tally is None in the caller's transaction: there, nothing is done on the side."""

    tally: Tally | None


def asked(cache: Caching, hits: int, misses: int) -> Plan[None]:
    """Count keys that were asked for."""
    if (tally := cache.tally) is not None:
        tally.hits += hits
        tally.misses += misses
        if time.monotonic() - tally.since > COUNT_EVERY:
            yield from aside(flush(tally))


def wrote(cache: Caching, entries: int) -> Plan[None]:
    """Note that entries were written; now and then, sweep a little."""
    if (tally := cache.tally) is not None:
        tally.writes += entries
        if tally.writes >= SWEEP_EVERY:
            look_at, tally.writes = tally.writes * _LOOKED_AT, 0
            yield from aside(_sweep(min(look_at, _MOST_AT_ONCE)))


def aside(plan: Plan[object]) -> Plan[None]:
    """Do what must not fail what it is done beside: a role that may only read, for one, may still read."""
    try:
        yield from plan
    except Exception as error:
        log.debug("upkeep of the cache failed: %s", error)


def flush(tally: Tally) -> Plan[None]:
    """Add what this process has counted to what all have."""
    counted = {name: getattr(tally, name) for name in ("hits", "misses", "fills", "waits")}
    for name, n in counted.items():
        setattr(tally, name, getattr(tally, name) - n)
    tally.since = time.monotonic()
    yield from Query(SQL["count"], {"slot": tally.slot} | counted, nothing)


def _sweep(entries: int) -> Plan[bool]:
    deleted, finished = (yield from Query(SQL["sweep"], {"entries": entries}, same))[0]
    if deleted:
        log.debug("swept %s entries from the cache", deleted)
    return bool(finished)


def sweep() -> Plan[None]:
    """Sweep past up to 100,000 entries: what a worker does once a minute."""
    for _ in range(10):
        if (yield from _sweep(_MOST_AT_ONCE)):
            return


def stats(cache: Caching) -> Plan[CacheStats]:
    """Return what is known of the cache. Sweeps past 10,000 entries, so the numbers of a smaller cache are of now."""
    if cache.tally is not None:
        yield from aside(flush(cache.tally))
    yield from aside(_sweep(_MOST_AT_ONCE))
    return CacheStats(*(yield from Query(SQL["stats"], {}, same))[0])


def clear() -> Plan[int]:
    """Delete all entries, a thousand at a time; returns how many had not expired.

    What others compute meanwhile is not stored; what they `set` meanwhile may stay. Waits for transactions that have
    written entries and have not ended.
    """
    after, count = "", 0
    while True:
        last, gone = (yield from Query(SQL["clear"], {"after": after}, same))[0]
        count += int(gone)
        if last is None:
            return count
        after = last


def configure(
    *,
    max_entries: int | EllipsisType | None = ...,
    max_bytes: int | EllipsisType | None = ...,
    logged: bool | EllipsisType = ...,
) -> Plan[None]:
    """Set the bounds of the cache, for all processes; what is not named stays as it is.

    Bounds are kept by estimate: writers and workers delete the oldest entries as they sweep, so that after a burst the
    cache comes down to them within one round of the table.

    Args:
        max_entries: how many entries to keep; None for no bound.
        max_bytes: how many bytes of keys and values, as Postgres stores them, to keep; None for no bound. An entry that
            alone has more is swept, and evicts no other.
        logged: True makes entries survive a crash of the server and reach its standbys, and every write wait for the
            disk; False takes that back. Copies the table, which nobody can use meanwhile; only its owner may.

    Raises:
        InvalidArgument: a bound is no whole number above 0, or nothing was named.
    """
    bounds = {"max_entries": max_entries, "max_bytes": max_bytes}
    given = {name: value for name, value in bounds.items() if value is not ...}
    if not given and logged is ...:
        raise InvalidArgument("configure() needs one of max_entries=, max_bytes=, logged=")
    for name, value in given.items():
        if value is not None:
            check_whole(value, name, 1, MOST_BIGINT)
    if logged is not ... and not isinstance(logged, bool):
        raise InvalidArgument(f"logged={logged!r} must be True or False")
    if given:
        yield from Query(SQL["configure"], dict.fromkeys(bounds) | given | {"given": list(given)}, nothing)
    if logged is not ...:
        yield from Query(SQL["log"], {"logged": logged}, nothing)
