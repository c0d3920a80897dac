"""The tables of the cache."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, LargeBinary, MetaData, Table, Text, UniqueConstraint, text
from sqlalchemy.dialects.postgresql import ARRAY, REAL

from .columns import BYTEWISE, Timestamp, flag, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    Table(
        "cache",
        tables,
        Column("key", BYTEWISE, primary_key=True),
        needed("stored_at", Timestamp),
        needed("expires_at", Timestamp),
        Column("kept_until", Timestamp),
        Column("lease", BigInteger),
        Column("lease_until", Timestamp),
        flag("awaited"),
        Column("took", REAL),
        Column("error", Text),
        Column("error_until", Timestamp),
        Column("generations", ARRAY(BigInteger)),
        Column("value", Text),
        Column("data", LargeBinary),
        prefixes=["UNLOGGED"],
    )
    Table(
        "cache_tags",
        tables,
        Column("name", BYTEWISE, primary_key=True),
        needed("generation", BigInteger),
        needed("changed_at", Timestamp),
        UniqueConstraint("generation"),
        prefixes=["UNLOGGED"],
    )
    Table(
        "cache_settings",
        tables,
        Column("one", Boolean, primary_key=True),
        Column("max_entries", BigInteger),
        Column("max_bytes", BigInteger),
    )
    Table(
        "cache_sweeps",
        tables,
        Column("one", Boolean, primary_key=True),
        *(
            needed(name, BigInteger, server_default=text("0"))
            for name in ("next_block", "seen_entries", "seen_bytes", "entries", "bytes")
        ),
        Column("evict_before", Timestamp),
        needed("tags_swept_at", Timestamp, server_default=text("'-infinity'::timestamp with time zone")),
        prefixes=["UNLOGGED"],
    )
    Table(
        "cache_counts",
        tables,
        Column("slot", Integer, primary_key=True, autoincrement=False),
        *(needed(name, BigInteger) for name in ("hits", "misses", "fills", "waits")),
        prefixes=["UNLOGGED"],
    )
    Table(
        "cache_near",
        tables,
        Column("one", Boolean, primary_key=True),
        needed("until", Timestamp),
        prefixes=["UNLOGGED"],
    )
