"""Ordering keys under unlucky interleavings: no job is left behind, none goes before its turn, nobody blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import psycopg
import pytest
from psycopg import sql

from pgeverything import PgEverything
from tests import server

from .accounts import fetch, left_over
from .sessions import Session, Sessions


def enqueue(session: Session, key: str = "k") -> int:
    return session.tx.jobs.enqueue("t", ordering_key=key).id


def ready(url: str) -> list[int]:
    return [job for (job,) in fetch(url, "select job from pgeverything.ready order by seq")]


def waiting(url: str) -> list[int]:
    return [job for (job,) in fetch(url, "select job from pgeverything.waiting order by seq")]


def started(worker: Session, count: int = 1) -> tuple[int, list[tuple[int, int]]]:
    """Move and claim what is there; return the worker's number and the claimed jobs."""
    worker.advance()
    number = worker.register()
    claimed = worker.claim(number)
    assert len(claimed) == count
    return number, claimed


def run_all(worker: Session, number: int) -> list[int]:
    """Work until nothing moves; return the jobs in the order in which they ended."""
    ended: list[int] = []
    while worker.advance() + len(claimed := worker.claim(number)):
        ended += worker.finish(number, claimed)
    return ended


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_line_emptied_while_an_enqueue_is_uncommitted_gets_it_later(url: str, sessions: Sessions, end: str) -> None:
    producer, worker, _ = sessions.three()
    first = enqueue(producer)
    number, claimed = started(worker)
    producer.begin()
    second = enqueue(producer)
    assert worker.finish(number, claimed) == [first]
    assert worker.advance() == 0
    assert fetch(url, "select * from pgeverything.turns") == []
    getattr(producer, end)()
    assert run_all(worker, number) == ([second] if end == "commit" else [])
    assert left_over(url) == {}


def test_an_enqueue_that_commits_while_the_turn_is_passed_on_is_not_left_behind(url: str, sessions: Sessions) -> None:
    """The wake-up that a release with a single snapshot would lose.

    The ending job's statement begins, and waits for the key's row. Then another job of the key is committed, and its
    note is settled by the very session that holds the row, which finds the turn taken. Only the waiting release can
    pass the turn to it, and it must look with newer eyes than it began with.
    """
    worker, holder, producer = sessions.three()
    first = enqueue(producer)
    number, claimed = started(worker)
    holder.begin()
    holder.sql("select pgeverything.release('default', 'k', 0)")
    ending = worker.waiting(worker.finish, number, claimed)
    second = enqueue(producer)
    assert holder.advance() == 0
    assert holder.sql("select * from pgeverything.turn_notes") == []
    holder.commit()
    assert ending.result() == [first]
    assert (ready(url), waiting(url)) == ([second], [])


def test_long_transactions_that_enqueue_one_key_do_not_wait_for_each_other(url: str, sessions: Sessions) -> None:
    one, two, worker = sessions.three()
    number = worker.register()
    one.begin()
    two.begin()
    # Crosswise, which would deadlock if an enqueue took a lock of its key.
    early, late = enqueue(one, "a"), enqueue(two, "b")
    enqueue(one, "b")
    enqueue(two, "a")
    two.commit()
    assert len(run_all(worker, number)) == 2  # and what is committed runs, while the other is open
    one.commit()
    assert len(run_all(worker, number)) == 2
    assert {early, late} <= {job for (job,) in fetch(url, "select id from pgeverything.finished")}
    assert left_over(url) == {}


def test_a_cancel_in_a_long_transaction_holds_up_neither_claims_nor_other_jobs_of_the_key(
    url: str, sessions: Sessions
) -> None:
    producer, canceller, worker = sessions.three()
    first, second, third = (enqueue(producer) for _ in range(3))
    number, claimed = started(worker)
    canceller.begin()
    assert canceller.tx.jobs.cancel(second)
    assert worker.finish(number, claimed) == [first]
    assert run_all(worker, number) == [third]
    canceller.commit()
    assert run_all(worker, number) == []
    assert left_over(url) == {}


def test_a_cancelled_ready_job_passes_its_turn_on(url: str, sessions: Sessions) -> None:
    producer, canceller, worker = sessions.three()
    first, second = enqueue(producer), enqueue(producer)
    worker.advance()
    assert ready(url) == [first]
    canceller.begin()
    assert canceller.tx.jobs.cancel(first)
    assert worker.advance() == 0
    canceller.commit()
    assert run_all(worker, worker.register()) == [second]
    assert left_over(url) == {}


def test_a_rolled_back_cancel_of_the_only_waiting_job_is_nudged_on(url: str, sessions: Sessions) -> None:
    producer, canceller, worker = sessions.three()
    first, second = enqueue(producer), enqueue(producer)
    number, claimed = started(worker)
    canceller.begin()
    assert canceller.tx.jobs.cancel(second)
    assert worker.finish(number, claimed) == [first]
    canceller.rollback()
    assert run_all(worker, number) == []  # the release passed it by, and no note is left
    worker.run("nudge_lines")
    assert run_all(worker, number) == [second]
    assert left_over(url) == {}


def test_a_nudge_hands_out_no_turn_that_is_held(url: str, sessions: Sessions) -> None:
    producer, worker, nudger = sessions.three()
    first, second = enqueue(producer), enqueue(producer)
    number, claimed = started(worker)
    worker.begin()
    assert worker.finish(number, claimed) == [first]
    nudger.run("nudge_lines")  # it still sees the turn held
    worker.commit()
    assert ready(url) == [second]
    nudger.run("nudge_lines")
    assert nudger.advance() == 0
    assert run_all(worker, number) == [second]
    assert left_over(url) == {}


def notes(url: str) -> Sequence[tuple[int]]:
    return fetch(url, "select seq from pgeverything.turn_notes order by seq")


def test_two_workers_that_settle_notes_at_once_hand_out_one_turn(url: str, sessions: Sessions) -> None:
    producer, one, two = sessions.three()
    jobs = [enqueue(producer) for _ in range(3)]
    assert len(notes(url)) == 3
    one.begin()
    assert one.advance(batch=1) == 1
    other = two.waiting(two.advance)  # the notes of the same key that the first has not taken
    one.commit()
    assert other.result() == 0
    assert (ready(url), waiting(url)) == (jobs[:1], jobs[1:])
    assert run_all(one, one.register()) == jobs
    assert left_over(url) == {}


def test_two_workers_move_what_is_due_once(url: str, pg: PgEverything, sessions: Sessions) -> None:
    jobs = pg.jobs.enqueue_many("t", [{"n": n} for n in range(100)], delay="1h")
    keyed = pg.jobs.enqueue_many("t", [{"n": n} for n in range(10)], delay="1h", ordering_key="k")
    one, two, _ = sessions.three()
    one.sql("update pgeverything.scheduled set due_at = now() - interval '1 s'")
    one.begin()
    assert one.advance(batch=60) >= 60
    assert two.advance(batch=1000) >= 50  # the rest, without waiting
    one.commit()
    worker = sessions.open()
    number = worker.register()
    ended = run_all(worker, number)
    assert sorted(ended) == sorted(jobs + keyed)
    assert left_over(url) == {}


def test_finishing_many_keys_in_any_order_does_not_deadlock(url: str, sessions: Sessions) -> None:
    """Two acknowledgements of the same keys, handed in opposite orders, take the keys' rows in the same order."""
    producer, one, two = sessions.three()
    sessions.open().sql(
        "insert into pgeverything.queues (name, per_key) values ('default', 2)"
        " on conflict (name) do update set per_key = 2"
    )
    keys = ["a", "b", "c"]
    for key in [*keys, *keys]:
        enqueue(producer, key)
    one.advance()
    first, second = one.register(), two.register()
    mine, others = one.claim(first, limit=3), two.claim(second, limit=3)
    one.begin()
    assert len(one.finish(first, mine)) == 3
    late = two.waiting(two.finish, second, list(reversed(others)))
    one.commit()
    assert len(late.result()) == 3
    assert left_over(url) == {}


def test_rescue_of_a_keyed_job_keeps_its_turn(url: str, sessions: Sessions) -> None:
    producer, worker, sweeper = sessions.three()
    first, second = enqueue(producer), enqueue(producer)
    number, _ = started(worker)
    sweeper.silence(number)
    sweeper.begin()
    assert sweeper.rescue() == 1
    assert worker.advance() == 0
    sweeper.commit()
    assert (ready(url), waiting(url)) == ([first], [second])
    assert run_all(worker, worker.register()) == [first, second]
    assert left_over(url) == {}


def test_a_turn_that_is_given_back_is_counted_once(url: str, sessions: Sessions) -> None:
    producer, one, two = sessions.three()
    first, second, third = (enqueue(producer) for _ in range(3))
    one.advance()
    assert producer.tx.jobs.cancel(first)
    one.begin()
    assert one.advance() == 1
    assert two.advance() == 0  # the note is taken
    one.commit()
    assert two.advance() == 0
    assert (ready(url), waiting(url)) == ([second], [third])


# The order of locks --------------------------------------------------------------------------------------------------


@pytest.fixture
def alphabetical(server_url: str) -> Iterator[str]:
    """A database that sorts text as people do: "a" before "B"."""
    url = server.create_database(server_url)
    statement = "create database {} template template0 encoding utf8 locale_provider icu icu_locale 'en-US' locale 'C'"
    name = server.database_name(url)
    try:
        with psycopg.connect(server_url, autocommit=True) as connection:
            connection.execute(sql.SQL("drop database {}").format(sql.Identifier(name)))
            connection.execute(sql.SQL(statement).format(sql.Identifier(name)))
    except psycopg.errors.FeatureNotSupported:
        pytest.skip("this server is built without ICU")
    with PgEverything(url) as pg:
        pg.migrate()
    yield url
    server.drop_database(url)


@pytest.mark.parametrize("how", ["finish", "fail"])
def test_keys_are_locked_in_one_order_whatever_the_database_sorts_by(alphabetical: str, how: str) -> None:
    """An acknowledgement and a look at the notes, each of the keys "a" and "B", while somebody holds "a"."""
    with Sessions(alphabetical) as sessions:
        worker, other, holder = sessions.three()
        for key in ("a", "B"):
            enqueue(worker, key)
        number, claimed = started(worker, 2)
        for key in ("a", "B"):
            enqueue(other, key)
        holder.begin()
        holder.sql("select pgeverything.release('default', 'a', 0)")
        delay = {} if how == "finish" else {"delay": None}
        ending = worker.waiting(getattr(worker, how), number, claimed, **delay)
        looking = other.waiting(other.advance)
        holder.commit()
        assert len(ending.result()) == 2
        looking.result()
