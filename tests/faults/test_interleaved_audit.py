"""The audit trail under transactions that overlap, in fixed orders and in many at once."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgeverything import PgEverything

from .sessions import Sessions


@pytest.fixture
def account(pg: PgEverything) -> str:
    with pg.transaction() as tx:
        tx.connection.execute("create table account (id integer primary key, balance integer not null default 0)")
        tx.connection.execute("insert into account select n from generate_series(1, 20) n")
    pg.audit.track("account")
    assert pg.audit.seal() == 1
    return "account"


def sealed(pg: PgEverything) -> int:
    root = pg.audit.export_root()
    return 0 if root is None else root.last_id


def pg_horizon(pg: PgEverything) -> tuple[int]:
    """Return how far the trail could be sealed now."""
    with pg.transaction() as tx:
        row = tx.connection.execute("select pgeverything.audit_horizon()").fetchone()
    assert row is not None
    return row  # type: ignore[no-any-return]


def test_writers_do_not_wait_for_each_other(sessions: Sessions, pg: PgEverything, account: str) -> None:
    a, b, c = sessions.three()
    for session, row in ((a, 1), (b, 2), (c, 3)):
        session.begin()
        session.sql("update account set balance = 1 where id = %s", row)
    c.commit()
    b.commit()
    assert pg.audit.seal() == 0  # nor does the seal wait for the first, or hold up the next
    b.sql("update account set balance = 2 where id = 4")
    a.commit()
    assert pg.audit.seal() == 1
    assert pg.audit.verify().ok
    assert [entry.key for entry in pg.audit.history("account", action="update")] == [1, 2, 3, 4]


def test_the_order_of_one_row_is_that_of_its_changes(sessions: Sessions, pg: PgEverything, account: str) -> None:
    a, b, _ = sessions.three()
    a.begin()
    a.sql("update account set balance = balance + 1 where id = 1")
    waiting = b.waiting(b.sql, "update account set balance = balance + 10 where id = 1")
    a.sql("update account set balance = balance + 100 where id = 1")
    a.commit()
    waiting.result()
    changes = [(entry.old["balance"], entry.new["balance"]) for entry in pg.audit.history("account", 1)]
    assert changes == [(0, 1), (1, 101), (101, 111)]


def test_the_seal_never_passes_a_transaction_that_is_open(sessions: Sessions, pg: PgEverything, account: str) -> None:
    """An entry below the ones that are committed is not there yet."""
    a, b, _ = sessions.three()
    start = sealed(pg)
    a.begin()
    a.sql("update account set balance = 1 where id = 1")
    b.sql("update account set balance = 2 where id = 2")
    for _ in range(3):
        assert pg.audit.seal() == 0
    assert sealed(pg) == start
    a.commit()
    assert pg.audit.seal() == 1
    assert [entry.id > start for entry in pg.audit.history("account", action="update")] == [True, True]
    found = pg.audit.verify()
    assert (found.ok, found.unsealed) == (True, 0)


def test_a_transaction_that_has_written_something_else_may_still_write_an_entry(
    sessions: Sessions, pg: PgEverything, account: str
) -> None:
    a, b, _ = sessions.three()
    a.begin()
    a.sql("create table elsewhere (n integer)")
    b.sql("update account set balance = 2 where id = 2")
    assert pg.audit.seal() == 0
    a.sql("update account set balance = 1 where id = 1")
    a.commit()
    assert pg.audit.seal() == 1
    assert pg.audit.verify().ok


def test_a_record_has_a_transaction_before_it_has_an_id(sessions: Sessions, pg: PgEverything, account: str) -> None:
    """What records first thing has written nothing when its id is taken: the seal must know of it all the same."""
    a, b, _ = sessions.three()
    a.begin()
    a.sql("lock table pgeverything.audit_entries in share mode")
    recording = b.waiting(b.tx.audit.record, "login", "ada")  # it has its id, and cannot write
    (horizon,) = pg_horizon(pg)
    a.commit()
    assert recording.result().id > horizon


def test_a_stream_of_transactions_does_not_keep_the_seal_off(
    sessions: Sessions, pg: PgEverything, account: str
) -> None:
    """At every moment one is open, and none for long: what was there before them is sealed."""
    a, b, _ = sessions.three()
    a.begin()
    a.sql("update account set balance = 1 where id = 1")
    b.sql("update account set balance = 2 where id = 2")
    assert pg.audit.seal() == 0  # remembers how far it was
    b.begin()
    b.sql("update account set balance = 3 where id = 3")
    a.commit()
    assert pg.audit.seal() == 1
    kept = [entry.key for entry in pg.audit.history("account", action="update") if entry.id <= sealed(pg)]
    assert kept == [1, 2]
    b.commit()
    assert pg.audit.seal() == 1
    assert pg.audit.verify().ok


def test_only_writers_hold_the_seal_up(sessions: Sessions, pg: PgEverything, account: str) -> None:
    a, b, _ = sessions.three()
    a.begin("repeatable read")
    a.sql("select * from account")
    b.sql("update account set balance = 2 where id = 2")
    assert pg.audit.seal() == 1
    a.rollback()


def test_two_who_seal_at_once_take_turns(sessions: Sessions, pg: PgEverything, account: str) -> None:
    a, b, c = sessions.three()
    c.sql("update account set balance = 2 where id = 2")
    a.begin()
    assert a.sql("select blocks from pgeverything.audit_seal()") == [(1,)]
    waiting = b.waiting(b.sql, "select blocks from pgeverything.audit_seal()")
    a.commit()
    assert waiting.result() == [(0,)]
    assert pg.audit.verify().ok


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_the_seal_refuses_where_it_could_be_wrong(sessions: Sessions, account: str, isolation: str) -> None:
    a, _, _ = sessions.three()
    for begin, first in ((isolation, "select 1"), ("read committed", "insert into account values (100)")):
        a.begin(begin)
        a.sql(first)
        with pytest.raises(psycopg.DatabaseError) as refused:
            a.sql("select pgeverything.audit_seal()")
        assert refused.value.sqlstate == "PGE22"
        a.rollback()


def test_what_is_killed_before_its_commit_leaves_nothing(sessions: Sessions, pg: PgEverything, account: str) -> None:
    a, b, _ = sessions.three()
    for statement in (
        "update account set balance = 1 where id = 1",
        "insert into account values (100)",
        "truncate account",
        "select pgeverything.audit_record('login', 'x')",
    ):
        victim = sessions.open()
        victim.begin()
        victim.sql("select set_config('pgeverything_audit.actor', 'ada', true)")
        victim.sql(statement)
        b.sql("select pg_terminate_backend(%s)", victim.pid)
        sessions.settled(victim.pid)
    assert [entry.action for entry in pg.audit.history()] == ["track"]
    a.sql("update account set balance = 1 where id = 1")
    (entry,) = pg.audit.history("account", 1)
    assert entry.actor is None
    pg.audit.seal()
    assert pg.audit.verify().ok


def test_a_row_that_moves_on_while_a_revert_waits_is_left_alone(
    sessions: Sessions, pg: PgEverything, account: str
) -> None:
    a, b, _ = sessions.three()
    a.sql("update account set balance = 1 where id = 1")
    (entry,) = pg.audit.history("account", 1)
    a.begin()
    a.sql("update account set balance = 2 where id = 1")
    waiting = b.waiting(b.sql, "select problem from pgeverything.audit_revert(%s)", entry.id)
    a.commit()
    assert waiting.result() == [("balance was changed since",)]
    assert a.sql("select balance from account where id = 1") == [(2,)]


def test_an_insert_of_the_same_key_while_a_revert_puts_it_back(
    sessions: Sessions, pg: PgEverything, account: str
) -> None:
    a, b, _ = sessions.three()
    a.sql("delete from account where id = 1")
    (entry,) = pg.audit.history("account", 1)
    a.begin()
    a.sql("insert into account values (1, 7)")
    waiting = b.waiting(b.sql, "select problem from pgeverything.audit_revert(%s)", entry.id)
    a.commit()
    assert waiting.result() == [("there is a row of this key again",)]


def write(url: str, seed: float) -> None:
    """Change rows in sixty transactions, of which some are rolled back, some in part, and some are killed."""
    luck = random.Random(seed)
    connection = psycopg.connect(url)
    for _ in range(60):
        rows = sorted(luck.sample(range(1, 21), luck.randint(1, 3)))  # in one order, so that nobody deadlocks
        for row in rows:
            connection.execute("update account set balance = balance + 1 where id = %s", [row])
        fate = luck.random()
        if fate < 0.2:
            connection.rollback()
        elif fate < 0.3:
            with pytest.raises(psycopg.OperationalError):
                connection.execute("select pg_terminate_backend(pg_backend_pid())")
            connection = psycopg.connect(url)
        elif fate < 0.4:
            connection.execute("savepoint s")
            connection.execute("update account set balance = balance + 1000 where id = %s", [rows[-1]])
            connection.execute("rollback to s")
        connection.commit()
    connection.close()


def test_many_writers_rollbacks_and_kills(
    sessions: Sessions, url: str, pg: PgEverything, account: str, chance: random.Random
) -> None:
    """Eight writers, and one who seals and verifies all the time: every change has its entry, in order."""
    with ThreadPoolExecutor(8) as writers:
        writing = [writers.submit(write, url, chance.random()) for _ in range(8)]
        while not all(each.done() for each in writing):
            pg.audit.seal()
            found = pg.audit.verify()
            assert found.ok, found
        for each in writing:
            each.result()

    pg.audit.seal()
    found = pg.audit.verify()
    assert (found.ok, found.unsealed) == (True, 0)
    balances: dict[int, int] = dict.fromkeys(range(1, 21), 0)
    for entry in pg.audit.history("account", action="update"):
        assert entry.old == {"balance": balances[entry.key]}
        balances[entry.key] = entry.new["balance"]
    assert dict(sessions.open().sql("select id, balance from account")) == balances
