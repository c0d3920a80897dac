"""Names of tables and values of keys, as callers write them and as the trail has them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..engine import codec
from ..engine.plan import Plan, Query, same
from ..engine.statements import statements
from ..errors import AuditError, InvalidArgument
from ..jobs.values import check_name

SQL = statements("audit")

_PART = r'(?:[^\W\d][\w$]*|"(?:[^"]|"")+")'
_TABLE = re.compile(rf"{_PART}(?:\.{_PART})?")
_MOST_NAME = 1024


@dataclass(frozen=True, slots=True)
class Place:
    """A table and perhaps one of its keys, as the trail has them. `relation` is None when there is no such table."""

    subject: str
    key: str | None
    relation: int | None
    tracked: bool


def resolve(table: str, key: Any = None) -> Plan[Place]:
    """Return what the trail calls a table; a name that is no table's stays as it is.

    Raises:
        InvalidArgument: the key is not of the type of the table's.
    """
    check_name(table, "table", _MOST_NAME)
    wanted = None if key is None else encode_key(key)
    if _TABLE.fullmatch(table):
        try:
            rows = yield from Query(SQL["resolve"], {"table": table, "key": wanted}, same)
        except Exception as error:
            if (state_of(error) or "").startswith("22"):  # data exception
                raise InvalidArgument(f"key={key!r} is no key of {table}: {told(error)}") from error
            raise
        if rows:
            subject, tracked, relation, known = rows[0]
            return Place(subject, known, relation, tracked)
    return Place(table, wanted, None, tracked=False)


def check_table(table: object) -> None:
    """Refuse what cannot be the name of a table."""
    check_name(table, "table", _MOST_NAME)
    if not _TABLE.fullmatch(str(table)):
        raise InvalidArgument(
            f'table={table!r} must be a table\'s name as SQL has it: account, public.account, "Odd name"."Table"'
        )


def encode_key(key: Any) -> str:
    """Return a key's values as a JSON array, or as an object where they are given by name."""
    if isinstance(key, Mapping):
        return codec.encode({name: _value(value) for name, value in key.items()}, "key")
    values = key if isinstance(key, list | tuple) else [key]
    if not values or any(value is None for value in values):
        raise InvalidArgument(
            f"key={key!r} must be the value of the primary key, or a list where it has several columns"
        )
    return codec.encode([_value(value) for value in values], "key")


def _value(value: Any) -> Any:
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value


def state_of(error: Exception) -> str | None:
    """Return the SQLSTATE of a driver's error, also inside one of SQLAlchemy's."""
    return getattr(getattr(error, "orig", None) or error, "sqlstate", None)


def explained(error: Exception) -> Exception:
    """Return the error of ours that says what a function of the trail has refused, or the error itself."""
    state = state_of(error)
    if state == "PGE21":
        return InvalidArgument(told(error))
    if state == "42501":
        return AuditError(
            f"{told(error)}: a table is tracked by its owner, who needs the grants of a tracker (docs/how-to/roles.md)"
        )
    return error


def told(error: Exception) -> str:
    """Return what Postgres said, with its hint."""
    original: Any = getattr(error, "orig", None) or error
    cause = original.__cause__  # what SQLAlchemy makes of asyncpg's errors has those as their cause
    if (diagnostics := getattr(original, "diag", None)) is not None:
        message, hint = diagnostics.message_primary, diagnostics.message_hint
    else:
        message, hint = getattr(cause, "message", None), getattr(cause, "hint", None)
    return ". ".join(filter(None, (message or str(original), hint)))
