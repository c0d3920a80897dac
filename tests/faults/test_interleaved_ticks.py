"""Two tickers, and a ticker beside who changes a schedule, in chosen orders; and a ticker cut off at every step."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, Rows, drive
from pgeverything.scheduler.tick import Ticked, tick

from .accounts import fetch
from .sessions import Session, Sessions


def tick_in(session: Session, most: int = 100) -> Ticked:
    """Act on what is due: in the session's transaction, where it has begun one."""
    return drive(PsycopgCarrier(session.connection, "pgeverything"), tick(most=most))


def make_due(url: str, name: str, hours: int = 0) -> None:
    """Make the next tick of an hourly schedule the last full hour, or so many before it."""
    fetch(
        url,
        "update pgeverything.schedules s set next_tick = t.at, next_run_at = t.at"
        " from (select date_trunc('hour', clock_timestamp(), 'UTC') - make_interval(hours => %s) as at) t"
        " where s.name = %s",
        hours,
        name,
    )


def add(pg: PgEverything, url: str, name: str, **options: Any) -> None:
    pg.scheduler.add(name, "t", **({"every": "1h"} | options))
    make_due(url, name)


def outcomes(pg: PgEverything, name: str) -> list[str]:
    return [row.outcome for row in reversed(pg.scheduler.history(name))]


def jobs(pg: PgEverything) -> list[str]:
    return sorted(job.headers["schedule"] for job in pg.jobs.list())


# Two tickers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_two_tickers_share_what_is_due(url: str, pg: PgEverything, sessions: Sessions, end: str) -> None:
    add(pg, url, "a")
    add(pg, url, "b")
    one, two, three = sessions.three()
    one.begin()
    assert tick_in(one, most=1).acted == 1
    assert tick_in(two).acted == 1
    assert tick_in(three).acted == 0
    getattr(one, end)()
    assert tick_in(three).acted == (0 if end == "commit" else 1)
    assert jobs(pg) == ["a", "b"]
    assert outcomes(pg, "a") == outcomes(pg, "b") == ["ran"]


def test_who_comes_too_late_is_told_to_look_again(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """The schedule is still due as far as anybody can see, and somebody has it."""
    add(pg, url, "a")
    one, two, _ = sessions.three()
    one.begin()
    tick_in(one)
    done = tick_in(two)
    assert done.acted == 0
    assert done.wait is not None
    assert done.wait < 0


def test_a_job_of_another_tickers_is_seen(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """The second ticker began its statement before the first one committed: it must not run beside that job.

    So it must ask whether the last job has ended after it has the lock, and not with what it saw when it began.
    """
    add(pg, url, "a", overlap="skip")
    one, two, blocker = sessions.three()
    one.begin()
    assert tick_in(one).acted == 1
    one.sql("update pgeverything.schedules set next_tick = now(), next_run_at = now() where name = 'a'")  # due again
    blocker.begin()
    barrier = blocker.waiting(blocker.sql, "lock table pgeverything.schedules in access exclusive mode")
    second = two.waiting(tick_in, two)  # its statement has begun, and stands behind the barrier
    one.commit()
    barrier.result()
    blocker.rollback()
    assert second.result().acted == 1
    assert outcomes(pg, "a") == ["ran", "overlap"]
    assert jobs(pg) == ["a"]


# A ticker and somebody else -------------------------------------------------------------------------------------------


CHANGES: dict[str, Callable[[Session], object]] = {
    "pause": lambda session: session.tx.scheduler.pause("a"),
    "remove": lambda session: session.tx.scheduler.remove("a"),
    "change": lambda session: session.tx.scheduler.add("a", "t", every="2h"),
    "run_now": lambda session: session.tx.scheduler.run_now("a"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_waits_for_the_tick_and_loses_nothing_of_it(
    url: str, pg: PgEverything, sessions: Sessions, change: str
) -> None:
    add(pg, url, "a")
    ticker, other, _ = sessions.three()
    ticker.begin()
    assert tick_in(ticker).acted == 1
    changed = other.waiting(CHANGES[change], other)
    ticker.commit()
    changed.result()
    assert outcomes(pg, "a")[0] == "ran"
    assert jobs(pg)[:1] == ["a"]
    left = {each.name: each for each in pg.scheduler.list()}
    if change == "remove":
        assert left == {}
    else:
        assert left["a"].next_tick > fetch(url, "select clock_timestamp()")[0][0]
        assert left["a"].state == ("paused" if change == "pause" else "active")
    assert len(jobs(pg)) == (2 if change == "run_now" else 1)


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_a_long_transaction_holds_up_only_its_own_schedule(
    url: str, pg: PgEverything, sessions: Sessions, change: str, end: str
) -> None:
    add(pg, url, "a", misfire="all")
    add(pg, url, "b")
    ticker, other, _ = sessions.three()
    other.begin()
    CHANGES[change](other)
    assert tick_in(ticker).acted == 1
    assert jobs(pg) == ["b"]
    getattr(other, end)()
    acted = tick_in(ticker).acted
    if end == "rollback":
        assert acted == 1
        assert outcomes(pg, "a") == ["ran"]
    elif change == "run_now":
        assert sorted(outcomes(pg, "a")) == ["manual", "ran"]
    else:
        assert acted == 0
        expected = {"pause": [], "remove": ["ended"], "change": ["ended"]}[change]
        assert outcomes(pg, "a") == expected


def test_two_who_add_the_same_schedule_end_up_with_one(url: str, pg: PgEverything, sessions: Sessions) -> None:
    one, two, _ = sessions.three()
    one.begin()
    one.tx.scheduler.add("a", "t", every="1h")
    second = two.waiting(two.tx.scheduler.add, "a", "t", every="2h")
    one.commit()
    second.result()
    (stored,) = pg.scheduler.list()
    assert stored.every == 7200.0
    assert stored.next_tick is not None
    assert stored.next_tick.hour % 2 == 0


def test_a_long_transaction_does_not_see_less_than_it_should(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """Under REPEATABLE READ a caller meets what has changed meanwhile: Postgres refuses, nothing is overwritten."""
    add(pg, url, "a")
    caller, ticker, _ = sessions.three()
    caller.begin("repeatable read")
    caller.sql("select 1")
    assert tick_in(ticker).acted == 1
    with pytest.raises(psycopg.errors.SerializationFailure):
        caller.tx.scheduler.add("a", "t", every="2h")
    caller.rollback()
    assert pg.scheduler.get("a").every == 3600.0


# A ticker that is cut off ---------------------------------------------------------------------------------------------


class Cut(PsycopgCarrier):
    """A connection that the server ends before its nth statement, or right after it."""

    def __init__(self, connection: psycopg.Connection[Any], url: str, statement: int, after: bool) -> None:
        super().__init__(connection, "pgeverything")
        self._url, self._left, self._after = url, statement, after

    def execute(self, query: Query[Any]) -> Rows:
        self._left -= 1
        if self._left == 0 and not self._after:
            self._end()
        rows = super().execute(query)
        if self._left == 0:
            self._end()
        return rows

    def _end(self) -> None:
        fetch(self._url, "select pg_terminate_backend(%s)", self.connection.info.backend_pid)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("statement", [1, 2])
def test_a_ticker_that_is_cut_off_has_done_nothing(
    url: str, pg: PgEverything, sessions: Sessions, statement: int, after: bool
) -> None:
    for name in ("a", "b"):
        add(pg, url, name, misfire="all")
        make_due(url, name, hours=2)
    before = fetch(url, "select * from pgeverything.schedules order by name")
    with pytest.raises(psycopg.OperationalError), psycopg.connect(url, autocommit=True) as connection:
        drive(Cut(connection, url, statement, after), _unwrapped())
    assert fetch(url, "select * from pgeverything.schedules order by name") == before
    assert fetch(url, "select count(*) from pgeverything.ticks") == [(0,)]
    assert jobs(pg) == []

    assert tick_in(sessions.open()).acted == 2
    assert outcomes(pg, "a") == outcomes(pg, "b") == ["ran"] * 3
    assert jobs(pg) == ["a"] * 3 + ["b"] * 3


def _unwrapped() -> Any:
    """The tick, with the error that ended it and not our word for it."""
    from pgeverything.scheduler.tick import TickFailed

    try:
        return (yield from tick())
    except TickFailed as failed:
        raise failed.__cause__ or failed from None


def test_a_tick_whose_commit_was_not_heard_of_is_not_done_again(url: str, pg: PgEverything, sessions: Sessions) -> None:
    add(pg, url, "a", misfire="all")
    session = sessions.open()
    session.begin()
    tick_in(session)
    session.commit()  # and here the answer is lost
    assert tick_in(session).acted == 0
    assert jobs(pg) == ["a"]


def test_nobody_acts_on_a_pause_that_begins_before_the_commit(url: str, pg: PgEverything, sessions: Sessions) -> None:
    """Paused, not committed, due: passed by. Committed: not due."""
    add(pg, url, "a")
    other, ticker, _ = sessions.three()
    other.begin()
    other.tx.scheduler.pause("a")
    assert tick_in(ticker).acted == 0
    other.commit()
    assert tick_in(ticker).acted == 0
    pg.scheduler.resume("a")
    assert outcomes(pg, "a") == ["paused"]
    assert pg.scheduler.history("a")[0].count == 1
    assert pg.scheduler.get("a").next_tick - pg.scheduler.history("a")[0].tick <= timedelta(hours=1)  # type: ignore[operator]
