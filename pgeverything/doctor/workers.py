"""The workers: whether they live, keep their leases, and do what is to be done now and then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..engine.plan import Plan, Query, Rows, same
from ..engine.statements import statements
from .values import Check, ago, spell

SQL = statements("doctor")

OVERDUE = 300.0
"""Seconds that a sweep may be overdue while a worker lives."""


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """A registered worker process.

    `heartbeat_age` and `lease` are in seconds; it is `alive` while its last heartbeat is younger than its lease.
    `running` counts the jobs in its name; `finished`, `failed` and `refused` are what it reports with its heartbeats.
    """

    id: int
    name: str
    queues: Sequence[str]
    concurrency: int
    started_at: datetime
    heartbeat_age: float
    lease: float
    alive: bool
    asleep: bool
    running: int
    finished: int
    failed: int
    refused: int


def workers() -> Plan[list[WorkerStatus]]:
    """Return every registered worker, the oldest first; those that fell silent stay until others take their jobs."""
    return (yield from Query(SQL["workers"], {}, lambda rows: [WorkerStatus(*row) for row in rows]))


def examine() -> Plan[list[Check]]:
    """Judge the workers."""
    registered = yield from workers()
    sweeps = yield from Query(SQL["sweeps"], {}, same)
    crashing = yield from Query(SQL["crashing"], {}, same)
    return [silent(registered), refused(registered), crashes(crashing), maintenance(registered, sweeps)]


def silent(registered: Sequence[WorkerStatus]) -> Check:
    """Judge whether all of them were heard of."""
    gone = [each for each in registered if not each.alive]
    figures = {"alive": len(registered) - len(gone), "silent": [each.name for each in gone]}
    if not gone:
        found = f"{len(registered)} worker(s), none of them silent" if registered else "there is none"
        return Check("workers", "ok", found, figures=figures)
    shown = [
        f"worker {each.name} was last heard {each.heartbeat_age:.0f} s ago (its lease is {each.lease:g} s) and has "
        f"{each.running} job(s)"
        for each in gone
    ]
    return Check("workers", "problem", spell(shown), "start a worker: any live one takes these jobs over", figures)


def refused(registered: Sequence[WorkerStatus]) -> Check:
    """Judge whether they kept their leases while they worked."""
    late = [each for each in registered if each.alive and each.refused]
    if not late:
        return Check("leases", "ok", "no result came too late")
    found = spell([f"{each.refused} result(s) of worker {each.name}" for each in late])
    fix = "give its workers a longer lease=, and look for handlers that block the event loop or the GIL"
    figures = {each.name: each.refused for each in late}
    return Check("leases", "warning", f"refused, because others had taken the jobs: {found}", fix, figures)


def crashes(rows: Rows) -> Check:
    """Judge (job, task, crashes, whether it died of that)."""
    if not rows:
        return Check("crashes", "ok", "no job has taken its worker down")
    shown = [f"job {job} ({task}) {n} time(s)" for job, task, n, _ in rows]
    fix = "look for what ends the process: memory, a signal, native code; `pgeverything jobs why ID` has its history"
    figures = {str(job): {"task": task, "crashes": n, "dead": dead} for job, task, n, dead in rows}
    return Check("crashes", "warning", f"workers were lost while they ran {spell(shown)}", fix, figures)


def maintenance(registered: Sequence[WorkerStatus], sweeps: Rows) -> Check:
    """Judge whether what is to be done now and then is done: (name, seconds overdue)."""
    figures = {name: round(overdue) for name, overdue in sweeps}
    late = [f"{name} by {ago(overdue)}" for name, overdue in sweeps if overdue > OVERDUE]
    if not late:
        found = "everything that is to be done now and then is done" if sweeps else "no worker has swept yet"
        return Check("maintenance", "ok", found, figures=figures)
    if not any(each.alive for each in registered):
        found = f"no worker lives, so nothing is rescued, promoted, partitioned or swept; overdue: {spell(late)}"
        return Check("maintenance", "warning", found, "start a worker", figures)
    fix = "read the workers' log (logger pgeverything.maintenance)"
    return Check("maintenance", "problem", f"workers live and do not sweep; overdue: {spell(late)}", fix, figures)
