"""What members run often reads what it was asked for and little more, whatever a subscription has gathered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests import server
from tests.exercise.pubsub import exercise
from tests.plans import Explained, nodes, read_through, rows_read

_NO_AUTOVACUUM = "; ".join(
    f"alter table pgeverything.{table} set (autovacuum_enabled = off)"
    for table in ("events_000000", "topics", "deliveries", "subscriptions", "members")
)
# A long log, and a subscription that stands before its end with 6,000 each of what is dead, what waits for its time,
# what is behind keys that are held, and what is in flight elsewhere.
_FILL = """
    create or replace function pg_temp.many(n integer) returns jsonb return
      (select jsonb_agg(jsonb_build_object('n', i)) from generate_series(1, n) i);
    select count(pgeverything.topic_id('many.' || i)) from generate_series(1, 4000) i;
    select count(a) from generate_series(1, 4) i, pgeverything.append_many('jobs.eu', pg_temp.many(6000 + 0 * i)) a;
    select id from pgeverything.create_subscription('full', 'jobs.>', null, 'jobs.', 'jobs/', null, 'earliest', null,
                                                    true, 5, 'hold');
    insert into pgeverything.deliveries (subscription, position, lane, member, token, due_at, dead_id, died_at)
      select s.id, e.position,
             case n % 4 when 0 then n when 1 then n - 1 end,
             case when n % 4 = 2 then -1 end, case when n % 4 = 2 then n end,
             case when n % 4 = 3 then now() + n * interval '1 hour' end, case when n % 4 = 0 then n end,
             case when n % 4 = 0 then now() end
      from pgeverything.subscriptions s, (select position, row_number() over (order by position) as n
                                          from pgeverything.events) e
      where s.name = 'full';
    update pgeverything.subscriptions set claimed = (select max(position) from pgeverything.events) where name = 'full';
    select count(a) from generate_series(1, 4) i, pgeverything.append_many('other', pg_temp.many(5000 + 0 * i)) a;
    select pgeverything.append_many('jobs.us', pg_temp.many(6000), keys => array(
      select 'key ' || i from generate_series(1, 6000) i));
"""
LARGE = {"events_000000", "deliveries", "topics"}
MANY = 3000  # rows: more than a claim reads here, fewer than any of these tables has
ASKED_TO = {
    ("pubsub.list", "deliveries"),  # counts what there is, for a person
    ("pubsub.backlog", "events_000000"),  # counts what there is, for a person
    ("pubsub.backlog", "deliveries"),
    ("pubsub.leave", "deliveries"),  # looks for what a member holds when it ends
    ("pubsub.rescue", "deliveries"),
    ("pubsub.orphans", "deliveries"),  # after a connection was lost
    ("pubsub.seek", "deliveries"),  # forgets what there is
    ("pubsub.delete", "deliveries"),
    ("pubsub.resume", "deliveries"),
    ("pubsub.open", "deliveries"),  # when a worker is to end as soon as it is idle
    ("pubsub.create", "events_000000"),  # 10,000 positions on either side of a time
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


def work(session: Explained) -> None:
    """Claim, acknowledge and put back in the subscription that is full."""
    [(subscription, *_)] = [row for row in session.run("pubsub.list", name=None) if row[1] == "full"]
    member = session.run("pubsub.register", name="m", subscriptions=[subscription], lease=30.0)[0][0]
    for _ in range(3):
        rows = session.run("pubsub.claim", member=member, subscriptions=[subscription], most=[200])
        held = [row for row in rows if row[3] is not None]
        assert len(held) == 200
        session.run(
            "pubsub.acknowledge",
            subscriptions=[subscription] * 100,
            positions=[row[3] for row in held[:100]],
            tokens=[row[4] for row in held[:100]],
        )
        for row in held[100:103]:
            how = {"delay": 0.0, "failed": 1, "delivered": 1, "reason": None, "fingerprint": None, "error": None}
            session.run("pubsub.put_back", subscription=subscription, position=row[3], token=row[4], **how)
    session.run("pubsub.beat", members=[member])


def faults(session: Explained) -> str:
    """Return which statement read more of a large table than it was asked for."""
    found = set()
    for name, plan in session.plans:
        much = {str(node.get("Relation Name")) for node in nodes(plan["Plan"]) if rows_read(node) > MANY}
        for table in (read_through(plan["Plan"]) | much) & LARGE:
            if (name, table) not in ASKED_TO and name.startswith("pubsub."):
                found.add(f"{name} reads all of {table}: {plan['Query Text'][:60]} {plan['Plan']['Node Type']}")
        if "JIT" in plan:
            found.add(f"{name} is compiled: {plan['Query Text'][:300]}")
    return "\n".join(sorted(found))


def explained(connection: psycopg.Connection[Any], *, generic: bool) -> Explained:
    session = Explained(connection, generic=generic)
    connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off; set jit = off")
    return session


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize("then", ["", "vacuum analyze"], ids=["never-analyzed", "vacuumed"])
def test_a_full_subscription_is_worked_on_by_its_indexes(empty: str, then: str, generic: bool) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        run(connection, f"{_FILL};\n{then}")
        session = explained(connection, generic=generic)
        work(session)
        exercise(session)

        assert faults(session) == ""


def test_plans_that_were_kept_from_empty_tables_suit_full_ones(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection, psycopg.connect(empty, autocommit=True) as other:
        session = explained(connection, generic=True)
        exercise(session)
        connection.execute("vacuum analyze")
        exercise(session)
        run(other, _FILL)
        session.plans.clear()
        work(session)

        assert faults(session) == ""


def test_an_idle_poll_reads_no_event_and_hardly_a_delivery(empty: str) -> None:
    with psycopg.connect(empty, autocommit=True) as connection:
        run(connection, _FILL)
        connection.execute(
            "update pgeverything.subscriptions set claimed = (select max(position) from pgeverything.events)"
        )
        session = explained(connection, generic=False)
        [(subscription, *_)] = session.run("pubsub.list", name=None)
        member = session.run("pubsub.register", name="m", subscriptions=[subscription], lease=30.0)[0][0]
        session.run("pubsub.claim", member=member, subscriptions=[subscription], most=[100])
        session.plans.clear()
        session.run("pubsub.claim", member=member, subscriptions=[subscription], most=[100])

        read = sum(rows_read(node) for _, plan in session.plans for node in nodes(plan["Plan"]))
        assert read < 1000
