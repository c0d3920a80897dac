"""Leases without a database: what is refused, how long is waited, how long a lease is trusted, who renews it."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything import AsyncLocks, InvalidArgument, LeaseLost, Locks
from pgeverything.engine.plan import Query, Rows, Wait, Watch, Watching
from pgeverything.errors import LockError
from pgeverything.locks import clock, held, keeper, plans
from pgeverything.locks.held import Held
from pgeverything.locks.keeper import AsyncKeeper, Keeper
from pgeverything.locks.values import Busy, Grant, Request, lease_seconds
from tests.waiting import PATIENCE, eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def request(**options: Any) -> Request:
    asked: dict[str, Any] = {"name": "a", "ttl": "30s", "wait": None, "slots": 1, "shared": False, "fair": False}
    return Request.checked(**asked | {"min_hold": None, "note": None} | options)


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "name"),
        ({"name": "x" * 1025}, "name"),
        ({"name": "a\0"}, "name"),
        ({"name": 7}, "name"),
        ({"ttl": 0}, "at least 0.1 s"),
        ({"ttl": "99ms"}, "at least 0.1 s"),
        ({"ttl": "soon"}, "ttl"),
        ({"wait": -1}, "wait"),
        ({"wait": True}, "wait"),
        ({"slots": 0}, "slots"),
        ({"slots": 10_001}, "slots"),
        ({"slots": True}, "slots"),
        ({"slots": 2, "shared": True}, "leave out slots="),
        ({"shared": 1}, "shared=1"),
        ({"fair": None}, "fair=None"),
        ({"min_hold": "31s"}, "min_hold='31s' must not be longer than ttl='30s'"),
        ({"note": ""}, "note"),
        ({"note": "x" * 501}, "note"),
        ({"renew": "yes"}, "renew='yes' must be True or False"),
        ({"on_lost": 7}, "on_lost=7 must be a function"),
        ({"on_lost": asyncio.sleep}, "on_lost=.* is not awaited"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_connected(options: dict[str, Any], message: str) -> None:
    options = {"name": "a"} | options
    locks, alocks = Locks("postgresql://nowhere.invalid/x"), AsyncLocks("postgresql://nowhere.invalid/x")
    with pytest.raises(InvalidArgument, match=message):
        locks.acquire(**options)
    with pytest.raises(InvalidArgument, match=message):
        locks.hold(**options)
    with pytest.raises(InvalidArgument, match=message):
        asyncio.run(alocks.acquire(**options))
    with pytest.raises(InvalidArgument, match=message):
        alocks.hold(**options)


def test_what_only_a_block_of_asyncio_takes() -> None:
    with pytest.raises(InvalidArgument, match="cancel=1 must be True or False"):
        AsyncLocks("postgresql://nowhere.invalid/x").hold("a", cancel=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("call", [lambda locks: locks.break_lock(""), lambda locks: locks.get("\0")])
def test_bad_names_too(call: Callable[[Locks], object]) -> None:
    with pytest.raises(InvalidArgument):
        call(Locks("postgresql://nowhere.invalid/x"))


def test_durations_are_seconds() -> None:
    asked = request(ttl="1m30s", wait=timedelta(seconds=2), min_hold=0.5)
    assert (asked.ttl, asked.wait, asked.min_hold) == (90.0, 2.0, 0.5)
    assert (request().wait, request(min_hold=0).min_hold) == (0.0, None)
    assert lease_seconds("100ms") == 0.1


# Waiting ------------------------------------------------------------------------------------------------------------


class Lines:
    """Answers `acquire` from a list, and notes what was asked and how long was waited; waiting takes no time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: Any, channel: str | None = None) -> None:
        self.answers, self.asked, self.waited = list(answers), [], []  # type: ignore[var-annotated]
        self.now, self.channel, self.watched = 1000.0, channel, []  # type: ignore[var-annotated]
        monkeypatch.setattr(plans, "now", lambda: self.now)

    def watch(self, hint: str, wake: Callable[[], object]) -> Callable[[], None]:
        self.watched.append(hint)
        return lambda: self.watched.append("stopped")

    def run(self, plan: Any) -> Any:
        answer: Any = None
        try:
            while True:
                step = plan.send(answer)
                if isinstance(step, Query):
                    self.asked.append((step.params["line"], step.params["channel"], step.params["ticket"]))
                    found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                    if isinstance(found, Exception):
                        step = plan.throw(found)
                        self.asked.append("again")
                        found = self.answers[0]
                    answer = step.read([found])
                elif isinstance(step, Watch):
                    answer = Watching(None, self.watch(step.hint, print), self)
                else:
                    assert isinstance(step, Wait)
                    self.waited.append(step.seconds)
                    self.now += step.seconds
                    answer = False
        except StopIteration as stop:
            return stop.value


def busy(retry_in: float | None = 20.0, ticket: int | None = 7) -> tuple[Any, ...]:
    return ("busy", None, None, None, ticket, retry_in, "host:1", None, retry_in)


HELD = ("held", 1, 99, NOW, None, None, None, None, None)


def test_a_try_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch, busy(ticket=None))
    answer = lines.run(plans.obtain(request(), 5, hears=False))
    assert isinstance(answer, Busy)
    assert (lines.asked, lines.waited) == ([("none", None, None)], [])
    assert Lines(monkeypatch, HELD).run(plans.obtain(request(wait="5s"), 5, hears=False)) == Grant(1, 99, 1000.0, NOW)


def test_who_waits_listens_before_standing_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch, busy(ticket=None), busy(), busy(), HELD, channel="c")
    assert isinstance(lines.run(plans.obtain(request(wait="5s"), 5, hears=False)), Grant)
    assert lines.asked == [("none", None, None), ("join", "c", None), ("join", "c", 7), ("join", "c", 7)]
    assert lines.watched == ["locks:5", "stopped"]
    assert all(0.4 <= pause <= 0.6 for pause in lines.waited)

    ready = Lines(monkeypatch, HELD, channel="c")
    ready.run(plans.obtain(request(wait="5s"), 5, hears=True))
    assert ready.asked == [("join", "c", None)]


def test_the_last_look_leaves_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch, busy())
    assert isinstance(lines.run(plans.obtain(request(wait="2s"), 5, hears=False)), Busy)
    assert lines.asked[0][0] == "none"
    assert {line for line, _, _ in lines.asked[1:-1]} == {"join"}
    assert lines.asked[-1] == ("leave", None, 7)
    assert sum(lines.waited) == pytest.approx(2.0, abs=0.01)
    assert len(lines.waited) < 50
    assert max(lines.waited) <= 0.3


@given(st.one_of(st.none(), st.floats(-1, 1e6)), st.floats(0, 1e6), st.booleans())
def test_pauses(retry_in: float | None, waited: float, hinted: bool) -> None:
    """Short enough for every turn in line, never after what is known to happen, and never none."""
    found = plans.pause(Busy(1, retry_in), waited, hinted=hinted)
    assert 0.001 <= found <= 0.6
    if not hinted:
        assert found <= 0.3
    if retry_in is not None and retry_in > 0:
        assert found <= retry_in + 0.01


class Unavailable(Exception):
    sqlstate = "55P03"


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_lock_that_just_changes_hands_is_busy(wrapped: bool) -> None:
    error: Exception = Unavailable()
    if wrapped:
        inner, error = error, Exception("SQLAlchemy's")
        error.orig = inner  # type: ignore[attr-defined]
    plan = plans.obtain(request(), 5, hears=False)
    next(plan)
    with pytest.raises(StopIteration) as stop:
        plan.throw(error)
    assert isinstance(stop.value.value, Busy)


def test_other_errors_are_the_callers() -> None:
    plan = plans.obtain(request(), 5, hears=False)
    next(plan)
    with pytest.raises(ZeroDivisionError):
        plan.throw(ZeroDivisionError())


def test_an_answer_that_was_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = Lines(monkeypatch, psycopg.OperationalError("gone"), HELD)
    assert isinstance(lines.run(plans.obtain(request(), 5, hears=False)), Grant)
    assert len(lines.asked) == 2


def test_a_lease_that_came_late_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for a connection has taken most of it: nobody is to begin with a lease that is lost."""
    clocks = 1000.0
    monkeypatch.setattr(plans, "now", lambda: clocks)
    plan = plans.obtain(request(ttl="30s"), 5, hears=False)
    first = next(plan)
    clocks = 1020.0
    assert isinstance(first, Query)
    second = plan.send(first.read([HELD]))
    clocks = 1021.0
    assert isinstance(second, Query)
    assert second.params == first.params
    with pytest.raises(StopIteration) as stop:
        plan.send(second.read([HELD]))
    assert stop.value.value == Grant(1, 99, 1020.0, NOW)


def test_a_lock_that_changes_hands_after_an_answer_was_lost_is_busy() -> None:
    plan = plans.obtain(request(), 5, hears=False)
    next(plan)
    plan.throw(psycopg.OperationalError("gone"))
    with pytest.raises(StopIteration) as stop:
        plan.throw(Unavailable())
    assert isinstance(stop.value.value, Busy)


# How long a lease is trusted ----------------------------------------------------------------------------------------


class Some(Held):
    """A lease that tells at once."""

    def _tell(self, on_lost: Callable[[Any], object]) -> None:
        on_lost(self)


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock."""

    def set_to(seconds: float) -> None:
        for module in (held, keeper, plans):
            monkeypatch.setattr(module, "now", lambda: seconds)

    return set_to


def lease(ttl: float = 30.0, sent: float = 100.0, on_lost: Any = None, name: str = "a") -> Some:
    return Some(request(ttl=ttl, name=name), Grant(1, 5, sent, NOW), on_lost)


def test_it_is_trusted_from_before_it_was_asked_for_and_not_to_the_end(at: Callable[[float], None]) -> None:
    lost: list[Any] = []
    found = lease(on_lost=lost.append)
    at(128.9)
    assert found.remaining == pytest.approx(0.1)
    assert not found.lost
    at(129.0)
    assert found.lost
    assert found.remaining == 0
    assert lost == [found]
    with pytest.raises(LeaseLost, match="not renewed within 30 s"):
        found.check()
    found.renewed(128.0, NOW)
    assert found.lost  # for good
    assert lost == [found]
    at(100.08)
    assert not lease(0.1).lost
    at(100.09)
    assert lease(0.1).lost


def test_an_answer_that_comes_late_takes_nothing_back(at: Callable[[float], None]) -> None:
    at(100)
    found = lease()
    found.renewed(120, NOW + timedelta(seconds=20))
    found.renewed(110, NOW + timedelta(seconds=10))
    assert (found.ends, found.expires_at) == (149, NOW + timedelta(seconds=20))
    assert found.due == 130


def test_a_released_lease_is_not_lost(at: Callable[[float], None]) -> None:
    lost: list[Any] = []
    found = lease(on_lost=lost.append)
    at(110)
    assert found.give_up()
    assert not found.give_up()
    at(1000)
    assert (found.lost, found.released, found.remaining, lost) == (False, True, 0.0, [])
    with pytest.raises(LeaseLost, match="was released"):
        found.check()
    with pytest.raises(LockError):
        found.enter()
    with pytest.raises(TypeError):
        pickle.dumps(found)


def test_the_clock_goes_on_while_the_machine_sleeps() -> None:
    first, second = clock.now(), clock.now()
    assert second >= first
    if hasattr(time, "CLOCK_BOOTTIME"):
        assert abs(clock.now() - time.clock_gettime(time.CLOCK_BOOTTIME)) < 60


# Who renews it ------------------------------------------------------------------------------------------------------


class Server:
    """A carrier that renews what it is asked to, and notes each statement."""

    hints = None

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.lost: set[str] = set()
        self.busy: list[str] = []
        self.fails = 0
        self.asked = threading.Event()

    def execute(self, query: Query[Any]) -> Rows:
        names: Any = query.params["names"]
        self.batches.append(sorted(names))
        self.asked.set()
        if self.fails:
            self.fails -= 1
            raise OSError("the server is away")
        rows = []
        for name in names:
            if name in self.busy:
                self.busy.remove(name)
                rows.append((name, 5, None, True))
            else:
                rows.append((name, 5, None, False) if name in self.lost else (name, 5, NOW, True))
        return rows


@pytest.fixture
def server() -> Iterator[Server]:
    return Server()


def test_leases_are_renewed_together(server: Server) -> None:
    before = set(threading.enumerate())
    keeping = Keeper(lambda: server)  # type: ignore[arg-type, return-value]
    leases = [lease(1.5, clock.now(), name=f"n{number}") for number in range(20)]
    for each in leases:
        keeping.keep(each, renew=True)
    eventually(lambda: len(server.batches) >= 3)
    assert not any(each.lost for each in leases)
    for each in leases[1:]:
        keeping.drop(each)
    seen = len(server.batches)
    eventually(lambda: len(server.batches) >= seen + 3)
    assert max(map(len, server.batches)) == 20
    assert server.batches[-1] == ["n0"]
    assert [thread.name for thread in set(threading.enumerate()) - before].count("pgeverything leases") == 1
    keeping.drop(leases[0])


def test_a_renewal_that_fails_is_tried_again(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    keeping = Keeper(lambda: server)  # type: ignore[arg-type, return-value]
    server.fails, server.busy = 2, ["a", "a"]
    found = lease(2.0, clock.now())
    keeping.keep(found, renew=True)
    eventually(lambda: len(server.batches) >= 6)
    assert not found.lost
    assert "the server is away" in caplog.text
    keeping.drop(found)


def test_a_lease_that_nobody_has_any_more_is_forgotten() -> None:
    """It was lost or released while a renewal failed: nobody says that it need not be tried again."""
    renewals = keeper._Renewals()
    found, another = lease(), lease()
    renewals.failed([found], OSError("the server is away"))
    renewals.answered([another], [another])
    assert len(renewals._retry) == 2
    del found, another
    gc.collect()
    assert len(renewals._retry) == 0


def test_who_lost_a_lease_is_told_once_and_in_time(server: Server) -> None:
    keeping = Keeper(lambda: server)  # type: ignore[arg-type, return-value]
    told: list[Any] = []
    broken = lease(0.3, clock.now(), told.append, "broken")
    forgotten = lease(0.2, clock.now(), told.append, "forgotten")
    server.lost = {"broken"}
    keeping.keep(broken, renew=True)
    keeping.keep(forgotten, renew=False)
    eventually(lambda: len(told) == 2)
    assert server.batches == [["broken"]]  # what is lost is not renewed
    assert clock.now() < forgotten.ends + 5


def test_a_process_that_was_frozen_renews_nothing_any_more(server: Server, at: Callable[[float], None]) -> None:
    at(100)
    found = lease(30, 100)
    keeping = Keeper(lambda: server)  # type: ignore[arg-type, return-value]
    at(200)
    keeping.keep(found, renew=True)
    eventually(lambda: not keeping._renewing._leases)
    assert (server.batches, found.lost) == ([], True)


class AsyncServer(Server):
    async def execute(self, query: Query[Any]) -> Rows:  # type: ignore[override]
        return super().execute(query)


async def test_the_same_in_an_event_loop(caplog: pytest.LogCaptureFixture) -> None:
    server, told = AsyncServer(), asyncio.Event()

    async def carrier() -> Any:
        return server

    keeping = AsyncKeeper(carrier)
    leases = [lease(1.5, clock.now(), name=f"n{number}") for number in range(5)]
    broken = lease(1.5, clock.now(), lambda _: told.set(), "broken")
    server.lost, server.fails = {"broken"}, 1
    for each in (*leases, broken):
        keeping.keep(each, renew=True)
    async with asyncio.timeout(PATIENCE):
        await told.wait()
        while len(server.batches) < 5:  # noqa: ASYNC110 - another task counts
            await asyncio.sleep(0.01)
    assert server.batches[0] == ["broken", *(f"n{number}" for number in range(5))]
    assert not any(each.lost for each in leases)
    assert "the server is away" in caplog.text
    for each in leases:
        keeping.drop(each)
    async with asyncio.timeout(PATIENCE):
        while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
