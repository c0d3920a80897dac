"""What the tests of locks do to leases behind their holder's back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


def run_out(db: Database, name: str) -> None:
    """Let the leases on a name end now, as they do when their holder dies."""
    db.execute("update pgeverything.locks set expires_at = clock_timestamp() where name = %s", [name])
