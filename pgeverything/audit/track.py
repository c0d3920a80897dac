"""Which tables are tracked, and how."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..engine.plan import Plan, Query, Rows, same
from ..engine.statements import statements
from ..errors import InvalidArgument
from .names import check_table, explained
from .values import Tracked, decode

SQL = statements("audit")


def track(
    table: str,
    *,
    exclude: Sequence[str] = (),
    mask: Sequence[str] = (),
    personal: Sequence[str] = (),
    require_actor: bool = False,
    bulk: bool = False,
) -> Plan[Tracked]:
    """Track a table: from now on every change of its rows has an entry, whoever makes it and however.

    Called again it changes how the table is tracked, and takes in partitions that were attached since. Run it as the
    table's owner. It takes a lock for which it waits until open transactions that use the table have ended, and others
    wait behind it (`set lock_timeout` bounds that). A TRUNCATE is recorded row by row and costs what a DELETE does; for
    that the schema's owner is granted SELECT on the table.

    Args:
        table: its name as SQL has it: "account", "public.account".
        exclude: columns that the trail takes no notice of. A change of nothing else has no entry.
        mask: columns of which it tells that they changed, and not the values.
        personal: columns whose values can be erased later with `erase`, while the seal still holds.
        require_actor: refuse changes of which nobody has said who makes them (SQLSTATE PGE20).
        bulk: for a table that is changed by thousands of rows at a time: each of them costs a third, and each statement
            half a millisecond. Not for one with partitions, nor with `mask` or `personal`, nor where other triggers
            change the table's own rows: their changes would come first in the trail.

    Returns:
        What is tracked now.

    Raises:
        InvalidArgument: there is no such table or column, it has no primary key, it is a partition or temporary, or a
            column is named twice or belongs to the key.
        AuditError: this role does not own the table, or may not track.
    """
    check_table(table)
    params: dict[str, Any] = {"table": table, "require_actor": bool(require_actor), "bulk": bool(bulk)}
    for name, columns in (("exclude", exclude), ("mask", mask), ("personal", personal)):
        if isinstance(columns, str) or not all(isinstance(column, str) and column for column in columns):
            raise InvalidArgument(f"{name}={columns!r} must be a list of names of columns")
        params[name] = list(columns)
    try:
        rows = yield from Query(SQL["track"], params, same)
    except Exception as error:
        if (better := explained(error)) is not error:
            raise better from error
        raise
    if not rows:
        raise InvalidArgument(f"table={table!r}: there is no such table here")
    return next(one for one in (yield from tracked()) if one.subject == rows[0][0])


def untrack(table: str) -> Plan[bool]:
    """Track a table no longer; what the trail has of it stays.

    Returns:
        Whether it was tracked.

    Raises:
        InvalidArgument: there is no such table.
        AuditError: this role does not own it.
    """
    check_table(table)
    try:
        rows = yield from Query(SQL["untrack"], {"table": table}, same)
    except Exception as error:
        if (better := explained(error)) is not error:
            raise better from error
        raise
    if not rows:
        raise InvalidArgument(f"table={table!r}: there is no such table here")
    return bool(rows[0][0])


def tracked() -> Plan[list[Tracked]]:
    """Return the tables that are tracked, by name, with what has changed about each since it was."""
    return (yield from Query(SQL["tracked"], {}, _read))


def _read(rows: Rows) -> list[Tracked]:
    return [_tracked(row) for row in rows]


def _tracked(row: tuple[Any, ...]) -> Tracked:
    name, subject, required, key, exclude, mask, personal, key_names, key_size, *state = row
    note, numbers, primary, relation, bulk, enabled, truncates, changed_from_above, untracked_below = state
    said = decode(note) if note else {}
    drift = []
    if said.get("relation", relation) != relation:
        drift.append(
            "it was restored from a dump, where columns may have got other places: track it again, or columns may be "
            "hidden that need not be"
        )
    if name != subject:
        drift.append(f"the table is called {name} now, and {subject} in the trail")
    if len(key) < key_size:
        drift.append("a column of its key is gone: entries have no usable key; track it again")
    elif primary != key:
        drift.append("its primary key is another now: track it again")
    elif key != key_names:
        drift.append(f"its key column {', '.join(key_names)} is called {', '.join(key)} now; track it again for speed")
    drift += _hidden_columns(said, numbers)
    if not enabled:
        drift.append("a trigger is missing or disabled: changes have no entries; track it again")
    if not truncates:
        drift.append("partitions were attached since: a TRUNCATE of one of them by name has no entry; track it again")
    if changed_from_above:
        drift.append(
            "it belongs to another table: changes through that one have no entries; track it again without bulk"
        )
    if untracked_below:
        drift.append("tables that inherit from it are not tracked: changes of their rows have no entries; track each")
    return Tracked(
        name, subject, tuple(key), tuple(exclude), tuple(mask), tuple(personal), required, bulk, tuple(drift)
    )


def _hidden_columns(said: Mapping[str, Any], numbers: str | None) -> Iterator[str]:
    """Say what became of columns that are not told, by what was said when tracking began."""
    today = {int(number): column for number, column in decode(numbers or "{}").items()}
    for kind, word in (("exclude", "excluded"), ("mask", "masked"), ("personal", "personal")):
        for column, number in said.get(kind, {}).items():
            if number not in today:
                yield f"the {word} column {column} is gone"
            elif today[number] != column:
                yield f"the {word} column {column} is called {today[number]} now, and is {word} as before"
