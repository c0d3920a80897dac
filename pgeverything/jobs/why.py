"""Why is this job not running? Said in words."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from ..engine.plan import Plan, Query
from ..engine.statements import statements
from ..errors import JobNotFound
from .values import MOST_BIGINT, State, check_whole

SQL = statements("jobs")


@dataclass(frozen=True, slots=True)
class Facts:
    """All that can keep a job from running, as the statement `facts` selects it. Times are in seconds."""

    state: State
    task: str
    queue: str
    ordering_key: str | None
    attempt: int
    crashes: int
    reason: str | None
    note: str | None
    message: str | None
    expires_at: datetime | None
    due_in: float | None
    running_for: float | None
    paused: bool
    concurrency: int | None
    in_queue: int
    workers: int
    ahead: int
    ahead_of_key: int
    holders: str | None
    worker: str | None
    cancelling: bool


def why(id: int) -> Plan[str]:  # noqa: A002
    """Say in words what a job is waiting for, or how it ended.

    Raises:
        JobNotFound: there is no such job.
    """
    check_whole(id, "id", 1, MOST_BIGINT)
    facts = yield from Query(SQL["facts"], {"id": id}, lambda rows: Facts(*rows[0]) if rows else None)
    if facts is None:
        raise JobNotFound(f"there is no job {id}, or it ended longer ago than finished jobs are kept")
    return explain(facts)


def explain(facts: Facts) -> str:
    """Turn the facts into sentences: first the nearest cause, then what else stands in the way."""
    match facts.state:
        case "succeeded":
            return f"It succeeded at attempt {facts.attempt}."
        case "cancelled":
            return f"It was cancelled: {facts.reason}."
        case "dead":
            error = f" ({facts.message})" if facts.message else ""
            return f"It is dead: {facts.reason}{error}. Redrive it or discard it."
        case "running":
            return _running(facts)
        case "scheduled":
            again = f" It failed {facts.attempt} time(s) and tries again then." if facts.attempt else ""
            return f"It is due in {max(facts.due_in or 0.0, 0.0):.1f} s.{again}" + _obstacles(facts)
        case "waiting":
            first = f"It waits for its turn of ordering_key={facts.ordering_key!r}"
            ahead = f", with {facts.ahead_of_key} before it in line" if facts.ahead_of_key else ""
            held = f"; held by job {facts.holders}" if facts.holders else ""
            return f"{first}{ahead}{held}." + _obstacles(facts)
        case "ready":
            least = "at least " if facts.ahead >= 10_000 else ""
            ahead = f"with {least}{facts.ahead} job(s) before it" if facts.ahead else "and next in line"
            return f"It is ready {ahead}." + _obstacles(facts)


def _running(facts: Facts) -> str:
    worker = facts.worker or "a worker that has left; it will be rescued"
    text = f"It is running: attempt {facts.attempt}, for {facts.running_for or 0.0:.1f} s, on {worker}."
    if facts.note:
        text += f" It says: {facts.note}."
    if facts.cancelling:
        text += " It was asked to stop."
    return text


def _obstacles(facts: Facts) -> str:
    found = []
    if facts.paused:
        found.append(f"The queue {facts.queue!r} is paused: resume it.")
    if not facts.workers:
        found.append(f"No live worker serves the queue {facts.queue!r}: start one.")
    if facts.concurrency is not None and facts.in_queue >= facts.concurrency:
        found.append(f"The queue runs {facts.in_queue} of at most {facts.concurrency} jobs at once.")
    if facts.crashes:
        found.append(f"It has crashed {facts.crashes} worker(s).")
    if facts.expires_at is not None:
        found.append(f"It expires at {facts.expires_at:%Y-%m-%d %H:%M:%S %Z}.")
    return "".join(f" {sentence}" for sentence in found)
