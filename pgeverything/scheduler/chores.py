"""What workers do for the scheduler now and then."""

from __future__ import annotations

import logging
from datetime import timedelta

from ..engine.plan import Plan, Query, nothing, same
from ..engine.statements import statements

log = logging.getLogger("pgeverything.scheduler")
SQL = statements("scheduler")

KEEP = timedelta(days=30)
"""For how long ticks are kept, and schedules that were added at run time and have ended."""


def maintain() -> Plan[None]:
    """Create the daily partitions of ticks ahead, drop them behind, and forget what ended long ago."""
    created, dropped = (yield from Query(SQL["maintain"], {"keep": KEEP.total_seconds()}, same))[0]
    if created or dropped:
        log.info("created %s and dropped %s partitions of ticks", created, dropped)
    yield from Query(SQL["forget_ended"], {"keep": KEEP.total_seconds()}, nothing)
