"""What an error of the database means, and what is refused before it is asked."""

from __future__ import annotations

from typing import Any

from psycopg import errors as pg
from psycopg_pool import PoolTimeout

from ..errors import InvalidArgument, NotMigrated, PgEverythingError, SchemaError, UnsafeRead
from .plan import Query

_MISSING = ("42P01", "3F000", "42883", "42703")  # undefined table, schema, function, column


def explain(error: Exception, schema: str) -> PgEverythingError | None:
    """Return the error to raise instead when the database lacks our schema or refuses it, or None."""
    original = getattr(error, "orig", error)
    state = getattr(original, "sqlstate", None)
    if state in _MISSING and schema in str(original):
        return NotMigrated(
            f"schema {schema!r} is missing or older than this library: run `pgeverything migrate` ({original})"
        )
    if state == "42501" and f"schema {schema}" in str(original):
        said = getattr(getattr(original, "diag", None), "message_primary", None) or original  # without the CONTEXT
        return SchemaError(f"{said}: have the schema's owner grant this role what it needs (docs/how-to/roles.md)")
    if state == "PGE11":
        return UnsafeRead(str(original).partition("\n")[0])
    return None


def connection_lost(error: Exception) -> bool:
    """Whether the connection went before the answer came: nobody knows then whether the statement was carried out."""
    original = getattr(error, "orig", None) or error
    state = getattr(original, "sqlstate", None)
    if state is None:
        lost = isinstance(original, pg.OperationalError) and not isinstance(original, PoolTimeout)
        return lost or bool(getattr(error, "connection_invalidated", False))
    return str(state).startswith("08") or state in ("57P01", "57P02", "57P03")  # shut down, crashed, starting up


def lock_not_available(error: Exception) -> bool:
    """Whether a statement has waited for a lock for as long as it may."""
    return _state(error) == "55P03"


def unique_violation(error: Exception) -> bool:
    """Whether another transaction has taken what may be there once."""
    return _state(error) == "23505"


def transaction_failed(error: Exception) -> bool:
    """Whether an earlier statement has ended the transaction, which takes no more."""
    return _state(error) == "25P02"


def _state(error: Exception) -> object:
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None)


def unreachable(error: Exception) -> bool:
    """Whether the database could not be asked, or its answer was lost: later it may be there."""
    return connection_lost(error) or isinstance(error, PoolTimeout | pg.InterfaceError)


def refuse_alone(query: Query[Any], *, autocommit: bool) -> None:
    """Refuse a statement whose effect would end at once, before the caller's next one."""
    if autocommit:
        raise InvalidArgument(
            f"{query.statement} takes effect until the end of a transaction, and this connection is in autocommit: "
            "begin a transaction first, with connection.transaction() or pg.transaction()"
        )
