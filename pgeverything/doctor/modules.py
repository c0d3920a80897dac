"""The event log, its subscriptions, the scheduler, the cache and the audit trail."""

from __future__ import annotations

from collections.abc import Sequence

from ..audit.track import tracked
from ..audit.values import Tracked
from ..cache.values import CacheStats
from ..engine.plan import Plan, Query, one_or_none, same, whole
from ..engine.statements import statements
from ..events.look import OpenPublisher, stalled_by
from ..pubsub import manage
from ..pubsub.values import Subscription
from ..scheduler.read import troubles
from ..scheduler.values import Trouble
from .values import Check, Verdict, ago, spell

SQL = statements("doctor")
CACHE = statements("cache")

SLOW, STALLED = 5.0, 60.0
"""Seconds for which an open publisher may hold readers back without a word, and without being a problem."""
BEHIND = 300.0
"""Seconds that an event may wait for a subscription."""
UNSEALED = 3600.0
"""Seconds that an entry of the audit trail may wait for its seal."""
OVER = 1.2
"""Times a bound that the cache may hold: bounds are kept by estimate."""
LOOSE, LARGE = 5, 100_000_000
"""Times the size of its values, and bytes, that the cache's table may take."""


def events() -> Plan[list[Check]]:
    """Judge whether readers of the event log get on."""
    at_once = yield from Query(SQL["fence"], {}, whole)
    return [judge_events(at_once, (yield from stalled_by()))]


def judge_events(at_once: int, publishers: Sequence[OpenPublisher]) -> Check:
    """Judge how many positions a session takes at once, and who has published and not ended."""
    if at_once != 1:
        found = f"event_seq gives {at_once} positions to a session at once: readers may miss events"
        return Check("events", "problem", found, "alter sequence event_seq cache 1, and reconnect every publisher")
    figures = {"publishers": len(publishers)}
    if any(each.age is None for each in publishers):
        found = "transactions that have published are open, and this role is not shown since when"
        return Check("events", "unknown", found, "grant it pg_read_all_stats", figures)
    slow = [each for each in publishers if each.age >= SLOW]
    if not slow:
        return Check("events", "ok", "no open transaction holds readers of the event log back", figures=figures)
    shown = [
        f"{f'transaction {each.prepared!r}' if each.prepared else f'pid {each.pid}'} ({each.user}, {each.state}) "
        f"has published, and holds readers back at position {each.position} for {ago(each.age)}"
        for each in slow
    ]
    worst = max(each.age for each in slow)
    fix = "commit or end it (pg_terminate_backend(pid), ROLLBACK PREPARED); `pgeverything events stalled` has more"
    return Check("events", "problem" if worst >= STALLED else "warning", spell(shown), fix, figures)


def subscriptions() -> Plan[list[Check]]:
    """Judge whether subscriptions get on. One that is paused is so on purpose."""
    there = yield from manage.subscriptions()
    return [judge_subscriptions(there, dict((yield from Query(SQL["backlogs"], {}, same))))]


def judge_subscriptions(there: Sequence[Subscription], ages: dict[str, float]) -> Check:
    """Judge them, with the age of the oldest event that each has not taken."""
    problems, warnings, fixes = [], [], []
    for each in there:
        age = ages.get(each.name)
        late = age if age is not None and age >= BEHIND else None
        if each.gap:
            problems.append(f"{each.name!r} has not delivered events that retention has dropped")
            fixes.append("`pgeverything topics seek NAME earliest` goes on with what is left")
        elif each.stopped is not None:
            problems.append(f"{each.name!r} has stopped: {each.stopped}")
            fixes.append("redrive or discard its dead letter, then `pgeverything topics resume NAME`")
        elif late is not None and not each.members:
            problems.append(f"{each.name!r} has no member, and its next event is {ago(late)} old")
            fixes.append("start a worker or a program that subscribes, or `pgeverything topics delete NAME`")
        elif late is not None:
            warnings.append(f"{each.name!r} is {ago(late)} behind with {each.members} member(s)")
            fixes.append("add members, or look at what its handler waits for")
        if each.dead:
            warnings.append(f"{each.name!r} has {each.dead} dead message(s)")
            fixes.append("`pgeverything dead list` shows them")
    figures = {each.name: {"dead": each.dead, "members": each.members, "behind": ages.get(each.name)} for each in there}
    if not problems and not warnings:
        return Check("subscriptions", "ok", f"{len(there)} subscription(s), none of them behind", figures=figures)
    verdict: Verdict = "problem" if problems else "warning"
    return Check("subscriptions", verdict, spell(problems + warnings), "; ".join(dict.fromkeys(fixes)), figures)


def audit() -> Plan[list[Check]]:
    """Judge whether the audit trail sees what it is to see, and is sealed."""
    tables = yield from tracked()
    return [judge_audit(tables, (yield from Query(SQL["unsealed"], {}, one_or_none)))]


def judge_audit(tables: Sequence[Tracked], unsealed: float | None) -> Check:
    """Judge what has changed about tracked tables, and how long the oldest entry has waited for its seal."""
    drift = {each.table: list(each.drift) for each in tables if each.drift}
    figures = {"tables": len(tables), "drift": drift, "unsealed": unsealed}
    if drift:
        found = spell([f"{table}: {'; '.join(what)}" for table, what in drift.items()])
        fix = "`pgeverything audit track TABLE` with the options it should have"
        return Check("audit", "problem", found, fix, figures)
    if unsealed is not None and unsealed >= UNSEALED:
        found = f"entries wait for their seal for {ago(unsealed)}: until then nothing proves that they are unchanged"
        fix = "keep a worker running, and end transactions that are open for so long; `pgeverything audit seal`"
        return Check("audit", "warning", found, fix, figures)
    return Check("audit", "ok", f"{len(tables)} table(s) tracked, as they were when that began", figures=figures)


def schedules() -> Plan[list[Check]]:
    """Judge whether schedules tick."""
    return [judge_schedules((yield from troubles()))]


def judge_schedules(found: Sequence[Trouble]) -> Check:
    """Judge what is wrong with schedules."""
    if not found:
        return Check("schedules", "ok", "no schedule is overdue")
    shown = sorted(found, key=lambda each: each.kind == "disabled")  # which is the least of these
    verdict: Verdict = "warning" if shown[0].kind == "disabled" else "problem"
    fix = "; ".join(dict.fromkeys(each.fix for each in shown))
    figures = {each.name: each.kind for each in found}
    return Check("schedules", verdict, spell([each.found for each in shown]), fix, figures)


def cache() -> Plan[list[Check]]:
    """Judge whether the cache keeps to its bounds. Asks what the last sweep found, and sweeps nothing itself."""
    return [judge_cache(CacheStats(*(yield from Query(CACHE["stats"], {}, same))[0]))]


def judge_cache(stats: CacheStats) -> Check:
    """Judge its numbers."""
    figures = {name: getattr(stats, name) for name in ("entries", "bytes", "disk_bytes", "max_entries", "max_bytes")}
    over = [
        f"{held:,} {what} of at most {most:,}"
        for what, held, most in (("entries", stats.entries, stats.max_entries), ("bytes", stats.bytes, stats.max_bytes))
        if most is not None and held > most * OVER
    ]
    fix = "it is swept by who writes to it and by workers: keep one running"
    if over:
        return Check("cache", "warning", f"the cache holds {' and '.join(over)}", fix, figures)
    if stats.disk_bytes > LARGE and stats.disk_bytes > LOOSE * stats.bytes:
        found = f"the cache's table takes {stats.disk_bytes / 1e6:,.0f} MB for {stats.bytes / 1e6:,.0f} MB of values"
        return Check("cache", "warning", found, f"{fix}; VACUUM FULL it once to give the space back", figures)
    return Check("cache", "ok", f"{stats.entries:,} entries, within bounds", figures=figures)
