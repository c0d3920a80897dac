"""Pooled connections at hand, and the short way through them.

A statement that takes Postgres 20 µs spent 30 µs in a new psycopg cursor, and 20 more until the pool had lent a
connection. So what runs often is prepared on each connection and then sent with psycopg's own calls of libpq and its
own adapters, without a cursor; and a connection that was used a moment ago stays at hand for the next statement.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg
from psycopg import errors as pg
from psycopg.adapt import PyFormat, Transformer
from psycopg.generators import execute
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, TransactionStatus

from .plan import Query, Rows
from .statements import numbered

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult
    from psycopg_pool import ConnectionPool

C = TypeVar("C", bound="psycopg.BaseConnection[Any]")

_KEEP = 60.0  # seconds after which a connection at hand goes back to the pool, which looks at its age
_TEXT, _BINARY = PyFormat.TEXT, PyFormat.BINARY
_TUPLES, _DONE = ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK
_IDLE, _BAD = TransactionStatus.IDLE, ConnStatus.BAD
_ATTRIBUTE = "_pgeverything_line"
_FORGOTTEN = (pg.InvalidSqlStatementName, pg.FeatureNotSupported)


class Line(Generic[C]):
    """A pooled connection in autocommit, and what is prepared on it.

    Attributes:
        connection: used by one thread or task at a time, as its pool sees to.
        since: when it was taken from the pool, on the monotonic clock.
    """

    __slots__ = ("_adapters", "_names", "_number", "_poll", "_uses", "connection", "since")

    def __init__(self, connection: C) -> None:
        self.connection, self.since = connection, time.monotonic()
        self._adapters = Transformer(connection)
        self._names: dict[str, bytes] = {}
        self._uses: dict[str, int] = {}
        self._number = 0
        self._poll = select.poll()
        self._poll.register(connection.fileno(), select.POLLIN)

    def usable(self) -> bool:
        """Whether the connection is idle and the server has not hung up. Reads what has arrived; no round trip."""
        with contextlib.suppress(pg.Error):
            while self._poll.poll(0):  # twice for a server that says why it hangs up
                self.connection.pgconn.consume_input()
        return self.connection.pgconn.transaction_status == _IDLE

    def call(self, query: Query[Any], schema: str) -> Rows | None:
        """Run a statement that is prepared, in one call of libpq; returns None where it has to go another way.

        Nothing interrupts it, so it is for threads that Ctrl-C does not reach. It gives up Python's lock once and not
        four times, which many threads notice.
        """
        text, names = numbered(query.statement, schema)
        if (name := self._names.get(text)) is None:
            return None
        dumped = self._dump(query, names)
        result = self.connection.pgconn.exec_prepared(name, dumped, self._adapters.formats)
        try:
            return self._rows(result)
        except _FORGOTTEN:
            self._forget()
            return None

    def run(self, query: Query[Any], schema: str) -> PQGen[Rows | None]:
        """Run a statement, for `connection.wait()`; returns None where it has to go through a cursor."""
        text, names = numbered(query.statement, schema)
        pgconn = self.connection.pgconn
        if (name := self._names.get(text)) is None:
            if not self._often(query, text):
                return None
            self._number += 1
            name = b"pgeverything_%d" % self._number
            pgconn.send_prepare(name, text.encode())
            self._rows((yield from execute(pgconn))[-1])
            self._names[text] = name
        dumped = self._dump(query, names)
        pgconn.send_query_prepared(name, dumped, self._adapters.formats)
        try:
            return self._rows((yield from execute(pgconn))[-1])
        except _FORGOTTEN:
            self._forget()
            return None

    def _dump(self, query: Query[Any], names: tuple[str, ...]) -> Sequence[Any]:
        # Every parameter says its type in the statement, so the server knows what a text means.
        values = [query.params[each] for each in names]
        return self._adapters.dump_sequence(values, [_BINARY if type(each) is bytes else _TEXT for each in values])

    def _forget(self) -> None:
        """Begin anew: somebody said `deallocate all`, or a table has changed under a statement.

        In autocommit a refused statement has done nothing, so it may run again.
        """
        self._names.clear()
        self._uses.clear()

    def _often(self, query: Query[Any], text: str) -> bool:
        """Whether it has run as often as psycopg itself would wait for before it prepares."""
        threshold = self.connection.prepare_threshold
        if threshold is None or query.statement.fresh:
            return False
        self._uses[text] = uses = self._uses.get(text, 0) + 1
        return uses > threshold

    def _rows(self, result: PGresult) -> Rows:
        if result.status == _TUPLES:
            self._adapters.set_pgresult(result)
            rows = self._adapters.load_rows(0, result.ntuples, tuple)
            self._adapters.set_pgresult(None)
            return rows
        if result.status != _DONE:
            if self.connection.pgconn.status == _BAD and not result.error_field(DiagnosticField.SQLSTATE):
                raise pg.OperationalError(result.get_error_message(self._adapters.encoding))
            raise pg.error_from_result(result, self._adapters.encoding)
        return ()


def line(connection: C) -> Line[C]:
    """Return the line of a connection that a pool has lent: the same one whenever it is lent again."""
    found: Line[C] | None = vars(connection).get(_ATTRIBUTE)
    if found is None:
        found = vars(connection)[_ATTRIBUTE] = Line(connection)
    return found


class Lines:
    """Lends the connections of a pool of ours: those used last stay at hand, the rest are in the pool.

    Args:
        pool: lends nobody else.
    """

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.pool = pool
        self._at_hand: deque[Line[psycopg.Connection[Any]]] = deque()
        self._wanted: deque[None] = deque()  # one for each thread that waits for the pool
        self._closed = False

    def take(self, *, wanted: bool = False) -> Line[psycopg.Connection[Any]]:
        """Lend a connection; waits when all are lent, as the pool does."""
        while True:
            try:
                at_hand = self._at_hand.pop()
            except IndexError:
                break
            if time.monotonic() - at_hand.since < _KEEP and at_hand.usable():
                return at_hand
            self.pool.putconn(at_hand.connection)
        if wanted:
            taken = line(self.pool.getconn())
            taken.since = time.monotonic()
            return taken
        # Said before the second look: either that look finds what comes back meanwhile, or who gives it back sees this.
        self._wanted.append(None)
        try:
            return self.take(wanted=True)
        finally:
            self._wanted.pop()

    def give(self, lent: Line[psycopg.Connection[Any]]) -> None:
        """Take a connection back, in whatever state."""
        if self._closed or lent.connection.pgconn.transaction_status != _IDLE:
            self.pool.putconn(lent.connection)
            return
        self._at_hand.append(lent)
        if self._wanted:
            self._return()

    def _return(self) -> None:
        with contextlib.suppress(IndexError):
            self.pool.putconn(self._at_hand.pop().connection)

    def close(self) -> None:
        """Close the pool; connections that are lent are closed when they come back."""
        self._closed = True
        while self._at_hand:
            self._return()
        self.pool.close()
