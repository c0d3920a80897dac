"""The tables of the event log."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Interval, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from .columns import BYTEWISE, Timestamp, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    _log(tables)
    _beside(tables)


def _log(tables: MetaData) -> None:
    """Partitions by position, which come and go: query the parent."""
    topics = Table(
        "topics", tables, Column("id", Integer, primary_key=True, autoincrement=False), needed("name", BYTEWISE)
    )
    Index("topics_name", topics.c.name, topics.c.id)
    events = Table(
        "events",
        tables,
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        needed("transaction_id", BigInteger),
        needed("recorded_at", Timestamp),
        Column("version", BigInteger),
        needed("topic_id", Integer),
        needed("type", Text),
        Column("key", BYTEWISE),
        needed("data", JSONB),
        Column("headers", JSONB),
        postgresql_partition_by="RANGE (position)",
    )
    Index("events_transaction", events.c.transaction_id, postgresql_using="brin")
    Index("events_topic", events.c.topic_id, events.c.position)
    Index("events_key", events.c.topic_id, events.c.key, events.c.position, postgresql_where=text("(key IS NOT NULL)"))


def _beside(tables: MetaData) -> None:
    Table(
        "streams",
        tables,
        Column("topic", BYTEWISE, primary_key=True),
        Column("key", BYTEWISE, primary_key=True),
        needed("version", BigInteger),
    )
    receipts = Table(
        "event_receipts",
        tables,
        Column("topic", BYTEWISE, primary_key=True),
        Column("idempotency_key", BYTEWISE, primary_key=True),
        needed("recorded_at", Timestamp),
        needed("positions", ARRAY(BigInteger)),
    )
    Index("event_receipts_age", receipts.c.recorded_at)
    Table(
        "event_sleepers",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        needed("expires_at", Timestamp),
    )
    Table(
        "event_retention",
        tables,
        Column("single", Boolean, primary_key=True, server_default=text("true")),
        Column("keep", Interval),
        needed("dropped", BigInteger, server_default=text("0")),
    )
    Table(
        "event_totals",
        tables,
        Column("first", BigInteger, primary_key=True, autoincrement=False),
        Column("topic_id", Integer, primary_key=True, autoincrement=False),
        needed("events", BigInteger),
        needed("bytes", BigInteger),
        needed("last", BigInteger),
    )
