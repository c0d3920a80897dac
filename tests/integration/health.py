"""What the tests of the health check ask of what it found, and a transaction for it to find."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg

from pgeverything.doctor import Check, Health
from tests import pgbouncer

Database = psycopg.Connection[Any]

ON_PURPOSE = {"durability", *(["listen"] if pgbouncer.EVERYWHERE else [])}
"""What is not well with the test server: it need not survive a crash, and may be behind a pooler."""


def wrong(health: Health) -> dict[str, str]:
    """Return what is not well."""
    return {each.name: each.verdict for each in health.checks if each.verdict != "ok" and each.name not in ON_PURPOSE}


def only(health: Health, name: str) -> Check:
    """Return the check of that name, the only one that is not well."""
    assert list(wrong(health)) == [name]
    return health[name]


@contextmanager
def open_transaction(url: str, *statements: str, **options: str) -> Iterator[Database]:
    with psycopg.connect(url, **options) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection
        connection.rollback()
