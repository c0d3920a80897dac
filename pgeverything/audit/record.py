"""What the application says: who acts and why, and what happens that is no change of a row."""

from __future__ import annotations

from typing import Any

from ..engine import codec
from ..engine.plan import Plan, Query, nothing, one
from ..engine.statements import statements
from ..errors import ConfigurationError, InvalidArgument
from ..jobs.values import check_name
from .values import Entry, read_entries

SQL = statements("audit")

OWN_ACTIONS = frozenset({"insert", "update", "delete", "truncate", "track", "untrack", "erase", "drop"})
"""What only the trail itself writes."""

_MOST_TEXT = 10_000


def context(*, actor: str | None = None, reason: str | None = None, **more: Any) -> Plan[None]:
    """Say who acts and why: every entry of this transaction from here on has it.

    Called again it changes what is given and leaves the rest. It ends with the transaction; a rollback to a savepoint
    takes it back.

    Args:
        actor: who: a user's name or id.
        reason: why.
        more: anything else worth keeping, as JSON values: `ip="10.0.0.1", request=42`.

    Raises:
        InvalidArgument: an argument is no text, or not JSON.
        ConfigurationError: no transaction is open, so that it would be forgotten at once.
    """
    for name, text in (("actor", actor), ("reason", reason)):
        if text is not None:
            check_name(text, name, _MOST_TEXT)
    params = {"actor": actor, "reason": reason, "more": codec.encode(more, "context")}
    yield from Query(SQL["context"], params, nothing)
    if not (yield from Query(SQL["context_holds"], {}, one)):
        raise ConfigurationError(
            "audit.context() needs an open transaction, and this connection is in autocommit: begin one first"
        )


def record(action: str, subject: str, data: Any = None) -> Plan[Entry]:
    """Add an entry about what is no change of a row: a login, an export, a letter.

    Args:
        action: what happened, like "login".
        subject: what it happened to, like "user:7".
        data: more about it, a JSON value.

    Returns:
        The entry.

    Raises:
        InvalidArgument: an argument is refused, or `action` is one that the trail writes itself, like "update".
    """
    check_name(action, "action", 200)
    check_name(subject, "subject", 1024)
    if action in OWN_ACTIONS:
        raise InvalidArgument(f"action={action!r} is written by the trail itself; call it something else")
    params = {"action": action, "subject": subject, "data": None if data is None else codec.encode(data, "data")}
    return (yield from Query(SQL["record"], params, read_entries))[0]
