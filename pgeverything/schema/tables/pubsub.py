"""The tables of durable subscriptions."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Interval, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from .columns import BYTEWISE, Timestamp, count, flag, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    Table(
        "subscriptions",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        Column("name", BYTEWISE, nullable=False, unique=True),
        needed("pattern", Text),
        Column("topic", BYTEWISE),
        Column("low", BYTEWISE),
        Column("high", BYTEWISE),
        Column("regex", Text),
        needed("ordered", Boolean),
        needed("max_deliveries", Integer),
        needed("on_dead", Text),
        needed("created_at", Timestamp),
        needed("claimed", BigInteger),
        flag("paused"),
        Column("stopped", Text),
    )
    Table(
        "members",
        tables,
        Column("id", BigInteger, primary_key=True, autoincrement=False),
        needed("name", Text),
        needed("subscriptions", ARRAY(BigInteger)),
        needed("started_at", Timestamp),
        needed("heartbeat_at", Timestamp),
        needed("lease", Interval),
        flag("lost"),
    )
    deliveries = Table(
        "deliveries",
        tables,
        Column("subscription", BigInteger, primary_key=True, autoincrement=False),
        Column("position", BigInteger, primary_key=True, autoincrement=False),
        Column("lane", BigInteger),
        Column("member", BigInteger),
        Column("token", BigInteger),
        Column("due_at", Timestamp),
        count("delivered"),
        count("failures"),
        count("crashes"),
        count("redriven"),
        Column("dead_id", BigInteger),
        Column("died_at", Timestamp),
        Column("reason", Text),
        Column("fingerprint", Text),
        Column("error", JSONB),
    )
    d = deliveries.c
    behind = text("((member IS NULL) AND (due_at IS NULL) AND (dead_id IS NULL))")
    Index("deliveries_lane", d.subscription, d.lane, d.position, postgresql_where=text("(lane IS NOT NULL)"))
    Index("deliveries_due", d.subscription, d.due_at, d.position, postgresql_where=text("(due_at IS NOT NULL)"))
    Index("deliveries_behind", d.subscription, d.lane, d.position, postgresql_where=behind)
    Index("deliveries_dead", d.dead_id, postgresql_where=text("(dead_id IS NOT NULL)"))
