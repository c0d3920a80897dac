"""The tables of the locks: leases, and who waits for one."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Integer, MetaData, Table, Text

from .columns import BYTEWISE, Timestamp, flag, needed


def define(tables: MetaData) -> None:
    """Add these tables."""
    Table(
        "locks",
        tables,
        Column("name", BYTEWISE, primary_key=True),
        Column("slot", Integer, primary_key=True, autoincrement=False),
        needed("token", BigInteger),
        Column("holder", BigInteger),
        needed("shared", Boolean),
        needed("slots", Integer),
        needed("owner", Text),
        Column("note", Text),
        needed("acquired_at", Timestamp),
        needed("expires_at", Timestamp),
        Column("least_until", Timestamp),
        flag("many"),
        flag("line"),
    )
    Table(
        "lock_waiters",
        tables,
        Column("name", BYTEWISE, primary_key=True),
        Column("ticket", BigInteger, primary_key=True, autoincrement=False),
        needed("waiter", BigInteger),
        Column("channel", Text),
        needed("shared", Boolean),
        needed("slots", Integer),
        needed("since", Timestamp),
        needed("seen_at", Timestamp),
    )
