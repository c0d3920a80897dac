"""The event logs that are compared, each behind the same few calls.

An event is a JSON object of about 90 bytes under one topic. All are durable when a call returns: one commit each.
"""

from __future__ import annotations

import json
import uuid
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Protocol

import psycopg
from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = {"order": 42, "total": 990, "items": ["apple", "pear"], "customer": "ada"}
TOPIC = "orders.eu"
_PAGE = 2000

_TABLE = """
    CREATE TABLE log (position bigserial PRIMARY KEY, recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
                      topic text NOT NULL, type text NOT NULL, key text, data jsonb NOT NULL, headers jsonb)
"""


class Log(Protocol):
    """One way to keep events in PostgreSQL."""

    name: str
    choices: str

    def install(self, url: str) -> None:
        """Create its tables in an empty database."""

    def open(self, url: str) -> None:
        """Connect, for the calls below."""

    def append(self) -> None:
        """Append one event in a transaction of its own."""

    def append_many(self, count: int) -> None:
        """Append so many in one transaction."""

    def read(self) -> Iterator[Any]:
        """Read all of it in order, as Python values."""


class PgEverythingLog:
    """This project."""

    name = "pgeverything"
    choices = "events.append, append_many and read on the pool of the library, no key"

    def install(self, url: str) -> None:
        """Create its tables in an empty database."""
        from pgeverything import PgEverything

        with PgEverything(url) as pg:
            pg.migrate()

    def open(self, url: str) -> None:
        """Connect, for the calls below."""
        from pgeverything import EventLog

        self._log = EventLog(url)
        self._log.head()

    def append(self) -> None:
        """Append one event in a transaction of its own."""
        self._log.append(TOPIC, DATA, type="placed")

    def append_many(self, count: int) -> None:
        """Append so many in one transaction."""
        self._log.append_many(TOPIC, [DATA] * count, type="placed")

    def read(self) -> Iterator[Any]:
        """Read all of it in order, as Python values."""
        return self._log.read()


class PgEverythingKeyed(PgEverythingLog):
    """The same with a key for each event, and so a version."""

    name = "pgeverything, keyed"
    choices = "the same with one of 100,000 keys for each event"

    def open(self, url: str) -> None:
        """Connect, for the calls below."""
        super().open(url)
        self._number = uuid.uuid4().int % 100_000

    def _key(self) -> str:
        self._number = (self._number * 7 + 13) % 100_000
        return f"order-{self._number}"

    def append(self) -> None:
        """Append one event in a transaction of its own."""
        self._log.append(TOPIC, DATA, type="placed", key=self._key())

    def append_many(self, count: int) -> None:
        """Append so many in one transaction."""
        self._log.append_many(TOPIC, [DATA] * count, type="placed", key=[self._key() for _ in range(count)])


class Plain:
    """The ceiling: a table with a sequence and nothing else, from which readers lose events."""

    name = "unsafe insert"
    choices = "INSERT ... RETURNING, prepared, on a plain connection; batches by unnest; readers lose events"
    one = "INSERT INTO log (topic, type, data) VALUES (%s, %s, %s) RETURNING position, recorded_at"
    # In binary: psycopg's text form of an array costs the client 12 µs an event.
    many = "INSERT INTO log (topic, type, data) SELECT %t, %t, d::jsonb FROM unnest(%b::text[]) d RETURNING position"

    def install(self, url: str) -> None:
        """Create its tables in an empty database."""
        with psycopg.connect(url) as connection:
            connection.execute(_TABLE)

    def open(self, url: str) -> None:
        """Connect, for the calls below."""
        self._connection = psycopg.connect(url, autocommit=True)

    def append(self) -> None:
        """Append one event in a transaction of its own."""
        self._connection.execute(self.one, (TOPIC, "placed", json.dumps(DATA)), prepare=True).fetchone()

    def append_many(self, count: int) -> None:
        """Append so many in one transaction."""
        data = [json.dumps(DATA) for _ in range(count)]
        self._connection.execute(self.many, (TOPIC, "placed", data), prepare=True).fetchall()

    def read(self) -> Iterator[Any]:
        """Read all of it in order, as Python values."""
        position = 0
        query = "SELECT position, topic, type, key, data, recorded_at FROM log WHERE position > %s ORDER BY 1 LIMIT %s"
        while rows := self._connection.execute(query, (position, _PAGE), prepare=True).fetchall():
            yield from rows
            position = rows[-1][0]


class Locked(Plain):
    """The simple way to lose nothing: publishers go one after the other."""

    name = "exclusive lock"
    choices = "the same behind pg_advisory_xact_lock, so that positions are committed in order"
    one = (
        "INSERT INTO log (position, topic, type, data) SELECT nextval('log_position_seq'), %s, %s, %s"
        " FROM (SELECT pg_advisory_xact_lock(1) OFFSET 0) l RETURNING position, recorded_at"
    )
    many = (
        "INSERT INTO log (position, topic, type, data) SELECT nextval('log_position_seq'), %t, %t, d::jsonb"
        " FROM (SELECT pg_advisory_xact_lock(1) OFFSET 0) l, unnest(%b::text[]) d RETURNING position"
    )


class EventSourcing:
    """https://github.com/pyeventsourcing/eventsourcing, the recorder of an application."""

    name = "eventsourcing"

    def __init__(self) -> None:
        """Say which version it is."""
        self.choices = f"{version('eventsourcing')}, PostgresApplicationRecorder, a new originator for each call"

    def install(self, url: str) -> None:
        """Create its tables in an empty database."""
        self.open(url)
        self._recorder.create_table()
        self._datastore.close()

    def open(self, url: str) -> None:
        """Connect, for the calls below."""
        from eventsourcing.persistence import StoredEvent
        from eventsourcing.postgres import PostgresApplicationRecorder, PostgresDatastore

        parts = conninfo_to_dict(url)
        self._event = StoredEvent
        self._datastore = PostgresDatastore(
            str(parts["dbname"]),
            str(parts["host"]),
            str(parts.get("port") or 5432),
            str(parts["user"]),
            str(parts.get("password") or ""),
        )
        self._recorder = PostgresApplicationRecorder(self._datastore, events_table_name="stored_events")

    def append(self) -> None:
        """Append one event in a transaction of its own."""
        self.append_many(1)

    def append_many(self, count: int) -> None:
        """Append so many in one transaction."""
        originator = uuid.uuid4()
        self._recorder.insert_events(
            [self._event(originator, number, TOPIC, json.dumps(DATA).encode()) for number in range(1, count + 1)]
        )

    def read(self) -> Iterator[Any]:
        """Read all of it in order, as Python values."""
        position = 0
        while found := self._recorder.select_notifications(start=position, limit=_PAGE, inclusive_of_start=False):
            for notification in found:
                yield notification.id, json.loads(notification.state)
            position = found[-1].id


LOGS: dict[str, type[Log]] = {
    "pgeverything": PgEverythingLog,
    "keyed": PgEverythingKeyed,
    "plain": Plain,
    "locked": Locked,
    "eventsourcing": EventSourcing,
}
