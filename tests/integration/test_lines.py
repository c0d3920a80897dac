"""The short way of a statement through a pool: the same rows and errors as through a cursor, whatever happens to the
connection."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from pgeverything.engine.carriers import AsyncPoolCarrier, OwnPoolCarrier, PoolCarrier, PsycopgCarrier
from pgeverything.engine.lines import Lines
from pgeverything.engine.plan import Query, Rows, same
from pgeverything.engine.pool import new_pool
from pgeverything.engine.statements import Statement
from tests import pgbouncer
from tests.waiting import PATIENCE, eventually

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TYPES = """
select %(text)s::text, %(whole)s::bigint, %(real)s::double precision, %(flag)s::boolean, %(at)s::timestamptz,
       %(data)s::bytea, %(texts)s::text[], %(wholes)s::bigint[], %(times)s::timestamptz[], %(datas)s::bytea[],
       %(none)s::text, '%%'::text, 1.5::numeric, '{"a": 1}'::jsonb::text"""
VALUES: dict[str, object] = {
    "text": 'ä"\\{}, NULL',
    "whole": 2**62,
    "real": 0.1,
    "flag": True,
    "at": NOW,
    "data": bytes(range(256)),
    "texts": ["a", None, "b,c", '"{}\\', ""],
    "wholes": [1, 2**62, None],
    "times": [NOW],
    "datas": [b"\0\1", b"\\"],
    "none": None,
}
TWICE = Statement("test", "twice", "select 2 * %(n)s::bigint, pg_backend_pid()")
OFTEN = 8  # more than psycopg's threshold, so that the statement is prepared


def ask(n: int = 1) -> Query[Any]:
    return Query(TWICE, {"n": n}, same)


class InAnotherThread(OwnPoolCarrier):
    """Runs statements in a thread that Ctrl-C does not reach."""

    def execute(self, query: Query[Any]) -> Rows:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(super().execute, query).result()


@pytest.fixture(params=[OwnPoolCarrier, InAnotherThread], ids=["main-thread", "another-thread"])
def own(request: pytest.FixtureRequest, server_url: str) -> Iterator[Callable[..., OwnPoolCarrier]]:
    """Make carriers on pools of our own."""
    made: list[Lines] = []

    def make(most: int, url: str = server_url) -> OwnPoolCarrier:
        made.append(Lines(new_pool(url, "test", most=most)))
        return request.param(made[-1], "pgeverything")  # type: ignore[no-any-return]

    yield make
    for lines in made:
        lines.close()


def prepared(connection: psycopg.Connection[Any]) -> list[str]:
    rows = connection.execute("select name from pg_prepared_statements where name like 'pgeverything%'").fetchall()
    return [name for (name,) in rows]


@pgbouncer.needs_a_session("no statement is prepared there")
def test_every_type_goes_both_ways_alike(own: Callable[..., OwnPoolCarrier], server_url: str) -> None:
    carrier = own(1)
    query: Query[Any] = Query(Statement("test", "types", TYPES), VALUES, same)
    with psycopg.connect(server_url) as connection:
        expected = PsycopgCarrier(connection, "pgeverything").execute(query)
    assert expected[0][:11] == tuple(VALUES.values())

    for _ in range(OFTEN):
        assert carrier.execute(query) == expected
    assert len(prepared(carrier.lines.take().connection)) == 1


def test_what_is_to_be_planned_afresh_is_never_prepared(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(1)
    for _ in range(OFTEN):
        assert carrier.execute(Query(Statement("test", "fresh", "select 1", fresh=True), {}, same)) == [(1,)]
    assert prepared(carrier.lines.take().connection) == []


def test_nothing_is_prepared_where_that_is_turned_off(
    own: Callable[..., OwnPoolCarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGEVERYTHING_PREPARE", "off")
    carrier = own(1)
    for _ in range(OFTEN):
        carrier.execute(ask())
    assert prepared(carrier.lines.take().connection) == []


def test_statements_that_return_no_rows_and_statements_that_fail(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(1)
    nothing: Query[Any] = Query(Statement("test", "nothing", "drop table if exists pg_temp.none"), {}, same)
    divide = Statement("test", "divide", "select 1 / %(n)s::integer")
    for _ in range(OFTEN):
        assert list(carrier.execute(nothing)) == []
        assert carrier.execute(Query(divide, {"n": 1}, same)) == [(1,)]
        with pytest.raises(psycopg.errors.DivisionByZero, match="division by zero"):
            carrier.execute(Query(divide, {"n": 0}, same))


@pgbouncer.needs_a_session("no statement is prepared there")
@pytest.mark.parametrize("break_it", ["deallocate all", "discard all"])
def test_prepared_statements_may_vanish(own: Callable[..., OwnPoolCarrier], break_it: str) -> None:
    carrier = own(1)
    for _ in range(3):
        for _ in range(OFTEN):
            assert carrier.execute(ask(4))[0][0] == 8
        lent = carrier.lines.take()
        assert len(prepared(lent.connection)) == 1
        lent.connection.execute(break_it.encode())
        carrier.lines.give(lent)


def test_tables_may_change_under_them(own: Callable[..., OwnPoolCarrier], new_database: Callable[[], str]) -> None:
    url = new_database()
    carrier = own(1, url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table changing (a integer)")
        connection.execute("insert into changing values (1)")
        everything: Query[Any] = Query(Statement("test", "changing", "select * from changing"), {}, same)
        for _ in range(OFTEN):
            assert carrier.execute(everything) == [(1,)]
        connection.execute("alter table changing add b text")
        for _ in range(OFTEN):
            assert carrier.execute(everything) == [(1, None)]


def test_a_connection_stays_at_hand(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(4)
    pids = {carrier.execute(ask())[0][1] for _ in range(20)}
    with carrier.transaction() as connection:
        pids.add(connection.info.backend_pid)
    assert len(pids) == 1


def test_the_server_may_end_a_connection_at_hand(own: Callable[..., OwnPoolCarrier], server_url: str) -> None:
    carrier = own(2)
    with psycopg.connect(server_url, autocommit=True) as other:
        for _ in range(3):
            for _ in range(OFTEN):
                pid = carrier.execute(ask())[0][1]
            other.execute("select pg_terminate_backend(%s, 10000)", [pid])  # waits for its end
            assert carrier.execute(ask(3))[0][0] == 6


def test_a_connection_that_is_lost_in_a_statement_says_so(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(1)
    end = Statement("test", "end", "select pg_terminate_backend(case when %(me)s::boolean then pg_backend_pid() end)")
    for _ in range(2):
        for _ in range(OFTEN):
            carrier.execute(Query(end, {"me": False}, same))
        with pytest.raises(psycopg.OperationalError):
            carrier.execute(Query(end, {"me": True}, same))
    assert carrier.execute(ask(3))[0][0] == 6


def test_more_threads_than_connections_are_all_served(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(2)
    start = threading.Barrier(12)

    def work(n: int) -> int:
        start.wait()
        total = 0
        for _ in range(100):
            total += carrier.execute(ask(n))[0][0]
            with carrier.transaction() as connection:
                connection.execute("select 1")
        return total

    with ThreadPoolExecutor(12) as threads:
        assert list(threads.map(work, range(12))) == [200 * n for n in range(12)]


def test_who_waits_for_the_pool_gets_what_is_given_back(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(1)
    lent = carrier.lines.take()
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(carrier.execute, ask(5))
        eventually(lambda: carrier.lines.pool.get_stats().get("requests_waiting", 0) == 1, "it to wait")
        carrier.lines.give(lent)
        assert waiting.result(PATIENCE)[0][0] == 10


def test_connections_that_are_lent_while_it_closes_are_closed_later(own: Callable[..., OwnPoolCarrier]) -> None:
    carrier = own(2)
    lent = carrier.lines.take()
    carrier.lines.close()
    assert not lent.connection.closed
    carrier.lines.give(lent)
    assert lent.connection.closed


def test_after_a_minute_the_pool_sees_it_again(
    own: Callable[..., OwnPoolCarrier], monkeypatch: pytest.MonkeyPatch
) -> None:
    carrier = own(1)
    carrier.execute(ask())
    before = carrier.lines.pool.get_stats()["requests_num"]
    carrier.execute(ask())
    assert carrier.lines.pool.get_stats()["requests_num"] == before
    monkeypatch.setattr("pgeverything.engine.lines._KEEP", 0.0)
    carrier.execute(ask())
    assert carrier.lines.pool.get_stats()["requests_num"] == before + 1


@pytest.mark.parametrize("own", [pytest.param(OwnPoolCarrier, id="main-thread")], indirect=True)
def test_ctrl_c_ends_the_statement_and_not_the_connection(own: Callable[..., OwnPoolCarrier], server_url: str) -> None:
    carrier = own(1)
    sleep = Statement("test", "sleep", "select pg_sleep(%(n)s::integer), pg_backend_pid()")
    for _ in range(OFTEN):
        pid = carrier.execute(Query(sleep, {"n": 0}, same))[0][1]

    def interrupt() -> None:
        with psycopg.connect(server_url, autocommit=True) as other:
            eventually(
                lambda: (
                    other.execute(
                        "select from pg_stat_activity where pid = %s and wait_event = 'PgSleep'", [pid]
                    ).fetchone()
                    is not None
                ),
                "it to sleep",
            )
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        carrier.execute(Query(sleep, {"n": 60}, same))
    thread.join()
    assert carrier.execute(ask(2))[0] == (4, pid)
    carrier.lines.close()


@pgbouncer.needs_a_session("no statement is prepared there")
@pytest.mark.parametrize("autocommit", [True, False])
def test_a_pool_of_the_callers_keeps_its_ways(server_url: str, autocommit: bool) -> None:
    with ConnectionPool(server_url, min_size=1, max_size=1, kwargs={"autocommit": autocommit}, open=True) as pool:
        carrier = PoolCarrier(pool, "pgeverything")
        for n in range(OFTEN):
            assert carrier.execute(ask(n))[0][0] == 2 * n
        assert pool.get_stats()["requests_num"] == OFTEN
        with pool.connection() as connection:
            assert len(prepared(connection)) == 1
            assert connection.autocommit == autocommit


async def test_the_same_for_asyncio(server_url: str) -> None:
    async with AsyncConnectionPool(server_url, min_size=1, max_size=1, kwargs={"autocommit": True}, open=False) as pool:
        carrier = AsyncPoolCarrier(pool, "pgeverything")
        for n in range(OFTEN):
            assert (await carrier.execute(ask(n)))[0][0] == 2 * n
        query: Query[Any] = Query(Statement("test", "types", TYPES), VALUES, same)
        for _ in range(OFTEN):
            assert (await carrier.execute(query))[0][:11] == tuple(VALUES.values())
        with pytest.raises(psycopg.errors.InvalidTextRepresentation):
            await carrier.execute(Query(TWICE, {"n": "two"}, same))
