"""What two sessions do to each other's locks, statement by statement."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import LeaseLost, Locks, PgEverything
from pgeverything.engine.carriers import PsycopgCarrier
from pgeverything.engine.plan import Query, drive, same
from pgeverything.engine.statements import statements
from pgeverything.locks.plans import renew_all
from tests.waiting import PATIENCE, eventually

from .sessions import Session, Sessions

SQL = statements("locks")
ASKED = {
    "ttl": 30.0,
    "slots": 1,
    "shared": False,
    "owner": "o",
    "note": None,
    "min_hold": None,
    "patience": 0.0,
    "line": "none",
    "channel": None,
    "ticket": None,
}


def acquire(session: Session, holder: int, name: str = "a", **options: Any) -> tuple[Any, ...]:
    """Ask for a lease by the statement itself; returns (state, slot, token, expires_at, ticket, ...)."""
    params = ASKED | {"name": name, "holder": holder} | options
    return PsycopgCarrier(session.connection, "pgeverything").execute(Query(SQL["acquire"], params, same))[0]


def release(session: Session, lease: tuple[Any, ...], name: str = "a") -> bool:
    params = {"name": name, "slot": lease[1], "token": lease[2]}
    return bool(PsycopgCarrier(session.connection, "pgeverything").execute(Query(SQL["release"], params, same))[0][0])


def run_out(session: Session, name: str = "a") -> None:
    session.sql("update pgeverything.locks set expires_at = clock_timestamp() where name = %s", name)


@pytest.fixture
def locks(pg: PgEverything) -> Iterator[Locks]:
    return pg.locks


# A transaction that stays open --------------------------------------------------------------------------------------


def test_a_lease_is_whole_however_old_the_transaction_is(sessions: Sessions) -> None:
    """`now()` is when the transaction began: a lease that counts from there may be over before it is had."""
    session = sessions.open()
    session.begin()
    session.sql("select pg_sleep(0.5)")
    _, _, _, expires_at, *_ = acquire(session, 1)
    ((began,),) = session.sql("select now()")
    session.commit()

    assert expires_at >= began + timedelta(seconds=30.5)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("options", [{}, {"slots": 2}, {"shared": True}])
def test_a_try_does_not_wait_for_who_has_not_committed(
    sessions: Sessions, locks: Locks, known: bool, options: dict[str, Any]
) -> None:
    slow = sessions.open()
    if known:
        release(slow, acquire(slow, 1))
    slow.begin()
    assert acquire(slow, 2, **options)[0] == "held"
    assert locks.acquire("a", **options) is None  # while that transaction is open
    slow.rollback()

    assert locks.acquire("a", **options) is not None


def test_a_wait_ends_in_time_although_somebody_never_commits(sessions: Sessions, locks: Locks) -> None:
    slow = sessions.open()
    release(slow, acquire(slow, 1))
    slow.begin()
    acquire(slow, 2)
    began = time.monotonic()
    assert locks.acquire("a", wait="300ms") is None
    assert time.monotonic() - began < 10
    slow.rollback()


def test_a_name_that_is_stuck_costs_no_other_lease(sessions: Sessions, locks: Locks) -> None:
    leases = [locks.acquire(name) for name in ("a", "b", "c")]
    held = [lease for lease in leases if lease is not None]
    before = [lease.expires_at for lease in held]
    stuck = sessions.open()
    stuck.begin()
    stuck.sql("select from pgeverything.locks where name = 'b' for no key update")
    undecided = drive(locks._carrier(), renew_all(held))

    assert [lease.name for lease in undecided] == ["b"]
    assert [lease.expires_at > was for lease, was in zip(held, before, strict=True)] == [True, False, True]
    assert not any(lease.lost for lease in held)
    stuck.rollback()
    assert drive(locks._carrier(), renew_all(held)) == []


# Guards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"slots": 2}, {"shared": True}])
def test_a_takeover_waits_for_a_guarded_commit(sessions: Sessions, locks: Locks, options: dict[str, Any]) -> None:
    writer, other = sessions.open(), sessions.open()
    writer.sql("create table written (what text)")
    leases = [locks.acquire("a", **options) for _ in range(options.get("slots", 1))]
    assert leases[0] is not None
    writer.begin()
    writer.sql("insert into written values ('guarded')")
    writer.tx.locks.guard(leases[0])
    run_out(other)
    assert locks.acquire("a") is None  # at once
    assert locks.acquire("a", wait="100ms") is None  # in time
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(locks.acquire, "a", wait="60s")
        eventually(lambda: other.sql("select * from pgeverything.lock_waiters"), "somebody to wait")
        assert not taking.done()
        writer.commit()
        taken = taking.result(PATIENCE)
    assert taken is not None
    assert other.sql("select * from written") == [("guarded",)]
    assert taken.token > max(lease.token for lease in leases if lease is not None)


def test_a_slot_that_is_free_is_had_while_another_is_guarded(sessions: Sessions, locks: Locks) -> None:
    writer, other = sessions.open(), sessions.open()
    first, second = (locks.acquire("a", slots=2) for _ in range(2))
    assert first is not None
    assert second is not None
    writer.begin()
    writer.tx.locks.guard(first)
    run_out(other)
    third = locks.acquire("a", slots=2)
    assert third is not None
    assert third.slot == second.slot
    assert locks.acquire("a", slots=2) is None
    writer.commit()
    assert locks.acquire("a", slots=2) is not None


def test_the_holder_renews_and_releases_under_an_open_guard(sessions: Sessions, locks: Locks) -> None:
    """Else a long guarded transaction would cost its own lease, and a release inside it would wait for itself."""
    writer = sessions.open()
    lease = locks.acquire("a")
    assert lease is not None
    before = lease.expires_at
    writer.begin()
    writer.tx.locks.guard(lease)
    lease.renew()
    assert lease.expires_at > before
    writer.tx.locks.guard(lease)
    assert lease.release()
    assert locks.acquire("a") is None  # what was guarded has not been committed
    writer.commit()
    assert locks.acquire("a") is not None


def test_a_break_does_not_wait_for_a_guard_but_the_next_holder_does(sessions: Sessions, locks: Locks) -> None:
    writer = sessions.open()
    lease = locks.acquire("a")
    assert lease is not None
    writer.begin()
    writer.tx.locks.guard(lease)
    assert locks.break_lock("a") == 1
    assert locks.acquire("a") is None
    with pytest.raises(LeaseLost):
        writer.tx.locks.guard(lease)
    writer.commit()
    assert locks.acquire("a") is not None


def test_a_guard_meets_a_break_that_has_not_committed(sessions: Sessions, locks: Locks) -> None:
    """It is one or the other: the guarded commit comes first here, and the next holder after it."""
    writer, breaker = sessions.open(), sessions.open()
    lease = locks.acquire("a")
    assert lease is not None
    breaker.begin()
    breaker.sql("select pgeverything.lock_break('a')")
    writer.begin()
    writer.tx.locks.guard(lease)
    breaker.commit()
    assert locks.acquire("a") is None
    writer.commit()
    assert locks.acquire("a") is not None


def test_a_guard_meets_a_takeover_that_has_not_committed(sessions: Sessions, locks: Locks) -> None:
    writer, thief = sessions.open(), sessions.open()
    lease = locks.acquire("a")
    assert lease is not None
    run_out(thief)
    thief.begin()
    assert acquire(thief, 2)[0] == "held"
    writer.begin()
    with pytest.raises(LeaseLost):
        writer.tx.locks.guard(lease)
    writer.rollback()
    thief.rollback()


def test_a_guard_that_saw_the_lease_before_it_was_taken_over_fails(sessions: Sessions, locks: Locks) -> None:
    """FOR KEY SHARE passes by updates that change no key. A takeover has to count as one that does."""
    writer, thief = sessions.open(), sessions.open()
    lease = locks.acquire("a")
    assert lease is not None
    thief.begin()
    thief.sql("select pgeverything.lock_break('a')")
    assert acquire(thief, 2)[0] == "held"
    writer.begin()
    guarding = writer.waiting(writer.tx.locks.guard, lease)
    thief.commit()
    with pytest.raises(LeaseLost):
        guarding.result(PATIENCE)
    writer.rollback()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_guards_under_stricter_isolation(sessions: Sessions, locks: Locks, isolation: str) -> None:
    writer = sessions.open()
    before = locks.acquire("a")
    assert before is not None
    writer.begin(isolation)
    writer.sql("select 1 from pgeverything.locks limit 1")
    writer.tx.locks.guard(before)
    writer.commit()

    writer.begin(isolation)
    writer.sql("select 1 from pgeverything.locks limit 1")
    after = locks.acquire("b")
    assert after is not None
    with pytest.raises(LeaseLost, match=f"acquired after this {isolation} "):
        writer.tx.locks.guard(after)
    assert not after.lost
    before.renew()
    writer.tx.locks.guard(before)
    writer.commit()

    for how in ("broken", "run out"):
        lease = locks.acquire(how)
        assert lease is not None
        writer.begin(isolation)
        writer.sql("select 1 from pgeverything.locks limit 1")
        if how == "broken":
            locks.break_lock(how)
        else:
            sessions.open().sql("update pgeverything.locks set expires_at = clock_timestamp() where name = %s", how)
        assert locks.acquire(how) is not None
        with pytest.raises(psycopg.errors.SerializationFailure):  # what it sees is what was; what it locks is not
            writer.tx.locks.guard(lease)
        writer.rollback()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_guard_under_stricter_isolation_does_not_see_renewals_and_needs_not(
    sessions: Sessions, locks: Locks, isolation: str
) -> None:
    """The transaction is older than the end of the lease that it sees; meanwhile the lease was renewed."""
    writer, keeper, _ = sessions.three()
    lease = locks.acquire("a")
    assert lease is not None
    run_out(keeper)
    writer.begin(isolation)
    writer.sql("select 1 from pgeverything.locks limit 1")
    keeper.sql("update pgeverything.locks set expires_at = clock_timestamp() + interval '30 seconds'")
    writer.tx.locks.guard(lease)
    run_out(keeper)
    assert locks.acquire("a") is None
    writer.commit()
    assert locks.acquire("a") is not None


# Who waits and who gives back ---------------------------------------------------------------------------------------


@pytest.fixture
def listening(url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("listen ears")
        yield connection


def heard(connection: psycopg.Connection[Any]) -> list[str]:
    """Return what has arrived; a notification follows its commit, so a statement later all of it is there."""
    connection.execute("select 1")
    return [notification.payload for notification in connection.notifies(timeout=0)]


def test_a_release_hints_who_joined_the_line_meanwhile(sessions: Sessions, listening: psycopg.Connection[Any]) -> None:
    """The waiter saw the lease held, and has not committed its place: the release waits for it, and then sees it."""
    holder, waiter = sessions.open(), sessions.open()
    lease = acquire(holder, 1)
    waiter.begin()
    assert acquire(waiter, 2, line="join", channel="ears")[0] == "busy"
    releasing = holder.waiting(release, holder, lease)
    waiter.commit()
    assert releasing.result(PATIENCE)
    assert heard(listening) == ["\tlocks:2"]


def test_who_joins_the_line_meanwhile_finds_the_lease_gone(sessions: Sessions) -> None:
    holder, waiter = sessions.open(), sessions.open()
    lease = acquire(holder, 1)
    holder.begin()
    assert release(holder, lease)
    waiting = waiter.waiting(acquire, waiter, 2, line="join", channel="ears")
    holder.commit()
    assert waiting.result(PATIENCE)[0] == "held"


def test_nobody_is_hinted_who_does_not_listen(sessions: Sessions, listening: psycopg.Connection[Any]) -> None:
    session = sessions.open()
    lease = acquire(session, 1)
    release(session, lease)
    lease = acquire(session, 2)
    assert acquire(session, 3, line="join")[0] == "busy"  # it polls
    release(session, lease)
    assert heard(listening) == []


def test_the_next_reader_is_hinted_by_the_one_before(sessions: Sessions, listening: psycopg.Connection[Any]) -> None:
    session = sessions.open()
    lease = acquire(session, 1)
    tickets = [acquire(session, n, line="join", channel="ears", shared=n < 4)[4] for n in (2, 3, 4)]
    release(session, lease)
    assert heard(listening) == ["\tlocks:2"]
    assert acquire(session, 2, line="join", channel="ears", shared=True, ticket=tickets[0])[0] == "held"
    assert heard(listening) == ["\tlocks:3"]
    second = acquire(session, 3, line="join", channel="ears", shared=True, ticket=tickets[1])
    assert second[0] == "held"
    assert acquire(session, 4, line="join", channel="ears", ticket=tickets[2])[0] == "busy"


def test_of_two_who_ask_at_once_one_gets_the_last_slot(sessions: Sessions) -> None:
    one, two = sessions.open(), sessions.open()
    assert acquire(one, 1, slots=2)[0] == "held"
    one.begin()
    assert acquire(one, 2, slots=2)[0] == "held"
    asking = two.waiting(acquire, two, 3, slots=2, line="join")
    one.commit()
    assert asking.result(PATIENCE)[0] == "busy"
    assert one.sql("select count(*) from pgeverything.locks where expires_at > clock_timestamp()") == [(2,)]


def test_a_call_whose_answer_was_lost_gets_its_own_lease_again(sessions: Sessions) -> None:
    session = sessions.open()
    for options in ({}, {"slots": 2}, {"shared": True}):
        name = str(options)
        first = acquire(session, 1, name, **options)
        again = acquire(session, 1, name, **options)
        assert again[:3] == first[:3]
        assert again[3] > first[3]  # the caller counts from when it asked again
        assert release(session, first, name)
        assert release(session, first, name)
        assert acquire(session, 2, name)[0] == "held"
        assert not release(session, first, name)


def test_who_was_passed_over_keeps_its_place(sessions: Sessions) -> None:
    """A process that was frozen in line: the others go on without it, and its ticket is still the oldest."""
    session = sessions.open()
    lease = acquire(session, 1)
    frozen, second, third = (acquire(session, n, line="join")[4] for n in (2, 3, 4))
    session.sql("update pgeverything.lock_waiters set seen_at = now() - interval '4 seconds' where ticket = %s", frozen)
    release(session, lease)
    lease = acquire(session, 3, line="join", ticket=second)
    assert lease[0] == "held"
    assert session.sql("select ticket from pgeverything.lock_waiters") == [(third,)]
    assert acquire(session, 2, line="join", ticket=frozen)[4] == frozen
    release(session, lease)
    assert acquire(session, 4, line="join", ticket=third)[0] == "busy"
    assert acquire(session, 2, line="join", ticket=frozen)[0] == "held"


# Rows that are swept ------------------------------------------------------------------------------------------------


def test_a_sweep_and_an_acquire_meet(sessions: Sessions) -> None:
    sweeper, other = sessions.open(), sessions.open()
    lease = acquire(other, 1)
    release(other, lease)
    old = "clock_timestamp() - interval '2 days'"
    other.sql(f"update pgeverything.locks set token = token - 172800000000, acquired_at = {old}, expires_at = {old}")
    sweep = "select pgeverything.lock_sweep('1 day', 100)"

    other.begin()
    assert acquire(other, 2)[0] == "held"
    assert sweeper.sql(sweep) == [(0,)]  # does not wait, and leaves it alone
    other.rollback()

    sweeper.begin()
    assert sweeper.sql(sweep) == [(1,)]
    asking = other.waiting(acquire, other, 3, line="join")
    sweeper.commit()
    again = asking.result(PATIENCE)
    assert again[0] == "held"
    assert again[2] > lease[2]
