"""When the rules of a time zone change, next ticks that were computed by the old ones are computed again."""

from __future__ import annotations

import logging

from ..engine.plan import Atomic, Plan, Query, same
from ..engine.statements import statements
from ..errors import InvalidArgument
from .standing import find, stand
from .zones import zone

log = logging.getLogger("pgeverything.scheduler")
SQL = statements("scheduler")

_BATCH = 500


def refresh() -> Plan[int]:
    """Compute next ticks again that were computed by other rules than this machine has; workers do it when they start.

    Returns:
        How many schedules were looked at.
    """
    rows = yield from Query(SQL["other_rules"], {}, same)
    done = 0
    for timezone, rules in rows:
        if rules == _rules_here(timezone, rules):
            continue
        log.info("the rules of %s are not those its next ticks were computed by: computing them again", timezone)
        after = ""
        while True:
            params = {"timezone": timezone, "rules": rules, "after": after, "limit": _BATCH}
            names = [name for (name,) in (yield from Query(SQL["of_rules"], params, same))]
            if not names:
                break
            yield from Atomic(_compute(names))
            done, after = done + len(names), names[-1]
    return done


def _rules_here(timezone: str, stored: str) -> str:
    """Return this machine's rules, or the stored ones where it has none: others will know."""
    try:
        return zone(timezone).rules
    except InvalidArgument:
        return stored


def _compute(names: list[str]) -> Plan[None]:
    for each in (yield from find(names)).values():
        try:
            recurrence = each.timing.recurrence
        except InvalidArgument as error:
            log.warning("the next tick of schedule %r cannot be computed here: %s", each.name, error)
            continue
        following = recurrence.next(each.ticked_until) if each.next_tick is not None else None
        yield from stand(
            each, paused=each.paused, disabled=each.disabled, ticked_until=each.ticked_until, next_tick=following
        )
