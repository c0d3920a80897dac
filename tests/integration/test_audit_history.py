"""Looking back in the audit trail, on every carrier: histories, rows as they were, and changes undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import AuditGap, CannotRevert, EntryNotFound, InvalidArgument, PgEverything

from .trail import now, told

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]

pytestmark = pytest.mark.usefixtures("_nothing_left")


# Look back ------------------------------------------------------------------------------------------------------------


def test_history_filters_and_is_lazy(on: Face, pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    for actor in ("ada", "bob"):
        with pg.transaction() as tx:
            tx.audit.context(actor=actor)
            tx.connection.execute(
                "insert into account (id) select n + 1000 * %s from generate_series(1, 300) n", [len(told(pg))]
            )
    middle = pg.audit.get(next(pg.audit.history("account", actor="bob")).id).at
    assert len(list(on.audit.history("account", actor="ada"))) == 300
    assert len(list(on.audit.history(since=middle))) == 300
    assert len(list(on.audit.history("account", until=middle))) == 301
    newest = [entry.id for entry in on.audit.history(newest_first=True)]
    assert newest == sorted((entry.id for entry in on.audit.history()), reverse=True)
    assert len(newest) == 601
    assert len(list(on.audit.history(limit=250, newest_first=True))) == 250
    with pytest.raises(EntryNotFound):
        on.audit.get(2**40)


def test_rows_as_they_were(on: Face, pg: PgEverything, db: Database, account: str) -> None:
    db.execute("insert into account (id, owner, balance) values (1, 'ada', 1), (2, 'bob', 2), (3, 'cyd', 3)")
    pg.audit.track("account", exclude=["changed"], mask=["ssn"])

    def rows() -> list[Any]:
        return [row for (row,) in db.execute("select to_jsonb(a) - '{changed,ssn}'::text[] from account a order by id")]

    copies = [(now(db), rows())]
    for change in (
        "update account set balance = 10 where id = 1",
        "update account set owner = 'ADA', ssn = 'x' where id = 1",
        "delete from account where id = 2",
        "insert into account (id, owner) values (2, 'again')",
        "update account set id = 4 where id = 3",
        "update account set balance = balance + 1",
        "truncate account",
        "insert into account (id) values (9)",
    ):
        db.execute(change)
        copies.append((now(db), rows()))
    for at, copy in copies:
        assert sorted(on.audit.as_of("account", at), key=lambda row: row["id"]) == copy
        for key in (1, 2, 3, 4, 9):
            assert on.audit.as_of("account", at, key=key) == [row for row in copy if row["id"] == key]


def test_a_key_that_is_none_is_said(on: Face, pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    with pytest.raises(InvalidArgument, match="key='seven' is no key of account: invalid input syntax"):
        list(on.audit.history("account", "seven"))
    on.rollback()
    for key in ([1, 2], {"number": 1}, {"id": 1, "owner": "x"}):
        with pytest.raises(InvalidArgument, match=r"is no key of account: the key is \(id\)"):
            list(on.audit.history("account", key))
        on.rollback()


def test_as_of_says_when_it_cannot_know(pg: PgEverything, db: Database, account: str) -> None:
    at = now(db)
    with pytest.raises(InvalidArgument, match="is not tracked"):
        pg.audit.as_of("account", at)
    pg.audit.track("account")
    with pytest.raises(AuditGap, match="it is tracked since"):
        pg.audit.as_of("account", at)
    at = now(db)
    assert pg.audit.as_of("account", at) == []
    pg.audit.untrack("account")
    between = now(db)
    pg.audit.track("account")
    for time in (at, between):
        with pytest.raises(AuditGap, match=r"it was not tracked from|it is tracked since"):
            pg.audit.as_of("account", time)
    assert pg.audit.as_of("account", now(db)) == []


def test_a_table_keeps_its_name_in_the_trail(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    db.execute("insert into account (id) values (1)")
    db.execute("alter table account rename to customer")
    db.execute("delete from customer")
    assert [action for action, *_ in told(pg, "customer")] == ["insert", "delete"]
    assert [action for action, *_ in told(pg, account)] == ["insert", "delete"]
    assert pg.audit.tracked()[0].drift == ("the table is called public.customer now, and public.account in the trail",)
    db.execute("create table account (id integer primary key)")
    with pytest.raises(InvalidArgument, match=r"public.customer is in the trail under this name"):
        pg.audit.track("account")


def test_columns_that_come_go_and_are_renamed(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account", exclude=["changed"], mask=["ssn"])
    db.execute("insert into account (id, owner) values (1, 'ada')")
    db.execute("alter table account add phone text; update account set phone = '1'")
    db.execute("alter table account drop owner; alter table account drop ssn; update account set phone = '2'")
    db.execute("alter table account rename id to number; update account set phone = '3'")
    assert [entry.new for entry in pg.audit.history("account", 1)][1:] == [
        {"phone": "1"},
        {"phone": "2"},
        {"phone": "3"},
    ]
    assert set(pg.audit.tracked()[0].drift) == {
        "the masked column ssn is gone",
        "its key column id is called number now; track it again for speed",
    }
    assert pg.audit.track("account", exclude=["changed"]).drift == ()


@pytest.mark.parametrize("bulk", [False, True])
def test_a_table_that_has_lost_its_key_can_still_be_written(
    pg: PgEverything, db: Database, account: str, bulk: bool
) -> None:
    pg.audit.track("account", exclude=["owner", "ssn", "email", "balance"], bulk=bulk)
    db.execute("insert into account (id) values (1); alter table account drop id")
    db.execute("update account set changed = null; delete from account; insert into account default values")
    assert [entry.action for entry in pg.audit.history("account")][-2:] == ["delete", "insert"]
    assert "a column of its key is gone" in pg.audit.tracked()[0].drift[0]


# Revert ---------------------------------------------------------------------------------------------------------------


def test_a_change_is_undone_as_a_change_of_its_own(on: Face, pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account", exclude=["changed"])
    db.execute("alter table account drop changed")
    db.execute("insert into account (id, owner, balance) values (1, 'ada', 10)")
    db.execute("update account set balance = 20")
    db.execute("update account set owner = 'bob'")
    db.execute("update account set id = 7, owner = 'eve'")
    db.execute("delete from account")
    insert, balance, owner, left, came, delete = [e.id for e in pg.audit.history("account") if e.action != "track"]

    def row() -> list[tuple[Any, ...]]:
        return db.execute("select id, owner, balance from account").fetchall()

    undone = on.audit.revert(delete)
    on.commit()
    assert (undone.action, undone.key, undone.context) == ("insert", 7, {"reverts": delete})
    assert row() == [(7, "eve", 20)]
    on.audit.revert(came)
    on.commit()
    assert row() == [(1, "bob", 20)]
    assert on.audit.revert(balance).new == {"balance": 10}  # while the owner stays as somebody changed it later
    on.commit()
    assert row() == [(1, "bob", 10)]
    with pytest.raises(CannotRevert, match="the row is gone"):
        on.audit.revert(left)
    with pytest.raises(CannotRevert, match="owner was changed since"):
        on.audit.revert(insert)
    on.audit.revert(owner)
    on.audit.revert(insert)
    on.commit()
    assert row() == []
    with pytest.raises(CannotRevert, match="the row is gone"):
        on.audit.revert(balance)
    db.execute("insert into account (id) values (7)")
    with pytest.raises(CannotRevert, match="there is a row of this key again"):
        on.audit.revert(delete)


def test_what_the_trail_does_not_have_is_not_undone(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account", mask=["ssn"], personal=["email"], exclude=["changed"])
    db.execute("insert into account (id, ssn, email) values (1, 's', 'e')")
    db.execute("update account set ssn = 't'")
    db.execute("update account set email = 'f'")
    db.execute("update account set owner = 'x'")
    db.execute("delete from account")
    _, insert, ssn, email, owner, delete = [entry.id for entry in pg.audit.history("account")]
    with pytest.raises(CannotRevert, match="the values of ssn are masked"):
        pg.audit.revert(delete)
    db.execute("insert into account (id, ssn, email) values (1, 's', 'f')")
    with pytest.raises(CannotRevert, match="ssn was changed since"):
        pg.audit.revert(insert)
    with pytest.raises(CannotRevert, match="the values of ssn are masked"):
        pg.audit.revert(ssn)
    pg.audit.revert(email)
    assert pg.audit.erase("account", 1) > 0
    with pytest.raises(CannotRevert, match="its personal values were erased"):
        pg.audit.revert(email)
    record = pg.audit.record("login", "x")
    with pytest.raises(CannotRevert, match="it is a record of login"):
        pg.audit.revert(record.id)
    pg.audit.untrack("account")
    with pytest.raises(CannotRevert, match=r"public.account is not tracked any more"):
        pg.audit.revert(owner)
    with pytest.raises(EntryNotFound):
        pg.audit.revert(2**40)
