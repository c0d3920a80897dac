"""Every statement is planned against the migrated schema, and what runs often reads its tables through an index.

Tables are full, with statistics and without; and nearly empty, for the plans that are kept while tables fill.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

import pgeverything.schema
from pgeverything.engine.statements import numbered
from tests import server
from tests.exercise import exercise
from tests.plans import SQL, Explained, generic_plan, nodes, read_through, sorted_whole

_FILL = """
    insert into pgeverything.finished (id, queue, task, state, priority, args, created_at, started_at, finished_at,
                                       attempt, crashes, worker)
      select i, 'q' || i % 3, 't', 'succeeded', 0, '{}', now(), now(), now() - i % 4 * interval '1 day', 1, 0, 1
      from generate_series(1, 60000) i;
    select * from pgeverything.maintain_partitions(7, interval '100 years');
    alter sequence pgeverything.job_seq restart with 100001;
    create function pg_temp.many(n integer) returns jsonb return
      (select jsonb_agg(jsonb_build_object('n', i)) from generate_series(1, n) i);
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(40000), 'a');
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(30000), 'b', priority => 1);
    select count(*) from pgeverything.enqueue_many('u', pg_temp.many(20000), 'limited', priority => -1);
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(10000), 'c', delay => interval '1 hour');
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(10000), 'c', ordering_key => 'long');
    select pgeverything.enqueue('t', queue => 'c', ordering_key => 'k' || i) from generate_series(1, 2000) i;
    insert into pgeverything.jobs (id, queue, task, priority, args, created_at, dead, died_at, reason, fingerprint)
      select i, 'q' || i % 3, 't', 0, '{}', now(), true, now(), 'x', 'f' || i % 9 from generate_series(90001, 90500) i;
    insert into pgeverything.queues (name, concurrency, max_depth) values ('limited', 500, null), ('a', null, 1000000);
"""
_NO_AUTOVACUUM = "; ".join(
    f"alter table pgeverything.{table} set (autovacuum_enabled = off)"
    for table in ("jobs", "ready", "running", "scheduled", "waiting", "turns", "turn_notes", "workers")
)


@pytest.fixture(scope="module")
def still(server_url: str, template: str) -> Iterator[Callable[[str], str]]:
    """Make databases in which no autovacuum gathers statistics behind a test's back."""
    urls: list[str] = []

    def make(then: str) -> str:
        urls.append(server.create_database(server_url, template))
        with psycopg.connect(urls[-1], autocommit=True) as connection:
            connection.execute(_NO_AUTOVACUUM)
            for statement in filter(None, map(str.strip, then.split(";\n"))):
                connection.execute(statement)  # type: ignore[arg-type]
        return urls[-1]

    yield make
    for url in urls:
        server.drop_database(url)


@pytest.mark.parametrize("name", SQL)
def test_every_statement_fits_the_schema(db: psycopg.Connection[Any], name: str) -> None:
    text, parameters = numbered(SQL[name], "pgeverything")

    assert generic_plan(db, text, len(parameters))


@pytest.mark.parametrize("name", SQL)
def test_every_parameter_says_its_type(name: str) -> None:
    assert re.findall(r"%\(\w+\)s(?!::)", SQL[name].text) == []


def test_every_statement_file_is_known() -> None:
    files = (Path(pgeverything.schema.__file__).parent / "sql").glob("*.sql")

    assert {file.stem for file in files} == {statement.module for statement in SQL.values()}


def test_functions_that_rule_out_plans_turn_the_compiler_off(db: psycopg.Connection[Any]) -> None:
    ruling = db.execute(
        "select proname, proconfig from pg_proc"
        " where pronamespace = 'pgeverything'::regnamespace and proconfig::text like '%enable_%'"
    ).fetchall()

    assert ruling
    assert [name for name, config in ruling if "jit=off" not in config] == []


# Where reading a large table from end to end is what was asked for.
ALLOWED_TO_READ = {
    ("jobs.facts", "scheduled"),  # who holds the turn of a key: asked by a person, of a job that waits
    ("worker.nudge_lines", "turns"),  # every key that waits is looked up, once in 10 s for the whole fleet
    ("worker.nudge_lines", "turn_notes"),
}
# What walks a line from its front: sorting the line first is what made an index walk slow when statistics were missing.
IN_ORDER = {"worker.lanes", "worker.claim", "worker.claim_limited", "worker.advance"}


def faults(session: Explained, connection: psycopg.Connection[Any]) -> list[str]:
    """Return which large tables were read through or sorted, by which statement, beyond what is allowed."""
    large = {
        name
        for (name,) in connection.execute(
            "select relname from pg_class where relnamespace = 'pgeverything'::regnamespace and relkind = 'r'"
            " and pg_relation_size(oid) > 100000"
        )
    }
    assert {"jobs", "ready", "scheduled", "waiting"} < large
    found = set()
    for name, plan in session.plans:
        query = plan["Query Text"][:300]
        for table in read_through(plan["Plan"]) & large:
            if (name, table) not in ALLOWED_TO_READ:
                found.add(f"{name} reads all of {table}: {query}")
        for table in sorted_whole(plan["Plan"]) & {"ready", "scheduled", "waiting", "turn_notes"}:
            if name in IN_ORDER:
                found.add(f"{name} sorts {table}: {query}")
        if "JIT" in plan:
            found.add(f"{name} is compiled: {query}")
    return sorted(found)


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "never-analyzed"])
@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
def test_full_tables_are_read_through_their_indexes(still: Callable[[str], str], analyzed: bool, generic: bool) -> None:
    url = still(_FILL + ("analyze" if analyzed else ""))
    with psycopg.connect(url, autocommit=True) as connection:
        session = Explained(connection, generic=generic)
        for _ in range(2):
            exercise(session)

        assert "\n".join(faults(session, connection)) == ""


def test_a_plan_that_is_kept_reads_through_nothing_that_grows(still: Callable[[str], str]) -> None:
    """A session keeps the plans of functions and of prepared statements: they must suit the table that is to come."""
    with psycopg.connect(still(""), autocommit=True) as connection:
        session = Explained(connection)
        exercise(session)
        connection.execute("vacuum analyze")  # now every table is known to fit a page or two
        session.plans.clear()
        exercise(session)

    found = {
        f"{name} reads all of {table}: {plan['Query Text'][:300]}"
        for name, plan in session.plans
        if not (SQL[name].fresh and SQL[name].text.startswith(plan["Query Text"][:100]))
        for table in read_through(plan["Plan"])
        if table.startswith(("jobs", "ready", "scheduled", "waiting", "turn", "finished", "failures"))
    }
    assert "\n".join(sorted(found)) == ""


def test_a_page_of_jobs_reads_a_page_of_rows(still: Callable[[str], str]) -> None:
    with psycopg.connect(still(_FILL + "analyze"), autocommit=True) as connection:
        connection.execute("set jit = off")
        session = Explained(connection)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
        filters = {"queue": None, "task": None, "before": 2**62}
        for state in (None, "scheduled", "waiting", "running", "succeeded", "dead"):
            session.run("jobs.list", **filters, state=state, limit=50)

    for _, plan in session.plans:
        rows = sum(node["Actual Rows"] for node in nodes(plan["Plan"]) if "Relation Name" in node)
        assert rows <= 1000, plan
