"""With many schedules and many ticks, what runs often reads them through an index: whatever statistics say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from tests import server
from tests.exercise import scheduler
from tests.plans import Explained, nodes, read_through, sorted_whole

# The ticks are of today by UTC, whatever the time: those of one day are one partition.
_NO_AUTOVACUUM = "alter table pgeverything.schedules set (autovacuum_enabled = off)"
_FILL = """
    insert into pgeverything.schedules (name, task, args, queue, priority, cron, seconds, timezone, misfire, catch_up,
        overlap, jitter, digest, origin, rules, ticked_until, next_tick, next_run_at, last_job, created_at, changed_at)
      select 's' || i, 't', '{}', 'q', 0, '* * * * *', false, 'Europe/Paris', 'once', 100, 'skip', '0', 'd', 'shop',
             'r', now(), now() + make_interval(mins => i), now() + make_interval(mins => i), i, now(), now()
      from generate_series(1, 20000) i;
    insert into pgeverything.ticks (schedule, tick, outcome, job, at)
      select 's' || i % 100, date_trunc('day', now(), 'UTC') + make_interval(secs => i / 100), 'ran', i, now()
      from generate_series(1, 60000) i;
    select pgeverything.maintain_ticks(7, interval '100 years');
"""
_EMPTIED = """
    delete from pgeverything.schedules; delete from pgeverything.ticks; vacuum analyze pgeverything.schedules;
    vacuum analyze pgeverything.ticks;
"""
# Asked by a person, at the start of a worker, or once an hour.
SELDOM = {
    "scheduler.list",
    "scheduler.other_rules",
    "scheduler.of_rules",
    "scheduler.compare_code",
    "scheduler.forget_ended",
    "scheduler.maintain",
    "scheduler.troubles",
}


@pytest.fixture
def database(server_url: str, template: str) -> Iterator[psycopg.Connection[Any]]:
    url = server.create_database(server_url, template)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_NO_AUTOVACUUM)
        yield connection
    server.drop_database(url)


def run(connection: psycopg.Connection[Any], text: str) -> None:
    for statement in filter(None, map(str.strip, text.split(";"))):
        connection.execute(statement.encode())


def faults(session: Explained, connection: psycopg.Connection[Any]) -> set[str]:
    found = set()
    large = {
        name
        for (name,) in connection.execute(
            "select relname from pg_class where relnamespace = 'pgeverything'::regnamespace and relkind = 'r'"
            " and pg_relation_size(oid) > 100000"
        )
    }
    assert "schedules" in large
    assert any(name.startswith("ticks_") for name in large)
    for name, plan in session.plans:
        if not name.startswith("scheduler.") or name in SELDOM:
            continue
        tables = read_through(plan["Plan"]) | (sorted_whole(plan["Plan"]) if name == "scheduler.lock_due" else set())
        for table in tables & large:
            if table == "schedules" or table.startswith("ticks"):
                found.add(f"{name} reads all of {table}: {plan['Query Text'][:200]}")
        if "JIT" in plan:
            found.add(f"{name} is compiled")
        for node in nodes(plan["Plan"]):
            if node.get("Relation Name") == "schedules" and node.get("Actual Rows", 0) > 1000:
                found.add(f"{name} reads {node['Actual Rows']} schedules: {plan['Query Text'][:200]}")
    return found


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
@pytest.mark.parametrize(
    "prepared", [_FILL, _FILL + "analyze", _FILL + _EMPTIED + _FILL], ids=["never-analyzed", "analyzed", "found-empty"]
)
def test_many_schedules(database: psycopg.Connection[Any], prepared: str, generic: bool) -> None:
    run(database, prepared)
    session = Explained(database, generic=generic)
    database.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
    for _ in range(2):
        scheduler.exercise(session)
    assert "\n".join(sorted(faults(session, database))) == ""


def test_plans_that_are_kept_from_when_there_were_few(database: psycopg.Connection[Any]) -> None:
    session = Explained(database)
    scheduler.exercise(session)
    run(database, "vacuum analyze")
    for _ in range(7):  # until a session has made up its mind
        scheduler.exercise(session)
    run(database, _FILL)
    session.plans.clear()
    database.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
    scheduler.exercise(session)
    assert "\n".join(sorted(faults(session, database))) == ""
