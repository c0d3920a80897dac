"""Looking back: the history of a row, a table or everybody's; rows as they were; and undoing a change."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..engine.plan import Async, Plan, Query, Rows, Sync, adrive_on, drive_on, one_or_none, same, whole
from ..engine.statements import statements
from ..errors import AuditGap, CannotRevert, EntryNotFound, InvalidArgument
from ..jobs.values import MOST_BIGINT, check_name, check_whole
from .names import Place, encode_key, resolve, state_of, told
from .values import Entry, decode, read_entries

SQL = statements("audit")

_FIRST_BATCH = 100
_MOST_BATCH = 2000
_NEAR = 20_000  # ids by which a time may be off, on either side


def check_time(at: object, name: str) -> None:
    """Refuse what is not an instant."""
    if not isinstance(at, datetime) or at.tzinfo is None:
        raise InvalidArgument(f"{name}={at!r} must be a datetime with a time zone, for example datetime.now(UTC)")


@dataclass(slots=True)
class Reader:
    """One reading of the trail. `more()` returns the next entries; none is the end."""

    table: str | None
    key: Any
    filters: dict[str, Any]
    newest_first: bool
    left: int
    _low: int | None = None
    _high: int | None = None
    _size: int = _FIRST_BATCH
    _begun: bool = False

    def more(self) -> Plan[list[Entry]]:
        """Return the next entries; an empty list is the end."""
        if not self._begun:
            yield from self._begin()
        if self.left <= 0:
            return []
        params = self.filters | {"low": self._low, "high": self._high, "limit": min(self._size, self.left)}
        found = yield from Query(SQL["history_back" if self.newest_first else "history"], params, read_entries)
        self._size = min(self._size * 4, _MOST_BATCH)
        self.left -= len(found)
        if found:
            self._low, self._high = (self._low, found[-1].id) if self.newest_first else (found[-1].id, self._high)
        return found

    def _begin(self) -> Plan[None]:
        place = (yield from resolve(self.table, self.key)) if self.table is not None else Place("", None, None, False)
        self.filters |= {"subject": None if self.table is None else place.subject, "key": place.key}
        self._low, self._high = (None, MOST_BIGINT) if self.newest_first else (0, None)
        if self.filters["since"] is not None:
            self._low = yield from Query(SQL["id_at"], {"at": self.filters["since"]}, whole)
        if self.filters["until"] is not None:
            self._high = (yield from Query(SQL["id_at"], {"at": self.filters["until"]}, whole)) + _NEAR
        self._begun = True


def reader(
    table: str | None,
    key: Any,
    actor: str | None,
    action: str | None,
    since: datetime | None,
    until: datetime | None,
    limit: int | None,
    newest_first: bool,
) -> Reader:
    """Return a reader.

    Raises:
        InvalidArgument: an argument is refused.
    """
    for name, text in (("table", table), ("actor", actor), ("action", action)):
        if text is not None:
            check_name(text, name, 10_000)
    for name, at in (("since", since), ("until", until)):
        if at is not None:
            check_time(at, name)
    if key is not None:
        encode_key(key)
        if table is None:
            raise InvalidArgument("key= needs a table: it is the key of a row")
    if limit is not None:
        check_whole(limit, "limit", 1, MOST_BIGINT)
    filters = {"actor": actor, "action": action, "since": since, "until": until}
    return Reader(table, key, filters, newest_first, MOST_BIGINT if limit is None else limit)


class Reads(Sync):
    """Reading, blocking."""

    def history(
        self,
        table: str | None = None,
        key: Any = None,
        *,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> Iterator[Entry]:
        """Read the trail, lazily: of one row, of a table, or all of it.

        With a table and a key it looks them up in an index. By actor or action it reads through the entries of the time
        that is asked for.

        Args:
            table: a table, as SQL has its name; or the subject of records.
            key: the primary key of a row: its value, a list of its values in the order of the key, or a mapping of the
                key's columns to them.
            actor: only what this one did.
            action: only entries of this kind.
            since: only what happened then or later; a datetime with a time zone.
            until: only what happened before.
            limit: at most so many.
            newest_first: the last entry first.

        Returns:
            An iterator, which reads a batch when it needs one.

        Raises:
            InvalidArgument: an argument is refused, at the call.
        """
        return self._read(reader(table, key, actor, action, since, until, limit, newest_first))

    def _read(self, reading: Reader) -> Iterator[Entry]:
        while entries := drive_on(self._carrier, reading.more()):
            yield from entries


class AsyncReads(Async):
    """Reading, awaited."""

    def history(
        self,
        table: str | None = None,
        key: Any = None,
        *,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> AsyncIterator[Entry]:
        """Read the trail, lazily, as the blocking `history` does: `async for entry in pg.audit.history(...)`."""
        return self._read(reader(table, key, actor, action, since, until, limit, newest_first))

    async def _read(self, reading: Reader) -> AsyncIterator[Entry]:
        while entries := await adrive_on(self._carrier, reading.more()):
            for entry in entries:
                yield entry


def get(id: int) -> Plan[Entry]:  # noqa: A002 - the public name of the thing
    """Return an entry.

    Raises:
        EntryNotFound: there is none of that id, or retention has dropped it.
    """
    check_whole(id, "id", 0, MOST_BIGINT)
    found = yield from Query(SQL["get"], {"id": id}, read_entries)
    if not found:
        raise EntryNotFound(f"there is no entry {id} in the trail, or retention has dropped it")
    return found[0]


def as_of(table: str, at: datetime, *, key: Any = None) -> Plan[list[dict[str, Any]]]:
    """Return the rows of a table as they were.

    It takes the rows as they are now and undoes what the trail has since then: it costs what reading the table costs,
    and more the longer ago that is. Columns that are excluded or masked are left out, values that were erased too. A
    change counts from when it was made, which is before its transaction was committed.

    Args:
        table: a table that is tracked.
        at: when; a datetime with a time zone.
        key: only the row of this primary key; see `history`.

    Returns:
        The rows, each a mapping of columns to JSON values, in no order.

    Raises:
        InvalidArgument: an argument is refused, or the table is not tracked.
        AuditGap: it was not tracked all the time since, retention has dropped entries from after it, or a column was
            renamed, or the type of a key's column changed, so that today's rows cannot be led back.
    """
    check_time(at, "at")
    place = yield from resolve(table, key)
    if not place.tracked:
        raise InvalidArgument(f"table={table!r} is not tracked: nobody knows what its rows were")
    if gap := (yield from Query(SQL["gap"], {"subject": place.subject, "at": at}, one_or_none)):
        raise AuditGap(f"the rows of {place.subject} at {at.isoformat()} cannot be told: {gap}")
    params = {"relation": place.relation, "at": at, "key": place.key}
    try:
        return (yield from Query(SQL["as_of"], params, _read_rows))
    except Exception as error:
        if state_of(error) != "PGE23":
            raise
        raise AuditGap(f"the rows of {place.subject} at {at.isoformat()} cannot be told: {told(error)}") from error


def _read_rows(rows: Rows) -> list[dict[str, Any]]:
    return [decode(row) for (row,) in rows]


def revert(entry_id: int) -> Plan[Entry]:
    """Undo the change of a row that an entry tells of, as a new change that has an entry of its own.

    What came later is never overwritten: an update is undone while the columns that it changed still have the values it
    gave them, an insert while the row is as it was inserted, a delete while there is no row of that key. The context of
    the new entry says which one it `reverts`.

    Returns:
        The new entry.

    Raises:
        EntryNotFound: there is no such entry.
        CannotRevert: the row has moved on; the trail does not have the values; or the table is not tracked any more.
            The message says which.
    """
    yield from get(entry_id)
    made, problem = (yield from Query(SQL["revert"], {"id": entry_id}, same))[0]
    if problem is not None:
        raise CannotRevert(f"entry {entry_id} cannot be reverted: {problem}")
    return (yield from get(made))
