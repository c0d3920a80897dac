"""What the tests of the cache do to entries behind its back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]


def expire(db: Database, *keys: str) -> None:
    """Let entries be past their time."""
    db.execute(
        "update pgeverything.cache set expires_at = clock_timestamp() - interval '1 microsecond' where key = any (%s)",
        [list(keys)],
    )
