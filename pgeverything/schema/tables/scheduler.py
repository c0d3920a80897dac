"""The tables of the cron scheduler."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, Interval, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from .columns import BYTEWISE, Timestamp, flag, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    schedules = Table(
        "schedules",
        tables,
        Column("name", BYTEWISE, primary_key=True),
        needed("task", Text),
        needed("args", JSONB),
        needed("queue", Text),
        needed("priority", Integer),
        Column("cron", Text),
        needed("seconds", Boolean),
        Column("every", Interval),
        Column("at", Timestamp),
        needed("timezone", Text),
        Column("start_at", Timestamp),
        Column("end_at", Timestamp),
        needed("misfire", Text),
        Column("grace", Interval),
        needed("catch_up", Integer),
        needed("overlap", Text),
        needed("jitter", Interval),
        Column("runs", BigInteger),
        Column("remaining", BigInteger),
        needed("digest", Text),
        Column("origin", Text),
        needed("rules", Text),
        flag("paused"),
        flag("disabled"),
        needed("ticked_until", Timestamp),
        Column("next_tick", Timestamp),
        Column("next_run_at", Timestamp),
        Column("last_tick", Timestamp),
        Column("last_job", BigInteger),
        needed("created_at", Timestamp),
        needed("changed_at", Timestamp),
    )
    Index("schedules_due", schedules.c.next_run_at, postgresql_where=text("(next_run_at IS NOT NULL)"))
    Table(
        "ticks",
        tables,
        Column("schedule", BYTEWISE, primary_key=True),
        Column("tick", Timestamp, primary_key=True),
        Column("since", Timestamp),
        needed("count", BigInteger, server_default=text("1")),
        needed("outcome", Text),
        Column("reason", Text),
        Column("job", BigInteger),
        needed("at", Timestamp),
        postgresql_partition_by="RANGE (tick)",
    )
    Table(
        "schedule_code",
        tables,
        Column("worker", BigInteger, primary_key=True, autoincrement=False),
        needed("origin", Text),
        needed("names", ARRAY(Text)),
        needed("digests", ARRAY(Text)),
    )
