"""The tables of the audit trail."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Date, Index, Integer, LargeBinary, MetaData, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from .columns import BYTEWISE, Timestamp, needed

_SETTING = "NULLIF(current_setting('pgeverything_audit.{}'::text, true), ''::text)"
_ROLE = """
CASE current_setting('role'::text)
    WHEN 'none'::text THEN (SESSION_USER)::text
    ELSE current_setting('role'::text)
END"""


def define(tables: MetaData) -> None:
    """Add these tables. Entries are in monthly partitions, which come and go: query the parent."""
    entries = Table(
        "audit_entries",
        tables,
        needed("id", BigInteger),
        needed("at", Timestamp, server_default=text("clock_timestamp()")),
        needed("transaction_id", BigInteger, server_default=text("((pg_current_xact_id())::text)::bigint")),
        needed("action", Text),
        needed("subject", BYTEWISE),
        Column("key", BYTEWISE),
        Column("other_key", BYTEWISE),
        Column("old", JSONB),
        Column("new", JSONB),
        Column("masked", ARRAY(Text)),
        Column("digests", JSONB),
        Column("personal", JSONB),
        Column("actor", Text, server_default=text(_SETTING.format("actor"))),
        Column("reason", Text, server_default=text(_SETTING.format("reason"))),
        Column("context", JSONB, server_default=text(f"({_SETTING.format('context')})::jsonb")),
        needed("session_role", Text, server_default=text("SESSION_USER")),
        needed("role", Text, server_default=text(_ROLE)),
        postgresql_partition_by="RANGE (at)",
    )
    Index("audit_entries_id", entries.c.id)
    Index("audit_entries_key", entries.c.subject, entries.c.key, entries.c.id)
    Index("audit_entries_transaction", entries.c.transaction_id, postgresql_using="brin")
    Table(
        "audit_blocks",
        tables,
        Column("number", BigInteger, primary_key=True, autoincrement=False),
        needed("month", Date),
        needed("first_id", BigInteger),
        needed("last_id", BigInteger),
        needed("entries", Integer),
        needed("sealed_at", Timestamp),
        needed("root", LargeBinary),
        needed("hash", LargeBinary),
        Column("ids", ARRAY(BigInteger)),
        Column("leaves", LargeBinary),
    )
    Table(
        "audit_sealing",
        tables,
        Column("single", Boolean, primary_key=True, server_default=text("true")),
        needed("horizon", BigInteger, server_default=text("0")),
        Column("pending_id", BigInteger),
        Column("pending_xid", BigInteger),
        Column("dropped", Date),
    )
