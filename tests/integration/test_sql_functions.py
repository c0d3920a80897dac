"""What strangers call: pgeverything.enqueue from psql, triggers and other languages; and many jobs at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import AsyncPgEverything, PgEverything

from . import carriers

if TYPE_CHECKING:
    Database = psycopg.Connection[Any]


def test_the_function_needs_a_task_only(pg: PgEverything, db: Database) -> None:
    row = db.execute("select id, state from pgeverything.enqueue('mail')").fetchone()
    assert row is not None
    job = pg.jobs.get(row[0])
    assert (row[1], job.state, job.task, job.queue, job.args, job.priority) == (
        "ready",
        "ready",
        "mail",
        "default",
        {},
        0,
    )


def test_the_function_takes_every_option(pg: PgEverything, db: Database) -> None:
    row = db.execute(
        """select id, state, created_at from pgeverything.enqueue(
             'mail', '{"to": "ada"}', queue => 'letters', priority => 3, delay => '1 hour',
             unique_key => 'u', ordering_key => 'k', max_attempts => 2, timeout => '90s',
           expires => '1 day', headers => '{"a": "b"}')"""
    ).fetchone()
    assert row is not None
    job = pg.jobs.get(row[0])
    same = pg.jobs.enqueue("mail", unique_key="u")
    assert same.duplicate
    assert same.id == job.id
    assert (row[1], job.state, job.args, job.queue, job.priority) == (
        "scheduled",
        "scheduled",
        {"to": "ada"},
        "letters",
        3,
    )
    assert (job.unique_key, job.ordering_key, job.max_attempts, job.timeout, job.headers) == (
        "u",
        "k",
        2,
        90,
        {"a": "b"},
    )
    assert (job.created_at, (job.expires_at - job.run_at).days) == (row[2], 1)  # type: ignore[operator]


def test_the_function_raises_for_a_duplicate_on_request(db: Database) -> None:
    call = "select id, state from pgeverything.enqueue('mail', unique_key => 'u', on_duplicate => %s)"
    first, again = (db.execute(call, ["skip"]).fetchone() for _ in range(2))
    assert first is not None
    assert again == (first[0], "duplicate")
    with pytest.raises(
        psycopg.Error, match=f"job {first[0]} of task mail has unique_key u and is not finished"
    ) as caught:
        db.execute(call, ["raise"])
    assert caught.value.sqlstate == "PGE02"


def test_a_trigger_enqueues_with_the_row_that_fires_it(pg: PgEverything, db: Database) -> None:
    db.execute("""
        create schema shop;
        create table shop.orders (id integer primary key);
        create function shop.ship() returns trigger language plpgsql as $$
        begin
          perform pgeverything.enqueue('ship', jsonb_build_object('order', new.id), ordering_key => 'shop');
          return null;
        end $$;
        create trigger ship after insert on shop.orders for each row execute function shop.ship()""")
    seen: list[int] = []

    @pg.task()
    def ship(order: int) -> None:
        seen.append(order)

    with pg.transaction() as tx:
        tx.connection.execute("insert into shop.orders values (1)")
        raise psycopg.Rollback
    db.execute("insert into shop.orders select generate_series(2, 4)")
    pg.worker().run(until_idle=True)
    assert seen == [2, 3, 4]


def test_the_function_works_whatever_the_search_path(db: Database, pg: PgEverything) -> None:
    with pg.transaction() as tx:
        tx.connection.execute("create temp table jobs (id text)")
        tx.connection.execute("set local search_path = pg_temp, public")
        tx.connection.execute("select pgeverything.enqueue('mail')")
    assert pg.jobs.counts()["ready"] == 1


@pytest.mark.parametrize(
    "option",
    [
        "run_at => 'infinity'",
        "delay => interval '20000 years'",
        "expires => interval '20000 years'",
        "run_at => '-infinity', expires => '1 day'",
    ],
)
def test_a_time_that_programs_cannot_read_is_refused(db: Database, option: str) -> None:
    with pytest.raises(psycopg.errors.CheckViolation, match=r"_9900|_9899"):
        db.execute(f"select pgeverything.enqueue('mail', {option})".encode())


# Many ---------------------------------------------------------------------------------------------------------------


def test_twenty_thousand_keep_their_order(pg: PgEverything) -> None:
    ids = pg.jobs.enqueue_many("mail", ({"n": n} for n in range(20_000)))

    assert len(set(ids)) == 20_000
    assert ids == sorted(ids)
    assert pg.jobs.counts()["ready"] == 20_000
    assert [pg.jobs.get(ids[n]).args["n"] for n in (0, 4_999, 5_000, 19_999)] == [0, 4_999, 5_000, 19_999]


@pytest.mark.parametrize("name", [name for name in carriers.CARRIERS if "on-" not in name])
def test_several_statements_are_one_unit(name: str, url: str, db: Database) -> None:
    """5 MB of arguments take two statements; a queue that has room for the first only keeps neither."""
    args = [{"text": "x" * 1_000_000}] * 5
    with carriers.opened(name, url) as face:
        face.jobs.configure("mail", max_depth=6)
        assert len(face.jobs.enqueue_many("mail", args, queue="mail")) == 5
        with pytest.raises(Exception, match="no room for"):
            face.jobs.enqueue_many("mail", args, queue="mail")
        face.jobs.configure("mail", max_depth=9)
        with pytest.raises(Exception, match="no room for 2 more"):
            face.jobs.enqueue_many("mail", args, queue="mail")
        assert face.jobs.counts("mail")["ready"] == 5
    assert db.execute("select count(*) from pgeverything.jobs").fetchone() == (5,)


async def test_the_same_pool_serves_one_loop_after_the_other(url: str, db: Database) -> None:
    pg = AsyncPgEverything(url)
    await pg.jobs.enqueue("mail")
    await pg.close()
    await pg.jobs.enqueue("mail")  # opens it again
    await pg.close()
    assert db.execute("select count(*) from pgeverything.jobs").fetchone() == (2,)
