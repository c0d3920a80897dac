"""Gives dead jobs a fresh life."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..engine.plan import Atomic, Plan, Query, one
from ..engine.refusals import transaction_failed, unique_violation
from ..engine.statements import statements
from ..errors import JobStateError

SQL = statements("dead_letters")

_EVERY: dict[str, Any] = dict.fromkeys(("ids", "queue", "task", "fingerprint", "to_queue", "until"))


def revive(limit: int, *, start: float = 0.0, gap: float = 0.0, **filters: Any) -> Plan[int]:
    """Redrive up to so many dead jobs, `gap` seconds apart from `start` on; returns how many were redriven.

    A transaction that takes the unique key of one of them at the same moment refuses them all, once it has committed.
    Asked again the statement sees that job, and leaves its twin dead.

    Raises:
        JobStateError: it cannot be asked again, because this is a part of the caller's transaction.
    """
    params = _EVERY | filters | {"limit": limit, "start": start, "gap": gap}
    try:
        return (yield from Atomic(_ask(params)))
    except Exception as error:
        if not unique_violation(error):
            raise
        refused = error
    try:
        return (yield from Atomic(_ask(params)))
    except Exception as error:
        if not (unique_violation(error) or transaction_failed(error)):
            raise
        raise JobStateError(
            "another transaction has just enqueued a job with the unique key of one of these: nothing was redriven; "
            "roll back and try again"
        ) from refused


def _ask(params: Mapping[str, Any]) -> Plan[int]:
    return len((yield from Query(SQL["redrive"], params, one)))
