"""Every statement is planned against the migrated schema, and what runs often reads its tables through an index.

Tables are full, with statistics and without; and nearly empty, for the plans that are kept while tables fill.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pgeverything.engine.statements import numbered
from tests import server
from tests.exercise import exercise
from tests.plans import SQL, Explained, generic_plan, nodes, read_through, rows_read, sorted_whole

_LIVE = (
    "jobs", "ready", "running", "scheduled", "waiting", "turns", "turn_notes", "workers", "cache", "cache_tags",
    "locks", "lock_waiters",
)  # fmt: skip
_HISTORY = """
    insert into pgeverything.finished (id, queue, task, state, priority, args, created_at, started_at, finished_at,
                                       attempt, crashes, worker)
      select -100000 - i, 'q' || i % 3, 't', 'succeeded', 0, '{}', now(), now(), now() - i % 4 * interval '1 day',
             1, 0, 1
      from generate_series(1, 60000) i;
    select * from pgeverything.maintain_partitions(7, interval '100 years');
"""
_FILL = """
    create or replace function pg_temp.many(n integer) returns jsonb return
      (select jsonb_agg(jsonb_build_object('n', i)) from generate_series(1, n) i);
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(40000), 'a');
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(30000), 'b', priority => 1);
    select count(*) from pgeverything.enqueue_many('u', pg_temp.many(20000), 'limited', priority => -1);
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(10000), 'c', delay => interval '1 hour');
    select count(*) from pgeverything.enqueue_many('t', pg_temp.many(10000), 'c', ordering_key => 'long');
    select pgeverything.enqueue('t', queue => 'c', ordering_key => 'k' || i) from generate_series(1, 2000) i;
    insert into pgeverything.jobs (id, queue, task, priority, args, created_at, dead, died_at, reason, fingerprint)
      select i, 'q' || i % 3, 't', 0, '{}', now(), true, now(), 'x', 'f' || i % 9
      from generate_series(1000001, 1000500) i;
    insert into pgeverything.queues (name, concurrency, max_depth) values ('limited', 500, null), ('a', null, 1000000);
    insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease)
      values (0, 'busy', '{z}', 1, now(), now(), '1 day');
    insert into pgeverything.running (job, token, worker, queue, attempt, crashes, started_at)
      select -i, -i, 0, 'z', 1, 0, now() from generate_series(1, 20000) i;
    insert into pgeverything.turns select 'z', i, 1 from generate_series(1, 20000) i;
    insert into pgeverything.locks (name, slot, token, shared, slots, owner, acquired_at, expires_at)
      select 'l' || i, 1, i, false, 1, 'o', now() - interval '2 days', now() - i % 3 * interval '1 day'
      from generate_series(1, 20000) i;
    insert into pgeverything.lock_waiters (name, ticket, waiter, shared, slots, since, seen_at)
      select 'l' || i % 9, -i, i, false, 1, now(), now() from generate_series(1, 20000) i;
    insert into pgeverything.audit_entries (id, at, transaction_id, action, subject, key, old, new, session_role, role)
      select nextval('pgeverything.audit_seq'), now(), i, 'update', 'public.t' || i % 9, '[' || i / 9 % 500 || ']',
             '{}', '{}', 'r', 'r'
      from generate_series(1, 40000) i;
    insert into pgeverything.cache_tags
      select 'tag-' || i, nextval('pgeverything.cache_seq'), now() from generate_series(1, 20000) i;
    insert into pgeverything.cache (key, stored_at, expires_at, generations, value)
      select 'full-' || t.name, now(), 'infinity', case when t.generation % 10 = 0 then array[t.generation] end, '1'
      from pgeverything.cache_tags t;
"""
# What vacuums leave behind that met each table at a moment when all its rows were dead: many pages, and the record that
# there are no rows.
_FOUND_EMPTY = "".join(
    f"delete from pgeverything.{table};\nvacuum (truncate off) pgeverything.{table};\n" for table in (*_LIVE, "queues")
)
_NO_AUTOVACUUM = "; ".join(f"alter table pgeverything.{table} set (autovacuum_enabled = off)" for table in _LIVE)


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


def test_functions_that_rule_out_plans_turn_the_compiler_off(db: psycopg.Connection[Any]) -> None:
    ruling = db.execute(
        "select proname, proconfig from pg_proc"
        " where pronamespace = 'pgeverything'::regnamespace and proconfig::text like '%enable_%'"
    ).fetchall()

    assert ruling
    assert [name for name, config in ruling if "jit=off" not in config] == []


# Where reading much of a large table is what was asked for.
ALLOWED_TO_READ = {
    ("jobs.enqueue", "ready"),  # counts a queue that has a max_depth
    ("jobs.enqueue_many", "ready"),
    ("jobs.full", "ready"),
    ("scheduler.fire", "ready"),  # enqueues
    ("jobs.facts", "scheduled"),  # who holds the turn of a key: asked by a person, of a job that waits
    ("jobs.facts", "running"),
    ("jobs.facts", "ready"),  # how many are ahead
    ("jobs.facts", "waiting"),
    ("jobs.list", "jobs"),  # a page for a person: walks past jobs in other states, sorts what has no statistics
    ("jobs.list", "scheduled"),
    ("jobs.list", "waiting"),
    ("jobs.list", "running"),
    ("dead_letters.groups", "jobs"),  # asked by a person
    ("worker.orphans", "running"),  # after a connection was lost
    ("worker.rescue", "running"),  # once in 10 s for the whole fleet, when there is somebody to rescue
    ("worker.nudge_lines", "turns"),  # every key that waits is looked up, once in 10 s for the whole fleet
    ("worker.nudge_lines", "turn_notes"),
    ("events.far", "events_000000"),  # a few pages here; test_event_batches.py has a log of some size
    ("doctor.workers", "running"),
    ("doctor.crashing", "running"),  # asked by a person, or once a minute
    ("doctor.crashing", "scheduled"),
    ("doctor.oldest", "ready"),
    ("doctor.oldest", "scheduled"),
    ("doctor.oldest", "waiting"),
    ("doctor.strays", "finished"),  # as far as its first row
    ("locks.list", "locks"),  # asked by a person
    ("audit.seal", "audit_entries"),  # a block has 10,000 entries
    ("audit.history", "audit_entries"),  # by actor and time; test_audit_plans.py looks at one row's
    ("audit.history_back", "audit_entries"),
    ("audit.as_of", "audit_entries"),  # of the whole table, since long ago
    ("audit.unsealed", "audit_entries"),  # asked by a person
    ("audit.drop", "audit_entries"),
    ("audit.as_of", "audit_entries"),  # of a whole table
    ("trace.entries", "audit_entries"),  # asked by a person; BRIN leaves pages out by the hundred, and these are fewer
    ("trace.jobs", "jobs"),
    ("trace.jobs", "finished"),
    ("locks.sweep", "locks"),  # a stretch of it
    ("locks.sweep", "lock_waiters"),  # once a minute for the whole fleet
}
MANY = 5000  # rows: more than any batch here, fewer than any large table has
# What walks a line from its front: sorting the line first is what made an index walk slow when statistics were missing.
IN_ORDER = {"worker.lanes", "worker.claim", "worker.claim_limited", "worker.advance"}


def explained(connection: psycopg.Connection[Any], *, generic: bool = False) -> Explained:
    """Return a session whose plans tell what they really did."""
    session = Explained(connection, generic=generic)
    connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
    return session


def faults(session: Explained, connection: psycopg.Connection[Any]) -> str:
    """Return which large tables were read through or sorted, by which statement, beyond what is allowed."""
    large = {
        name
        for (name,) in connection.execute(
            "select relname from pg_class where relnamespace = 'pgeverything'::regnamespace and relkind = 'r'"
            " and pg_relation_size(oid) > 100000"
        )
    }
    assert {"jobs", "ready", "running", "scheduled", "waiting", "turns", "cache", "cache_tags"} <= large
    assert {"locks", "lock_waiters"} <= large
    found = set()
    for name, plan in session.plans:
        query = plan["Query Text"][:300]
        through = read_through(plan["Plan"]) & large
        much = {str(node.get("Relation Name")) for node in nodes(plan["Plan"]) if rows_read(node) > MANY}
        for table in through | much:
            parent = re.sub(r"_(default|\d{6,8})$", "", table)
            if not {(name, table), (name, parent)} & ALLOWED_TO_READ:
                found.add(f"{name} reads all of {table}: {query}")
        below = nodes(plan["Plan"])
        compared = max(node.get("Rows Removed by Join Filter", 0) * node["Actual Loops"] for node in below)
        if compared > MANY and name != "jobs.list":  # which a person waits for, not a worker
            found.add(f"{name} compares each with each: {query}")
        for table in sorted_whole(plan["Plan"]) & {"ready", "scheduled", "waiting", "turn_notes"}:
            if name in IN_ORDER:
                found.add(f"{name} sorts {table}: {query}")
        if "JIT" in plan and name not in {"jobs.facts", "audit.tracked"}:  # asked by a person
            found.add(f"{name} is compiled: {query}")
    return "\n".join(sorted(found))


@pytest.mark.parametrize("analyzed", [True, False], ids=["analyzed", "never-analyzed"])
@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
def test_full_tables_are_read_through_their_indexes(still: Callable[[str], str], analyzed: bool, generic: bool) -> None:
    url = still(_HISTORY + _FILL + ("analyze" if analyzed else ""))
    with psycopg.connect(url, autocommit=True) as connection:
        session = explained(connection, generic=generic)
        for _ in range(2):
            exercise(session)

        assert faults(session, connection) == ""


@pytest.mark.parametrize("generic", [True, False], ids=["generic", "custom"])
def test_vacuums_that_met_empty_tables_change_nothing(still: Callable[[str], str], generic: bool) -> None:
    """Under load a vacuum finds such a moment, and what it records is believed until the next one."""
    with psycopg.connect(still(_HISTORY + _FILL + _FOUND_EMPTY + _FILL), autocommit=True) as connection:
        recorded = connection.execute(
            "select distinct reltuples, relpages > 10 from pg_class"
            " where relnamespace = 'pgeverything'::regnamespace and relname = any (%s)",
            [["jobs", "ready", "running", "scheduled", "waiting", "turns"]],
        ).fetchall()
        assert recorded == [(0.0, True)]
        session = explained(connection, generic=generic)
        for _ in range(2):
            exercise(session)

        assert faults(session, connection) == ""


def test_plans_that_were_kept_from_empty_tables_suit_full_ones(still: Callable[[str], str]) -> None:
    """A session keeps the plans of functions and of prepared statements."""
    url = still(_HISTORY)
    with psycopg.connect(url, autocommit=True) as connection, psycopg.connect(url, autocommit=True) as other:
        session = explained(connection, generic=True)
        exercise(session)
        connection.execute("vacuum analyze")  # now every table is known to fit a page or two
        exercise(session)
        for statement in filter(None, map(str.strip, _FILL.split(";\n"))):
            other.execute(statement)  # type: ignore[arg-type]
        session.plans.clear()
        exercise(session)

        assert faults(session, connection) == ""


def test_a_page_of_jobs_reads_a_page_of_rows(still: Callable[[str], str]) -> None:
    with psycopg.connect(still(_HISTORY + _FILL + "analyze"), autocommit=True) as connection:
        connection.execute("set jit = off")
        session = Explained(connection)
        connection.execute("set auto_explain.log_analyze = on; set auto_explain.log_timing = off")
        filters = {"queue": None, "task": None, "before": 2**62}
        for state in (None, "scheduled", "waiting", "running", "succeeded", "dead"):
            session.run("jobs.list", **filters, state=state, limit=50)

    for _, plan in session.plans:
        rows = sum(node["Actual Rows"] for node in nodes(plan["Plan"]) if "Relation Name" in node)
        assert rows <= 1000, plan
