"""How an attempt ended, and the statements that say so to the database."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from ..engine import codec
from ..engine.plan import Query
from ..engine.statements import statements
from ..failures import Failure
from ..retry import Retry
from ..signals import Cancel, Reject, Snooze
from .claimed import Claimed

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")


class Ended:
    """The job is over: succeeded with a result, or cancelled. Plain and slotted: one for every job.

    A cancelled one without a `reason` was cancelled by somebody, who left it in `cancellations`.
    """

    __slots__ = ("claimed", "reason", "result", "state")

    def __init__(self, claimed: Claimed, state: str, result: str | None = None, reason: str | None = None) -> None:
        self.claimed, self.state, self.result, self.reason = claimed, state, result, reason


@dataclass(slots=True)
class Failed:
    """The attempt is over: the job tries again after `delay` seconds, or is dead when that is None.

    `counts` is False where the attempt does not count. `reason` is for dead jobs.
    """

    claimed: Claimed
    delay: float | None
    reason: str | None = None
    failure: Failure | None = None
    counts: bool = True


Outcome = Ended | Failed


def tell(outcome: Outcome) -> None:
    """Say that a job dies: whoever has configured no logging sees warnings, and else nothing of it."""
    if isinstance(outcome, Failed) and outcome.delay is None:
        why = f": {outcome.failure.type}: {outcome.failure.message}" if outcome.failure else ""
        job = outcome.claimed.job
        log.warning("job %s (%s) is dead: %s%s", job, outcome.claimed.task, outcome.reason, why)


def returned(claimed: Claimed, value: object) -> Outcome:
    """The handler returned. A result that is not JSON is not worth failing a job that has done its work."""
    if value is None:
        return Ended(claimed, "succeeded")
    try:
        return Ended(claimed, "succeeded", codec.encode(value, "result"))
    except Exception as error:  # not only that it is no JSON: to look at the value can run the caller's code
        log.warning("job %s (%s) succeeded, but its result is not kept: %s", claimed.job, claimed.task, error)
        return Ended(claimed, "succeeded")


def raised(claimed: Claimed, error: BaseException, retry: Retry) -> Outcome:
    """The handler raised: a signal, or a failure that the task's policy judges."""
    try:
        return _judged(claimed, error, retry)
    except Exception as second:  # a subclass of a signal that did not call its `__init__`
        return _judged(claimed, second, retry)


def _judged(claimed: Claimed, error: BaseException, retry: Retry) -> Outcome:
    if isinstance(error, Snooze):
        return Failed(claimed, error.seconds, counts=False)
    if isinstance(error, Cancel):
        return Ended(claimed, "cancelled", reason=error.reason)
    failure = Failure.of(error, claimed.task)
    if isinstance(error, Reject):
        return Failed(claimed, None, f"rejected: {error.reason}", failure)
    if claimed.cancelled:
        return Ended(claimed, "cancelled")
    delay = retry.next_delay(claimed.attempt, error, claimed.max_attempts)
    if delay is not None:
        log.info(
            "job %s (%s) failed at attempt %s: %s: %s; again in %.1f s",
            claimed.job,
            claimed.task,
            claimed.attempt,
            failure.type,
            failure.message,
            delay,
        )
    return Failed(claimed, delay, None if delay is not None else f"failed at attempt {claimed.attempt}", failure)


def finish(worker: int, outcomes: Sequence[Ended]) -> Query[tuple[list[int], int]]:
    """The statement that ends these jobs; it reads the accepted jobs and how much others may take up now."""
    return Query(
        SQL["finish"],
        {
            "worker": worker,
            "jobs": [o.claimed.job for o in outcomes],
            "tokens": [o.claimed.token for o in outcomes],
            "states": [o.state for o in outcomes],
            "results": [o.result for o in outcomes],
            "reasons": [o.reason for o in outcomes],
        },
        lambda rows: (rows[0][0], rows[0][1]),
    )


def fail(worker: int, outcomes: Sequence[Failed]) -> Query[tuple[list[int], int]]:
    """The statement that records these failed attempts."""
    return Query(
        SQL["fail"],
        {
            "worker": worker,
            "jobs": [o.claimed.job for o in outcomes],
            "tokens": [o.claimed.token for o in outcomes],
            "delays": [o.delay for o in outcomes],
            "used": [int(o.counts) for o in outcomes],
            "reasons": [o.reason for o in outcomes],
            "fingerprints": [o.failure.fingerprint if o.failure else None for o in outcomes],
            "errors": [o.failure.json() if o.failure else None for o in outcomes],
        },
        lambda rows: (rows[0][0], rows[0][1]),
    )
