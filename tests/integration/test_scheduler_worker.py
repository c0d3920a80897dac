"""Workers act on schedules, and go by the rules of their time zones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import drive
from pgeverything.scheduler.rules import refresh
from pgeverything.scheduler.zones import zone
from tests import pgbouncer
from tests.waiting import until

from .schedules import soon, working

Database = psycopg.Connection[Any]


# Acting ---------------------------------------------------------------------------------------------------------------


def test_until_idle_does_what_is_due_and_does_not_wait_for_more(pg: PgEverything, db: Database) -> None:
    done: list[str] = []

    @pg.task()
    def work(name: str) -> None:
        done.append(name)

    pg.scheduler.add("due", work, {"name": "due"}, at=soon(db, -1))
    pg.scheduler.add("later", work, {"name": "later"}, at=soon(db, 3600))
    pg.worker().run(until_idle=True)
    assert done == ["due"]
    assert [(each.name, each.state) for each in pg.scheduler.list()] == [("due", "ended"), ("later", "active")]


@pytest.mark.parametrize("listen", [pytest.param(True, marks=pgbouncer.needs_hints), False])
async def test_a_sleeping_worker_acts_on_what_is_added(pg: PgEverything, db: Database, listen: bool) -> None:
    done: list[datetime] = []

    @pg.task()
    async def work() -> None:
        done.append(datetime.now(UTC))

    async with working(pg, listen=listen, poll="60s" if listen else "200ms"):
        if listen:  # asleep, and with ears
            await until(lambda: db.execute("select from pgeverything.workers where asleep").fetchall())
            await until(lambda: db.execute("select from pg_stat_activity where query ilike 'listen%'").fetchall())
        pg.scheduler.add("s", work, at=soon(db, 0.3))
        await until(lambda: done)
    (tick,) = pg.scheduler.history("s")
    assert (tick.outcome, tick.count) == ("ran", 1)
    assert tick.at >= tick.tick


async def test_ticks_come_one_after_the_other(pg: PgEverything, db: Database) -> None:
    ran: list[str] = []

    @pg.cron("* * * * * *", seconds=True)
    @pg.task()
    async def work() -> None:
        ran.append("")

    async with working(pg), working(pg):
        await until(lambda: len(ran) >= 3)
    ticks = [row.tick for row in reversed(pg.scheduler.history("work"))]
    assert [tick - ticks[0] for tick in ticks] == [timedelta(seconds=n) for n in range(len(ticks))]
    assert {row.outcome for row in pg.scheduler.history("work")} == {"ran"}
    jobs = [row.job_id for row in pg.scheduler.history("work")]
    assert len(set(jobs)) == len(jobs)


def test_only_an_earlier_schedule_wakes_workers(pg: PgEverything, db: Database, direct_url: str) -> None:
    with psycopg.connect(direct_url, autocommit=True) as ears:
        ears.execute("listen pgeverything")

        def heard() -> list[str]:
            return [notify.payload for notify in ears.notifies(timeout=0.05)]

        pg.scheduler.add("nobody-works", "t", every="1h")
        assert heard() == []
        db.execute(
            "insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease)"
            " values (1, 'w', '{default}', 1, now(), now(), '1 hour')"
        )
        pg.scheduler.add("later", "t", at=soon(db, 86400))
        assert heard() == []
        pg.scheduler.add("earlier", "t", at=soon(db, 1))
        assert heard() == ["\tcron:"]
        pg.scheduler.pause("earlier")
        assert heard() == []
        pg.scheduler.add("earliest", "t", at=soon(db, 0.5))
        assert heard() == ["\tcron:"]


async def test_a_schedule_that_the_database_refuses_holds_up_no_other(
    pg: PgEverything, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the reason: here somebody's own trigger."""
    db.execute(
        """create function pg_temp.refuse() returns trigger language plpgsql as
           $$ begin raise exception 'not on my watch'; end $$;
           create trigger mine before insert on pgeverything.ticks for each row when (new.schedule = 'bad')
           execute function pg_temp.refuse()"""
    )
    try:
        for name in ("a", "bad", "c"):
            pg.scheduler.add(name, "t", at=soon(db, -1))
        async with working(pg):
            await until(lambda: len(pg.jobs.list()) >= 2)
    finally:
        db.execute("drop trigger mine on pgeverything.ticks")
    assert {job.headers["schedule"] for job in pg.jobs.list()} == {"a", "c"}
    assert pg.scheduler.get("bad").state == "active"
    assert "'bad' cannot be acted on" in caplog.text
    assert "not on my watch" in caplog.text


async def test_a_schedule_that_cannot_be_computed_here_is_left_to_others(
    pg: PgEverything, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        pg.scheduler.add(name, "t", cron="* * * * *", timezone="Europe/Paris", misfire="all")
    db.execute(
        "update pgeverything.schedules set next_tick = now() - interval '2 s', next_run_at = now() - interval '2 s'"
    )
    db.execute("update pgeverything.schedules set timezone = 'Mars/Olympus' where name = 'a'")
    async with working(pg):
        await until(lambda: pg.scheduler.history("b"))
    assert pg.scheduler.history("a") == []
    assert "'a' cannot be computed here, leaving it to others" in caplog.text


# Rules ----------------------------------------------------------------------------------------------------------------


def test_next_ticks_are_computed_again_when_the_rules_of_a_zone_change(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("paris", "t", cron="0 12 * * *", timezone="Europe/Paris", jitter="1m")
    pg.scheduler.add("tokyo", "t", cron="0 12 * * *", timezone="Asia/Tokyo")
    before = {each.name: each for each in pg.scheduler.list()}
    # As a machine with older rules would have computed it.
    db.execute(
        "update pgeverything.schedules set rules = 'older', next_tick = next_tick + interval '1 h',"
        " next_run_at = next_run_at + interval '1 h' where name = 'paris'"
    )
    pg.worker().run(until_idle=True)
    after = {each.name: each for each in pg.scheduler.list()}
    assert (after["paris"].next_tick, after["paris"].next_run_at) == (
        before["paris"].next_tick,
        before["paris"].next_run_at,
    )
    assert after["tokyo"] == before["tokyo"]
    stored = dict(db.execute("select name, rules from pgeverything.schedules").fetchall())
    assert stored == {name: zone(each.timezone).rules for name, each in after.items()}


def test_a_schedule_that_is_added_again_goes_by_the_rules_of_its_zone_too(pg: PgEverything, db: Database) -> None:
    paris: dict[str, Any] = {"cron": "0 12 * * *", "timezone": "Europe/Paris"}
    before = pg.scheduler.add("paris", "t", **paris)
    db.execute("update pgeverything.schedules set rules = 'older', next_tick = next_tick + interval '1 h'")
    assert pg.scheduler.add("paris", "t", **paris).next_tick == before.next_tick


def test_one_schedule_that_cannot_be_read_here_does_not_keep_the_old_rules_for_all(
    pg: PgEverything, db: Database
) -> None:
    for name in ("newer", "paris"):
        pg.scheduler.add(name, "t", cron="0 12 * * *", timezone="Europe/Paris")
    before = pg.scheduler.get("paris")
    db.execute("update pgeverything.schedules set rules = 'older', next_tick = next_tick + interval '1 h'")
    db.execute("update pgeverything.schedules set cron = 'of a newer release' where name = 'newer'")
    assert drive(PsycopgCarrier(db, "pgeverything"), refresh()) == 2
    assert pg.scheduler.get("paris").next_tick == before.next_tick
