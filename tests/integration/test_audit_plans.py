"""A row's history is an index range, however large the trail is; so are notes about tracking."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests import server
from tests.exercise.audit import ALL
from tests.plans import Explained, nodes, rows_read

_FILL = """
insert into pgeverything.audit_entries (id, at, transaction_id, action, subject, key, old, new, session_role, role)
select nextval('pgeverything.audit_seq'), now() - (50000 - i) * interval '1 minute', i, 'update', 'public.t' || i % 2,
       '[' || i / 2 % 500 || ']', '{}', '{}', 'r', 'r'
from generate_series(1, 50000) i;
"""


@pytest.fixture(scope="module", params=[True, False], ids=["analyzed", "never-analyzed"])
def session(request: pytest.FixtureRequest, server_url: str, template: str) -> Iterator[Explained]:
    """A session on a trail of two tables of 500 rows, each of which was changed fifty times."""
    url = server.create_database(server_url, template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("alter table pgeverything.audit_entries_default set (autovacuum_enabled = off)")
        connection.execute(_FILL)
        if request.param:
            connection.execute("analyze")
        explained = Explained(connection)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
        yield explained
    server.drop_database(url)


@pytest.mark.parametrize(
    ("statement", "params"),
    [
        ("history", ALL | {"subject": "public.t1", "key": "[7]", "low": 0, "high": None, "limit": 100}),
        ("history_back", ALL | {"subject": "public.t1", "key": "[7]", "low": None, "high": 2**62, "limit": 100}),
        ("history", ALL | {"low": 30000, "high": None, "limit": 100}),
        ("history_back", ALL | {"low": None, "high": 2**62, "limit": 100}),
        ("get", {"id": 25000}),
        ("gap", {"subject": "public.t1", "at": "2026-01-01 00:00:00+00"}),
        ("sealed", {"low": 25000, "high": 2**62, "limit": 100}),
        ("id_at", {"at": "2026-01-01 00:00:00+00"}),
    ],
)
def test_little_is_read(session: Explained, statement: str, params: dict[str, Any]) -> None:
    session.plans.clear()
    session.run(f"audit.{statement}", **params)

    read = sum(rows_read(node) for _, plan in session.plans for node in nodes(plan["Plan"]))
    assert read < 1000, session.plans
