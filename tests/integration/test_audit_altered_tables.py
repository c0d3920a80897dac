"""The audit trail of tables that are altered while it watches them: nothing is told wrong, nothing hidden shows."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import AuditGap, CannotRevert, PgEverything

if TYPE_CHECKING:
    from collections.abc import Iterator

    Database = psycopg.Connection[Any]


@pytest.fixture
def account(db: Database) -> Iterator[str]:
    """A table with a row."""
    db.execute("create table account (id integer primary key, balance integer, note text)")
    db.execute("insert into account values (1, 5, 'a')")
    yield "public.account"
    db.execute("drop table if exists account, whole, child cascade; drop extension if exists ltree cascade")


def now(db: Database) -> datetime:
    return db.execute("select clock_timestamp()").fetchall()[0][0]


def last(pg: PgEverything) -> int:
    """The last entry of the trail."""
    return next(pg.audit.history(newest_first=True)).id


# Rows as they were ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["update account set balance = 7", "delete from account"])
def test_a_column_that_was_renamed_is_not_told_by_its_value_of_today(
    pg: PgEverything, db: Database, account: str, change: str
) -> None:
    pg.audit.track(account)
    at = now(db)
    db.execute(f"{change}; alter table account rename balance to amount".encode())
    with pytest.raises(AuditGap, match="a column balance was renamed or dropped since"):
        pg.audit.as_of(account, at)
    pg.audit.track(account)
    with pytest.raises(AuditGap, match="balance was renamed"):
        pg.audit.as_of(account, at, key=1)


def test_a_column_that_was_dropped_is_left_out(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track(account)
    at = now(db)
    db.execute("update account set balance = 7, note = 'b'; alter table account drop balance")
    assert pg.audit.as_of(account, at) == [{"id": 1, "note": "a"}]


@pytest.mark.parametrize("hidden", ["exclude", "mask"])
def test_what_was_hidden_for_a_while_is_not_guessed(pg: PgEverything, db: Database, account: str, hidden: str) -> None:
    pg.audit.track(account, **{hidden: ["balance"]})  # type: ignore[arg-type]
    at = now(db)
    db.execute("update account set balance = 6")
    pg.audit.track(account)
    assert pg.audit.as_of(account, at) == [{"id": 1, "note": "a"}]
    shown = now(db)
    db.execute("update account set balance = 7")
    assert pg.audit.as_of(account, at) == [{"id": 1, "note": "a"}]
    assert pg.audit.as_of(account, shown) == [{"id": 1, "note": "a", "balance": 6}]
    pg.audit.track(account, **{hidden: ["balance"]})  # type: ignore[arg-type]
    assert pg.audit.as_of(account, shown) == [{"id": 1, "note": "a"}]


def test_rows_by_keys_of_another_type_are_not_led_back(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track(account)
    at = now(db)
    db.execute("update account set balance = 7; alter table account alter id type text")
    for key in (None, "1"):
        with pytest.raises(AuditGap, match="the type of its key was changed since"):
            pg.audit.as_of(account, at, key=key)
    later = now(db)
    db.execute("update account set balance = 8")
    assert pg.audit.as_of(account, later, key="1") == [{"id": "1", "balance": 7, "note": "a"}]


def test_a_table_that_was_created_again_is_another_one(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track(account)
    at = now(db)
    db.execute("drop table account; create table account (id integer primary key, balance integer)")
    pg.audit.track(account)
    with pytest.raises(AuditGap, match="it is tracked since"):
        pg.audit.as_of(account, at)


# What is not seen -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "alter",
    [
        'alter table account disable trigger "00_pgeverything_audit_truncate"',
        'drop trigger "00_pgeverything_audit_truncate" on account',
        "alter table account disable trigger user",
    ],
)
@pytest.mark.parametrize("bulk", [False, True])
def test_a_trigger_that_does_not_fire_is_said(
    pg: PgEverything, db: Database, account: str, alter: str, bulk: bool
) -> None:
    pg.audit.track(account, bulk=bulk)
    at = now(db)
    db.execute(alter.encode())
    (tracked,) = pg.audit.tracked()
    assert tracked.drift == ("a trigger is missing or disabled: changes have no entries; track it again",)
    assert pg.audit.track(account, bulk=bulk).drift == ()
    with pytest.raises(AuditGap):  # who knows what happened meanwhile
        pg.audit.as_of(account, at)


def test_a_table_that_was_restored_is_to_be_tracked_again(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("alter table account drop balance")
    pg.audit.track(account, mask=["note"])
    # As in a database to which a dump was restored: another table, with its triggers and the trail as they were.
    db.execute("update pgeverything.audit_entries set new = new || '{\"relation\": 1}'")
    assert "it was restored from a dump" in pg.audit.tracked()[0].drift[0]
    assert pg.audit.track(account, mask=["note"]).drift == ()


def test_a_disabled_trigger_of_a_partition_is_said(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("create table whole (id integer primary key) partition by range (id)")
    db.execute("create table part partition of whole for values from (0) to (9)")
    pg.audit.track("whole")
    db.execute('alter table part disable trigger "00_pgeverything_audit_update"')
    (tracked,) = pg.audit.tracked()
    assert "a trigger is missing or disabled" in tracked.drift[0]


def test_changes_through_another_table_are_seen_or_said_not_to_be(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("create table child (primary key (id)) inherits (account)")
    assert pg.audit.track(account).drift == (
        "tables that inherit from it are not tracked: changes of their rows have no entries; track each",
    )
    assert pg.audit.track("child", bulk=True).drift == (
        "it belongs to another table: changes through that one have no entries; track it again without bulk",
    )
    assert [each.drift for each in (pg.audit.track("child"), *pg.audit.tracked())] == [(), (), ()]
    db.execute("insert into child values (2, 1, 'c'); update account set balance = 0")
    assert [entry.action for entry in pg.audit.history("child")][-2:] == ["insert", "update"]


def test_a_masked_column_stays_masked_when_its_table_becomes_a_partition(
    pg: PgEverything, db: Database, account: str
) -> None:
    db.execute("alter table account drop balance")  # so that the partition's columns have other numbers than the root's
    pg.audit.track(account, mask=["note"])
    db.execute("create table whole (id integer primary key, note text) partition by range (id)")
    db.execute("alter table whole attach partition account for values from (0) to (9)")
    db.execute("insert into whole values (2, 'secret')")
    entry = next(pg.audit.history(account, 2))
    assert (entry.new, entry.masked) == ({"id": 2}, ("note",))


# Undo -----------------------------------------------------------------------------------------------------------------


def test_an_insert_is_not_undone_when_a_column_that_came_later_was_written(
    pg: PgEverything, db: Database, account: str
) -> None:
    pg.audit.track(account)
    db.execute("insert into account values (2, 5, 'b')")
    entry = last(pg)
    db.execute("alter table account add owner text; update account set owner = 'ada'")
    with pytest.raises(CannotRevert, match="owner was changed since"):
        pg.audit.revert(entry)


@pytest.mark.parametrize("change", ["update account set balance = 7", "insert into account values (2, 1, 'b')"])
def test_a_revert_that_a_trigger_swallows_is_said(pg: PgEverything, db: Database, account: str, change: str) -> None:
    pg.audit.track(account)
    db.execute(change.encode())
    db.execute("create or replace function no() returns trigger language plpgsql as 'begin return null; end'")
    db.execute("create trigger no before update or delete on account for each row execute function no()")
    with pg.transaction() as tx:
        with pytest.raises(CannotRevert, match="a trigger or a policy of the table did not let it"):
            tx.audit.revert(last(pg))
        assert tx.audit.record("export", "account").context == {}


def test_nothing_is_undone_that_would_leave_no_entry(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track(account)
    db.execute("update account set balance = 7, note = 'b'")
    entry = last(pg)
    pg.audit.track(account, exclude=["balance"])
    with pytest.raises(CannotRevert, match="balance is excluded now, so that its change would leave no entry"):
        pg.audit.revert(entry)
    pg.audit.track(account)
    db.execute("alter table account disable trigger user")
    with pytest.raises(
        CannotRevert, match=r"a trigger of public\.account is disabled, so that the change would leave no"
    ):
        pg.audit.revert(entry)
    assert db.execute("select balance, note from account").fetchall() == [(7, "b")]


def test_what_the_table_computes_is_not_undone(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("alter table account add twice integer generated always as (balance * 2) stored")
    pg.audit.track(account, exclude=["balance"])
    db.execute("update account set balance = 7")
    with pytest.raises(CannotRevert, match="nothing but what the table computes"):
        pg.audit.revert(last(pg))


def test_virtual_columns_are_neither_told_nor_in_the_way(pg: PgEverything, db: Database, account: str) -> None:
    if db.info.server_version < 180000:
        pytest.skip("virtual generated columns are new in PostgreSQL 18")
    db.execute("alter table account add twice integer generated always as (balance * 2) virtual")
    pg.audit.track(account)
    db.execute("insert into account (id, balance) values (2, 1)")
    entry, at = last(pg), now(db)
    db.execute("update account set balance = 2 where id = 2")
    assert pg.audit.as_of(account, at, key=2) == [{"id": 2, "balance": 1, "note": None}]
    pg.audit.revert(last(pg))
    assert pg.audit.revert(entry).action == "delete"


@pytest.mark.parametrize("bulk", [False, True], ids=["by-row", "bulk"])
def test_keys_of_types_from_extensions(pg: PgEverything, db: Database, account: str, bulk: bool) -> None:
    if not db.execute("select from pg_available_extensions where name = 'ltree'").fetchall():
        pytest.skip("this server has no ltree")
    db.execute("create extension ltree; drop table account; create table account (id ltree, n integer, v integer,"
               " primary key (id, n))")  # fmt: skip
    pg.audit.track(account, bulk=bulk)
    db.execute("insert into account values ('a.b', 1, 1), ('a.c', 1, 1); update account set v = 2 where id = 'a.b'")
    pg.audit.revert(last(pg))
    assert pg.audit.as_of(account, now(db), key=["a.b", 1]) == [{"id": "a.b", "n": 1, "v": 1}]


def test_masks_hold_in_a_dump_that_is_restored(pg: PgEverything, db: Database, account: str) -> None:
    """There a table that had lost a column gets its columns in other places."""
    db.execute("drop table account; create table account (gone integer, id integer primary key, ssn text, note text)")
    db.execute("alter table account drop gone")
    pg.audit.track(account, mask=["ssn"])
    rows = db.execute("select pg_get_triggerdef(oid) from pg_trigger where tgrelid = 'account'::regclass").fetchall()
    db.execute("drop table account; create table account (id integer primary key, ssn text, note text)")
    for (definition,) in rows:
        db.execute(definition.encode())

    db.execute("insert into account values (1, 'secret', 'a'); update account set ssn = 'secret 2', note = 'b'")
    db.execute("delete from account; insert into account values (2, 'secret 3', 'c'); truncate account")

    entries = [entry for entry in pg.audit.history(account) if entry.key is not None]
    assert [(entry.action, entry.key) for entry in entries] == [
        ("insert", 1), ("update", 1), ("delete", 1), ("insert", 2), ("truncate", 2)]  # fmt: skip
    assert all("ssn" in entry.masked for entry in entries)
    assert "secret" not in str(entries)
    assert any("restored from a dump" in each for table in pg.audit.tracked() for each in table.drift)
