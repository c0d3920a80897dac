"""What runs often on the event log reads what it was asked for and little more, whatever the planner believes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from tests import server
from tests.exercise.events import exercise
from tests.plans import Explained, nodes, read_through, rows_read

_NO_AUTOVACUUM = "; ".join(
    f"alter table pgeverything.{table} set (autovacuum_enabled = off)"
    for table in ("events_000000", "topics", "streams", "event_receipts", "event_sleepers")
)
_FILL = """
    create or replace function pg_temp.many(n integer) returns jsonb return
      (select jsonb_agg(jsonb_build_object('n', i)) from generate_series(1, n) i);
    select count(pgeverything.topic_id('many.' || i)) from generate_series(1, 4000) i;
    select pgeverything.append_many('rare.one', pg_temp.many(20), keys => '{k}');
    select count(a)
      from generate_series(1, 6) i, pgeverything.append_many('orders.eu', pg_temp.many(2000 + 0 * i), '{t}') a;
    select pgeverything.append_many('orders.us', pg_temp.many(6000),
                                    keys => array(select 'key ' || i from generate_series(1, 6000) i));
    select count(pgeverything.publish('many.' || i, '1', idempotency_key => i::text)) from generate_series(1, 4000) i;
    select pgeverything.append_many('rare.one', pg_temp.many(20), keys => '{k}');
    insert into pgeverything.event_receipts
      select 'old', i, now() - interval '1 year', '{1}' from generate_series(1, 6000) i
"""
LARGE = {"events_000000", "topics", "streams", "event_receipts"}
MANY = 3000  # rows: more than a batch reads here, fewer than any of these tables has
ASKED_TO = {
    ("events.topics", "events_000000"),  # what is not counted yet, for a person
    ("events.topics", "topics"),  # all of them
    ("events.own", "events_000000"),  # BRIN leaves pages out by the hundred, and this log has fewer
    ("events.position_at", "events_000000"),  # 10,000 positions on either side of a time
}


@pytest.fixture
def empty(server_url: str, template: str) -> Iterator[str]:
    url = server.create_database(server_url, template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_NO_AUTOVACUUM)
    yield url
    server.drop_database(url)


def run(connection: psycopg.Connection[Any], statements: str) -> None:
    for statement in filter(None, map(str.strip, statements.split(";\n"))):
        connection.execute(statement)  # type: ignore[arg-type]


def faults(session: Explained) -> str:
    """Return which statement read more of a large table than it was asked for."""
    found = set()
    for name, plan in session.plans:
        much = {str(node.get("Relation Name")) for node in nodes(plan["Plan"]) if rows_read(node) > MANY}
        for table in (read_through(plan["Plan"]) | much) & LARGE:
            if (name, table) not in ASKED_TO:
                found.add(f"{name} reads all of {table}: {plan['Query Text'][:300]}")
        if "JIT" in plan:
            found.add(f"{name} is compiled: {plan['Query Text'][:300]}")
    return "\n".join(sorted(found))


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize("then", ["", "analyze", "vacuum analyze"], ids=["never-analyzed", "analyzed", "vacuumed"])
def test_a_large_log_is_read_by_its_indexes(empty: str, then: str, generic: bool) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        run(connection, f"{_FILL};\n{then}")
        session = Explained(connection, generic=generic)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set jit = off")
        for _ in range(2):
            exercise(session)

        assert faults(session) == ""


def test_plans_that_were_kept_from_an_empty_log_suit_a_large_one(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection, psycopg.connect(empty, autocommit=True) as other:
        session = Explained(connection, generic=True)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set jit = off")
        exercise(session)
        connection.execute("vacuum analyze")
        exercise(session)
        run(other, _FILL)
        session.plans.clear()
        exercise(session)

        assert faults(session) == ""


@pytest.fixture
def large(empty: str) -> Iterator[Callable[..., int]]:
    """Run a statement on a large log that has never been analyzed; returns how many rows it read of all tables."""
    with psycopg.connect(empty, autocommit=True) as connection:
        run(connection, _FILL)
        session = Explained(connection)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")

        def read(name: str, **params: object) -> int:
            session.plans.clear()
            session.run(name, **params)
            return sum(rows_read(node) for _, plan in session.plans for node in nodes(plan["Plan"]))

        yield read


# Most of the log is between the two ends of the rare topic.
def test_a_rare_topic_is_found_without_reading_the_others(large: Callable[..., int]) -> None:
    params: dict[str, object] = {"low": None, "high": None, "regex": None, "key": None, "type": None, "limit": 100}

    assert large("events.far", topic="rare.one", after=0, upto=20_000, **params) < 300
    assert large("events.far", topic="rare.one", after=0, upto=20_000, **params | {"key": "k"}) < 300


def test_a_pattern_of_many_topics_reads_a_few_of_each(large: Callable[..., int]) -> None:
    params: dict[str, object] = {
        "low": "many.",
        "high": "many/",
        "regex": None,
        "key": None,
        "type": None,
        "limit": 100,
    }

    assert large("events.far", topic=None, after=0, upto=20_000, **params) < 5 * 4000


def test_an_idle_poll_reads_no_event(large: Callable[..., int]) -> None:
    assert large("events.horizon", after=10**9, own=False) == 0
