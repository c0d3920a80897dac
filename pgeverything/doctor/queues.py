"""Queues and dead letters: work that nobody takes, that waits too long, or that failed."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.plan import Plan, Query, Rows, same
from ..engine.statements import statements
from ..jobs.control import queues
from ..jobs.values import Queue
from .values import Check, ago, spell

SQL = statements("doctor")

PATIENCE = 30.0
"""Seconds that work may lie without a live worker: less is a deployment, not a fault."""
SLOW = 300.0
"""Seconds that work may lie with one."""
RECENT = 3600.0
"""Seconds that a dead letter is new."""


def examine() -> Plan[list[Check]]:
    """Judge the queues."""
    oldest = yield from Query(SQL["oldest"], {}, same)
    there = yield from queues()
    return [starved(oldest), backlog(oldest), paused(there), full(there)]


def starved(rows: Rows) -> Check:
    """Judge whether all work has a worker."""
    left = {name: age for name, age, _, served, is_paused in rows if not served and not is_paused and age > PATIENCE}
    if not left:
        return Check("queues", "ok", "a worker serves every queue with work")
    shown = [f"queue {name!r} has work that is {ago(age)} old and no live worker" for name, age in left.items()]
    fix = f"start a worker: `pgeverything worker APP --queues {','.join(left)}`"
    return Check("queues", "problem", spell(shown), fix, {"seconds": left})


def backlog(rows: Rows) -> Check:
    """Judge whether the workers keep up, by the jobs that were ready at once: others have waited for their time."""
    slow = {name: age for name, _, age, served, stop in rows if served and not stop and age is not None and age > SLOW}
    if not slow:
        return Check("backlog", "ok", "no queue is far behind")
    found = spell([f"the oldest ready job of queue {name!r} is {ago(age)} old" for name, age in slow.items()])
    fix = "start more workers or raise their concurrency; look for slow handlers and for a limit of the queue"
    return Check("backlog", "warning", found, fix, {"seconds": slow})


def paused(there: Sequence[Queue]) -> Check:
    """Judge whether work waits for somebody to remember it."""
    held = {each.name: each.ready + each.waiting for each in there if each.paused and each.ready + each.waiting}
    if not held:
        return Check("paused", "ok", "no paused queue holds work")
    found = spell([f"queue {name!r} is paused and holds {n} job(s)" for name, n in held.items()])
    return Check("paused", "warning", found, "`pgeverything queues resume NAME` when it may go on", {"jobs": held})


def full(there: Sequence[Queue]) -> Check:
    """Judge whether producers are held up or turned away."""
    at = [each for each in there if each.max_depth is not None and each.ready + each.waiting >= each.max_depth]
    if not at:
        return Check("limits", "ok", "every queue has room")
    what = {"raise": "enqueue raises QueueFull", "wait": "enqueue waits", "drop": "new jobs are dropped"}
    found = spell([f"queue {each.name!r} is full at {each.max_depth}: {what[each.on_full]}" for each in at])
    fix = "start more workers, or `pgeverything queues configure NAME --max-depth N`"
    return Check("limits", "warning", found, fix, {each.name: each.max_depth for each in at})


def dead_letters() -> Plan[list[Check]]:
    """Judge whether jobs die."""
    return [judge_dead(*(yield from Query(SQL["dead"], {"recent": RECENT}, same))[0])]


def judge_dead(total: int, recent: int, task: str | None, why: str | None, number: int | None) -> Check:
    """Judge how many are dead, how many of them are new, and what most of those are."""
    figures = {"total": total, "recent": recent, "task": task, "why": why, "number": number}
    if not recent:
        return Check("dead letters", "ok", f"{total} dead letter(s), none of the last hour", figures=figures)
    found = f"{recent} job(s) died in the last hour, {total} are dead; most often {task} ({why}, {number} times)"
    fix = "`pgeverything dead groups` shows why; mend the cause, then `pgeverything dead redrive`"
    return Check("dead letters", "warning", found, fix, figures)
