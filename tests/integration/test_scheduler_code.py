"""Workers bring the schedules of their code into the database, through every deployment, and do its chores."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from pgeverything import AsyncPgEverything, PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import drive
from pgeverything.scheduler.code import Code, SyncResult
from pgeverything.scheduler.code import sync as sync_code
from pgeverything.scheduler.definitions import define
from pgeverything.scheduler.tick import tick
from tests.waiting import until

from .schedules import soon, working

Database = psycopg.Connection[Any]


# Code -----------------------------------------------------------------------------------------------------------------


def code(*names: str, every: str = "1h", origin: str = "shop") -> Code:
    made = Code(origin)
    for name in names:
        made.define(define(name, "t", "{}", every=every))
    return made


def synced(db: Database, code: Code, worker: int = 0) -> SyncResult:
    return drive(PsycopgCarrier(db, "pgeverything"), sync_code(code, worker=worker))


def live(db: Database, worker: int) -> int:
    """Register a worker."""
    db.execute(
        "insert into pgeverything.workers (id, name, queues, concurrency, started_at, heartbeat_at, lease)"
        " values (%s, 'w', '{default}', 1, now(), now(), '1 hour')",
        [worker],
    )
    return worker


def gone(db: Database, worker: int) -> None:
    db.execute("delete from pgeverything.workers where id = %s", [worker])


def states(pg: PgEverything) -> dict[str, tuple[str, float | None]]:
    return {each.name: (each.state, each.every) for each in pg.scheduler.list()}


def test_a_worker_brings_the_schedules_of_its_code(pg: PgEverything) -> None:
    @pg.cron("0 7 * * *", timezone="Europe/Berlin")
    @pg.task(queue="mail")
    def digest() -> None: ...

    pg.worker().run(until_idle=True)
    (stored,) = pg.scheduler.list()
    assert (stored.name, stored.task, stored.queue, stored.origin, stored.state) == (
        "digest", "digest", "mail", pg.code.origin, "active",
    )  # fmt: skip
    before = stored.created_at, stored.changed_at
    pg.worker().run(until_idle=True)
    (again,) = pg.scheduler.list()
    assert (again.created_at, again.changed_at) == before


def test_sync_is_for_deployments_without_a_worker(pg: PgEverything) -> None:
    @pg.cron("0 7 * * *")
    @pg.task()
    def digest() -> None: ...

    result = pg.scheduler.sync()
    assert (result.added, result.changed, result.disabled, result.waiting) == (("digest",), (), (), ())
    assert pg.scheduler.sync() == type(result)()
    assert pg.scheduler.get("digest").origin == pg.code.origin


def test_a_changed_definition_keeps_what_was_run(pg: PgEverything, db: Database) -> None:
    synced(db, code("a"))
    db.execute("update pgeverything.schedules set last_tick = now(), last_job = 7")
    assert synced(db, code("a", every="2h")).changed == ("a",)
    changed = pg.scheduler.get("a")
    assert (changed.every, changed.last_job_id) == (7200.0, 7)
    assert changed.last_tick is not None


def test_what_vanished_from_the_code_is_disabled_and_can_come_back(pg: PgEverything, db: Database) -> None:
    synced(db, code("a", "b"))
    assert synced(db, code("a")).disabled == ("b",)
    assert states(pg) == {"a": ("active", 3600.0), "b": ("disabled", 3600.0)}
    assert pg.scheduler.get("b").next_run_at is None
    assert synced(db, code("a")) == SyncResult()
    db.execute(
        "update pgeverything.schedules set ticked_until = ticked_until - interval '2 h',"
        " next_tick = next_tick - interval '2 h' where name = 'b'"
    )
    assert synced(db, code("a", "b")).changed == ("b",)
    assert states(pg)["b"] == ("active", 3600.0)
    (missed,) = pg.scheduler.history("b")
    assert (missed.outcome, missed.reason) == ("ended", "its code was gone")
    assert missed.count in (2, 3)  # an hour may just have passed


def test_the_last_schedule_that_vanishes_is_disabled_too(pg: PgEverything, db: Database) -> None:
    synced(db, code("a"))
    assert synced(db, code()).disabled == ("a",)


def test_two_applications_leave_each_other_alone(pg: PgEverything, db: Database) -> None:
    synced(db, code("a", origin="shop"))
    assert synced(db, code("b", origin="office")) == SyncResult(added=("b",))
    assert states(pg) == {"a": ("active", 3600.0), "b": ("active", 3600.0)}


def test_an_application_that_is_called_otherwise_now_takes_its_schedules_with_it(
    pg: PgEverything, db: Database
) -> None:
    old = live(db, 1)
    synced(db, code("a", origin="shop"), old)
    new, other = live(db, 2), live(db, 3)
    assert synced(db, code("a", origin="shop.main"), new).waiting == ("a",)
    assert synced(db, code("a", origin="shop.main"), other).waiting == ("a",)
    assert pg.scheduler.get("a").origin == "shop"
    gone(db, old)
    assert synced(db, code("a", origin="shop.main"), new) == SyncResult(changed=("a",))
    assert synced(db, code("a", origin="shop.main"), other) == SyncResult()
    gone(db, new)
    gone(db, other)
    assert synced(db, code(origin="shop.main"), live(db, 4)) == SyncResult(disabled=("a",))


def test_what_was_added_by_hand_is_nobodys_to_disable(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("by-hand", "t", every="1h")
    assert synced(db, code("a")) == SyncResult(added=("a",))
    assert states(pg)["by-hand"] == ("active", 3600.0)


def test_a_rolling_deployment_changes_everything_once(pg: PgEverything, db: Database) -> None:
    """Old and new workers side by side: what the old ones have stays until the last of them is gone."""
    old, new = code("kept", "changed", "dropped"), code("kept", "added")
    new.define(define("changed", "t", "{}", every="2h"))
    first, second = live(db, 1), live(db, 2)
    synced(db, old, first)
    synced(db, old, second)

    third = live(db, 3)
    begun = synced(db, new, third)
    assert begun == SyncResult(added=("added",), waiting=("changed", "dropped"))
    gone(db, first)
    assert synced(db, new, third).waiting == ("changed", "dropped")
    restarted = live(db, 4)  # an old one crashed and is back, with the old code
    assert synced(db, old, restarted).waiting == ("added",)
    assert states(pg)["changed"] == states(pg)["dropped"] == ("active", 3600.0)

    gone(db, second)
    gone(db, restarted)
    assert synced(db, new, third) == SyncResult(changed=("changed",), disabled=("dropped",))
    assert states(pg) == {
        "added": ("active", 3600.0),
        "changed": ("active", 7200.0),
        "dropped": ("disabled", 3600.0),
        "kept": ("active", 3600.0),
    }
    late = live(db, 5)  # a stray old one: the new code is in force
    assert synced(db, old, late).waiting == ("changed", "added")
    assert states(pg)["changed"] == ("active", 7200.0)


def test_a_rollback_is_a_deployment_like_any_other(pg: PgEverything, db: Database) -> None:
    newer = live(db, 1)
    synced(db, code("a", every="2h"), newer)
    older = live(db, 2)
    assert synced(db, code("a"), older).waiting == ("a",)
    gone(db, newer)
    assert synced(db, code("a"), older).changed == ("a",)


def test_a_silent_worker_holds_nothing_back(pg: PgEverything, db: Database) -> None:
    synced(db, code("a"), live(db, 1))
    db.execute("update pgeverything.workers set heartbeat_at = now() - interval '2 hours'")
    assert synced(db, code("a", every="2h"), live(db, 2)).changed == ("a",)


async def test_a_worker_looks_again_until_the_old_code_is_gone(
    pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgeverything.worker.ticker._CODE", 0.05)
    looks: list[int] = []

    def counted(code: Code, worker: int) -> Any:
        looks.append(worker)
        return sync_code(code, worker=worker)

    monkeypatch.setattr("pgeverything.worker.ticker.sync", counted)

    @pg.cron(every="2h", name="a")
    @pg.task()
    def work() -> None: ...

    old = live(db, 10**6)
    synced(db, code("a", origin=pg.code.origin), old)
    async with working(pg, poll="1h"):  # it does not wait for a poll, nor for a tick
        await until(lambda: len(looks) > 10)
        assert pg.scheduler.get("a").every == 3600.0
        gone(db, old)
        await until(lambda: pg.scheduler.get("a").every == 7200.0)


def test_a_definition_whose_end_has_passed_is_left_out(
    pg: PgEverything, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    over = code("a")
    over.define(define("over", "t", "{}", every="1h", end_at=datetime(2020, 1, 1, tzinfo=UTC)))
    synced(db, over)
    assert list(states(pg)) == ["a"]
    assert "'over' would never tick" in caplog.text


async def test_an_asyncio_application_is_the_same(url: str, pg: PgEverything) -> None:
    ran = []
    async with AsyncPgEverything(url) as apg:

        @apg.cron("* * * * * *", seconds=True, remaining=1)
        @apg.task()
        async def work() -> None:
            ran.append("")

        async with working(apg):
            await until(lambda: ran)
        assert [each.state for each in await apg.scheduler.list()] == ["ended"]
        assert [row.outcome for row in await apg.scheduler.history("work")] == ["ran"]


def test_a_schedule_that_nobody_can_read_can_be_paused_and_removed(pg: PgEverything, db: Database) -> None:
    pg.scheduler.add("a", "t", cron="0 * * * *", timezone="Europe/Paris")
    db.execute("update pgeverything.schedules set timezone = 'Mars/Olympus', next_tick = now() - interval '1 h'")
    pg.scheduler.pause("a")
    assert pg.scheduler.get("a").state == "paused"
    assert pg.scheduler.remove("a")
    assert [row.outcome for row in pg.scheduler.history("a")] == ["paused"]


def test_catching_up_takes_several_transactions(
    pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgeverything.scheduler.tick.MOST_FATES", 5)
    for name in ("a", "b", "c"):
        pg.scheduler.add(name, "t", every="1h", misfire="all")
    db.execute(
        "update pgeverything.schedules set ticked_until = ticked_until - interval '4 h',"
        " next_tick = next_tick - interval '4 h', next_run_at = next_run_at - interval '4 h'"
    )
    passes = [drive(PsycopgCarrier(db, "pgeverything"), tick()).acted for _ in range(3)]
    assert passes == [2, 1, 0]
    assert len(pg.jobs.list()) == 12


# Chores ---------------------------------------------------------------------------------------------------------------


def test_what_ended_long_ago_is_forgotten(pg: PgEverything, db: Database) -> None:
    from pgeverything.scheduler.chores import maintain

    pg.scheduler.add("ended", "t", at=soon(db, -1))
    pg.scheduler.add("active", "t", every="1h")
    synced(db, code("of-code"))
    pg.worker().run(until_idle=True)
    db.execute("update pgeverything.schedules set next_tick = null, next_run_at = null where name = 'of-code'")
    assert pg.scheduler.get("ended").state == "ended"
    drive(PsycopgCarrier(db, "pgeverything"), maintain())
    assert len(pg.scheduler.list()) == 3
    db.execute(
        "update pgeverything.schedules set changed_at = changed_at - interval '40 days',"
        " ticked_until = ticked_until - interval '40 days'"
    )
    drive(PsycopgCarrier(db, "pgeverything"), maintain())
    assert [each.name for each in pg.scheduler.list()] == ["active", "of-code"]


def test_ticks_are_kept_by_the_day(pg: PgEverything, db: Database) -> None:
    db.execute("select pgeverything.maintain_ticks(7, interval '30 days')")  # after midnight, one more
    db.execute(
        "insert into pgeverything.ticks (schedule, tick, outcome, at)"
        " select 'a', now() - make_interval(days => n), 'paused', now() from unnest(array[2, 4, 40]) n"
    )
    created, dropped = db.execute("select * from pgeverything.maintain_ticks(7, interval '30 days')").fetchall()[0]
    assert (created, dropped) == (3, 1)
    assert db.execute("select count(*) from pgeverything.ticks_default").fetchall() == [(0,)]
    assert len(pg.scheduler.history("a")) == 2


def test_nothing_is_said_at_every_start(pg: PgEverything, db: Database, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "pgeverything.scheduler")
    synced(db, code("a"))
    assert "schedules added: a" in caplog.text
    caplog.clear()
    synced(db, code("a"))
    assert caplog.text == ""
    synced(db, code())
    assert "disabled, because shop no longer defines them: a" in caplog.text
