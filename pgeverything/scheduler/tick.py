"""The tick: from schedules that are due to jobs, in one transaction.

Two statements, whatever the number of schedules: one locks those that are due, one writes everything. Between them
Python computes. Who loses the connection, the process or the machine anywhere in it has done nothing at all, and the
next one to look finds the schedules due as before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.plan import Atomic, Plan, Query, Rows, one, same
from ..engine.statements import statements
from ..errors import PgEverythingError
from .policy import Decision, Due, decide
from .standing import read_timing

SQL = statements("scheduler")

BATCH = 100
MOST_FATES = 1000  # ticks that one transaction is about, so that catching up after a downtime does not make a long one


@dataclass(frozen=True, slots=True)
class Ticked:
    """What one pass did: `acted` schedules, jobs on `queues`; and in how many seconds the next schedule is due.

    `unreadable` are schedules that this process cannot compute, with the reason: they are for another one.
    """

    acted: int
    queues: frozenset[str]
    wait: float | None
    unreadable: Mapping[str, str]


class TickFailed(PgEverythingError):
    """The schedules that were due could not be acted on; the cause says why. `names` are those schedules."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(f"could not act on {', '.join(names)}")
        self.names = names


def next_due(without: Sequence[str] = ()) -> Plan[float | None]:
    """Return in how many seconds the next schedule is due, below 0 when one is overdue, None when there is none."""
    seconds: float | None = yield from Query(SQL["next"], {"without": list(without)}, one)
    return seconds


def tick(without: Sequence[str] = (), most: int = BATCH) -> Plan[Ticked]:
    """Act on schedules that are due and that nobody else is acting on, the longest overdue first.

    Args:
        without: schedules to leave to others.
        most: how many at most.

    Raises:
        TickFailed: the database refused something; then nothing of it was done.
    """
    names: list[str] = []
    try:
        return (yield from Atomic(_tick(without, most, names)))
    except Exception as error:
        if names:
            raise TickFailed(names) from error
        raise


def _tick(without: Sequence[str], most: int, names: list[str]) -> Plan[Ticked]:
    rows = yield from Query(SQL["lock_due"], {"without": list(without), "most": most}, same)
    names += [row[0] for row in rows]
    decisions: dict[str, Decision] = {}
    rules: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    fates = 0
    for row in rows:
        if fates >= MOST_FATES:
            break  # the rest is still due, and is free again with the end of this transaction
        try:
            due, rules[row[0]] = _read(row)
            decisions[due.name] = decide(due)
            fates += len(decisions[due.name].fates)
        except Exception as error:  # whatever it is, it must not hold up the other schedules
            unreadable[row[0]] = f"{type(error).__name__}: {error}"
    left_out = [*without, *unreadable]
    if not decisions:
        return Ticked(0, frozenset(), (yield from next_due(left_out)), unreadable)
    fired = yield from fire(decisions, rules, left_out)
    return Ticked(len(decisions), frozenset(fired.queues), fired.wait, unreadable)


def _read(row: tuple[Any, ...]) -> tuple[Due, str]:
    name, *when, misfire, grace, catch_up, overlap, jitter, remaining, next_tick, busy, now = row
    timing = read_timing(*when)
    due = Due(name, timing.recurrence, misfire, grace, catch_up, overlap, jitter, remaining, next_tick, busy, now)
    return due, timing.rules


@dataclass(frozen=True, slots=True)
class Fired:
    """The queues and ids of the jobs, None where the queue was full; and the seconds until the next schedule is due."""

    queues: Sequence[str]
    jobs: Sequence[int | None]
    wait: float | None


def fire(decisions: Mapping[str, Decision], rules: Mapping[str, str], without: Sequence[str] = ()) -> Query[Fired]:
    """Return the query that writes what was decided of locked schedules."""
    fates = [(name, fate) for name, decision in decisions.items() for fate in decision.fates]
    params = {
        "tick_names": [name for name, _ in fates],
        "ticks": [fate.tick for _, fate in fates],
        "since": [fate.since for _, fate in fates],
        "counts": [fate.count for _, fate in fates],
        "outcomes": [fate.outcome for _, fate in fates],
        "reasons": [fate.reason for _, fate in fates],
        "names": list(decisions),
        "ticked_until": [each.ticked_until for each in decisions.values()],
        "next_ticks": [each.next_tick for each in decisions.values()],
        "next_run_at": [each.next_run_at for each in decisions.values()],
        "remaining": [each.remaining for each in decisions.values()],
        "rules": [rules.get(name) for name in decisions],
        "without": list(without),
    }
    return Query(SQL["fire"], params, _fired)


def _fired(rows: Rows) -> Fired:
    queues, jobs, seconds = rows[0]
    return Fired(queues or (), jobs or (), seconds)
