"""What the tests of the audit trail ask of it and of the database's clock."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


def now(db: Database) -> datetime:
    return db.execute("select clock_timestamp()").fetchall()[0][0]


def told(pg: Any, table: str | None = None, key: Any = None, **filters: Any) -> list[tuple[Any, ...]]:
    """Return (action, key, old, new) of the entries of a table's rows."""
    entries = pg.audit.history(table, key, **filters)
    return [(e.action, e.key, e.old, e.new) for e in entries if e.action not in ("track", "untrack")]
