"""The health check of the schema and of what the modules keep in it: each is damaged or late, and found."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgeverything import PgEverything, local
from pgeverything.doctor import modules, queues, vacuum

from .health import only, open_transaction, wrong

Database = psycopg.Connection[Any]


# The schema ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(new_database: Callable[[], str]) -> Iterator[PgEverything]:
    """An application over a migrated database of the test's own, to be damaged."""
    with PgEverything(new_database()) as application:
        application.migrate()
        yield application


def damage(pg: PgEverything, *statements: str) -> None:
    with psycopg.connect(pg._database.conninfo(), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def test_a_schema_that_is_not_there(new_database: Callable[[], str]) -> None:
    with PgEverything(new_database()) as pg:
        health = pg.doctor()
        assert health.migrated is False
        assert only(health, "schema").fix == "run `pgeverything migrate`"
        with pytest.raises(KeyError):
            health["queues"]


def test_a_schema_of_a_newer_release(own: PgEverything) -> None:
    newer = "insert into pgeverything.migrations (version, name, breaking) values (9001, 'later', {})"
    damage(own, newer.format("false"))
    check = own.doctor()["schema"]
    assert (check.verdict, check.figures["migration"]) == ("ok", 9001)
    assert "newer than this library" in check.found

    damage(own, "delete from pgeverything.migrations where version = 9001", newer.format("true"))
    health = own.doctor()
    assert (health.migrated, health["schema"].verdict) == (None, "problem")
    assert health["schema"].fix == "upgrade this installation"


def test_another_schema_than_ours(own: PgEverything) -> None:
    with PgEverything(own._database.conninfo(), schema="Our Jobs") as pg:
        pg.migrate()
        assert wrong(pg.doctor()) == {}


def test_something_that_was_dropped(own: PgEverything) -> None:
    damage(own, "drop table pgeverything.cache_settings")
    check = only(own.doctor(), "cache")

    assert check.verdict == "problem"
    assert "something of the schema is gone" in check.found


def test_a_role_without_rights(own: PgEverything) -> None:
    role = f"stranger_{os.getpid()}"
    damage(own, f"create role {role}")
    try:
        with PgEverything(make_conninfo(own._database.conninfo(), options=f"-c role={role}")) as stranger:
            health = stranger.doctor()
            assert (health.migrated, health["schema"].verdict) == (None, "problem")
            assert "may not use schema" in health["schema"].found

            damage(own, f"grant usage on schema pgeverything to {role}")
            check = stranger.doctor()["schema"]
            assert (check.verdict, "permission denied for table migrations" in check.found) == ("unknown", True)

            damage(own, f"grant select on pgeverything.migrations, pgeverything.queues to {role}")
            with open_transaction(own._database.conninfo(), "create temp table t ()"):
                health = stranger.doctor()
    finally:
        damage(own, f"drop owned by {role}; drop role {role}")

    assert health.migrated
    found = wrong(health)
    assert found["privileges"] == "warning"
    assert "delete on" in health["privileges"].found
    assert {name for name, verdict in found.items() if verdict == "unknown"} == {
        "vacuum", "partitions", "workers", "queues", "dead letters", "subscriptions", "schedules", "cache", "audit",
    }  # fmt: skip
    assert "pg_read_all_stats" in (health["vacuum"].fix or "")
    assert "permission denied for table workers" in health["workers"].found
    assert "problem" not in found.values()


def test_an_index_that_broke(own: PgEverything) -> None:
    damage(own, "insert into pgeverything.topics (id, name) values (1, 'a'), (2, 'a')")
    with pytest.raises(psycopg.errors.UniqueViolation):
        damage(own, "create unique index concurrently half_done on pgeverything.topics (name)")
    check = only(own.doctor(), "indexes")

    assert check.verdict == "problem"
    assert "half_done on topics" in check.found


def test_partitions_that_are_missing(own: PgEverything) -> None:
    damage(own, f"drop table pgeverything.finished_{tomorrow(own)}")
    check = only(own.doctor(), "partitions")

    assert check.verdict == "warning"
    assert "finished has 0" in check.found
    assert check.figures["ahead"]["ticks"] == 7


def tomorrow(pg: PgEverything) -> str:
    with psycopg.connect(pg._database.conninfo()) as connection:
        row = connection.execute("select to_char((now() at time zone 'UTC') + interval '1 day', 'YYYYMMDD')").fetchone()
        assert row is not None
        return str(row[0])


def test_partitions_of_the_event_log_that_are_missing(own: PgEverything) -> None:
    damage(own, "select setval('pgeverything.event_seq', 5000000000)")
    assert "events has 0" in only(own.doctor(), "partitions").found


def test_rows_that_have_no_partition(own: PgEverything) -> None:
    damage(
        own,
        "insert into pgeverything.failures (job, at, attempt, error) values (1, '2001-01-01', 1, '{}')",
    )
    assert only(own.doctor(), "partitions").figures["strays"] == ["failures_default"]


def test_autovacuum_that_was_turned_off_and_what_comes_of_it(own: PgEverything) -> None:
    damage(
        own,
        "alter table pgeverything.ready set (autovacuum_enabled = off)",
        "insert into pgeverything.ready (queue, priority, seq, job) select 'q', 0, i, i from generate_series(1, 6e4) i",
        "delete from pgeverything.ready",
    )
    health = own.doctor()
    deadline = time.monotonic() + 30
    while health["bloat"].verdict == "ok" and time.monotonic() < deadline:  # sessions report as they end
        health = own.doctor()

    assert wrong(health) == {"autovacuum": "problem", "bloat": "warning"}
    assert "off for ready" in health["autovacuum"].found
    assert "ready has 60,000 dead rows (vacuum is due at 5,000)" in health["bloat"].found


# Event log, scheduler, cache ----------------------------------------------------------------------------------------


def test_a_sequence_that_hands_out_ahead(own: PgEverything) -> None:
    damage(own, "alter sequence pgeverything.event_seq cache 20")
    assert "readers may miss events" in only(own.doctor(), "events").found


def test_schedules_that_do_not_tick(pg: PgEverything, db: Database) -> None:
    for name in ("gone", "late", "strange"):
        pg.scheduler.add(name, "t", cron="0 7 * * *")
    db.execute(
        "update pgeverything.schedules set disabled = true, origin = 'shop', next_run_at = null where name = 'gone'"
    )
    check = only(pg.doctor(), "schedules")
    assert check.verdict == "warning"
    assert "schedule 'gone' is disabled, because the code of shop no longer defines it" in check.found

    db.execute("update pgeverything.schedules set next_run_at = now() - interval '90 s' where name <> 'gone'")
    db.execute("update pgeverything.schedules set timezone = 'Mars/Olympus' where name = 'strange'")
    check = only(pg.doctor(), "schedules")
    assert check.verdict == "problem"
    assert re.search(r"schedule 'late' is \d+ s overdue", check.found)
    assert "cannot be computed on this machine" in check.found
    assert check.figures == {"gone": "disabled", "late": "overdue", "strange": "unreadable"}


def test_a_cache_that_is_over_its_bounds(pg: PgEverything) -> None:
    for number in range(20):
        pg.cache.set(f"k{number}", "v")
    pg.cache.stats()  # sweeps, and counts
    assert wrong(pg.doctor()) == {}
    pg.cache.configure(max_entries=10)
    check = only(pg.doctor(), "cache")

    assert check.verdict == "warning"
    assert check.found == "the cache holds 20 entries of at most 10"
    pg.cache.configure(max_entries=None)


def test_thresholds_are_where_the_docs_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "doctor.md").read_text("utf-8")
    for seconds in (vacuum.PATIENCE, vacuum.LONG, queues.PATIENCE, queues.SLOW, modules.SLOW, modules.STALLED):
        text = f"{seconds:g} s" if seconds < 120 else f"{seconds / 60:g} min"
        assert text in page, text


def test_a_server_of_ones_own_is_well(home: Path) -> None:
    """Also durable, which the server of the other tests is not."""
    with PgEverything(local.ensure(home).url) as pg:
        pg.migrate()
        health = pg.doctor()

    assert [each for each in health.checks if each.verdict != "ok"] == []
    assert (health.verdict, health.ok) == ("ok", True)


# Subscriptions and the audit trail ----------------------------------------------------------------------------------


def test_subscriptions_that_do_not_get_on(pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    pg.pubsub.subscribe("t", name="lonely", start="earliest").close()
    pg.pubsub.subscribe("other", name="rare", start="earliest").close()
    pg.pubsub.publish("t", 1)
    assert wrong(pg.doctor()) == {}

    monkeypatch.setattr(modules, "BEHIND", 0.0)
    check = only(pg.doctor(), "subscriptions")
    assert check.verdict == "problem"
    assert "'lonely' has no member, and its next event is" in check.found
    assert "rare" not in check.found

    with pg.pubsub.subscribe("t", name="lonely", max_deliveries=1, on_dead="stop", timeout="30s") as messages:
        next(messages).nack()
        check = only(pg.doctor(), "subscriptions")
    assert "'lonely' has stopped: event" in check.found
    assert "has 1 dead message(s)" in check.found
    pg.pubsub.pause("lonely")
    pg.pubsub.delete("lonely")
    assert wrong(pg.doctor()) == {}


def test_a_table_that_is_tracked_no_longer_as_it_was(own: PgEverything, monkeypatch: pytest.MonkeyPatch) -> None:
    damage(own, "create table public.account (id integer primary key, secret text)")
    own.audit.track("public.account", mask=["secret"])
    assert own.doctor()["audit"].verdict == "ok"

    with own.transaction() as tx:
        tx.connection.execute("insert into public.account values (1, 's')")
    monkeypatch.setattr(modules, "UNSEALED", 0.0)
    assert only(own.doctor(), "audit").verdict == "warning"
    own.audit.seal()
    assert own.doctor()["audit"].verdict == "ok"

    damage(own, "alter table public.account disable trigger user")
    check = only(own.doctor(), "audit")
    assert check.verdict == "problem"
    assert "a trigger is missing or disabled" in check.found
