"""The audit trail, on every carrier and for every way to change a table."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import ConfigurationError, InvalidArgument, PgEverything

from .trail import now, told

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]

pytestmark = pytest.mark.usefixtures("_nothing_left")


# Track ----------------------------------------------------------------------------------------------------------------


def test_every_change_of_a_row_has_an_entry(on: Face, db: Database, account: str) -> None:
    tracked = on.audit.track("account", exclude=["changed", "ssn", "email"])
    on.commit()
    assert (tracked.table, tracked.subject, tracked.key) == (account, account, ("id",))
    assert (tracked.exclude, tracked.mask, tracked.require_actor, tracked.drift) == (
        ("ssn", "email", "changed"),
        (),
        False,
        (),
    )
    assert on.audit.tracked() == [tracked]

    db.execute("insert into account (id, owner, balance) values (1, 'ada', 10), (2, 'bob', 20)")
    db.execute("update account set balance = balance + 1 where id = 1")
    db.execute("update account set balance = balance, changed = now()")
    db.execute("delete from account where id = 2")

    assert told(on, "account") == [
        ("insert", 1, None, {"id": 1, "owner": "ada", "balance": 10.0}),
        ("insert", 2, None, {"id": 2, "owner": "bob", "balance": 20.0}),
        ("update", 1, {"balance": 10.0}, {"balance": 11.0}),
        ("delete", 2, {"id": 2, "owner": "bob", "balance": 20.0}, None),
    ]
    assert [entry[0] for entry in told(on, "public.account", 1)] == ["insert", "update"]
    assert on.audit.untrack("account")
    on.commit()
    db.execute("insert into account (id) values (3)")
    assert len(told(on, "account")) == 4
    assert not on.audit.untrack("account")
    assert on.audit.tracked() == []


def test_an_entry_says_who_why_when_and_with_what_else(tx: Face, pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    before = now(db)
    tx.audit.context(actor="ada", reason="checkout", ip="10.0.0.1")
    tx.execute("insert into account (id) values (1)")
    tx.audit.context(reason="correction", request=7)
    tx.execute("update account set owner = 'bob'")
    recorded = tx.audit.record("login", "user:7", {"ok": True})
    tx.commit()
    tx.execute("update account set owner = 'eve'")
    tx.commit()

    _, first, second, third, fourth = pg.audit.history()
    assert (first.actor, first.reason, first.context) == ("ada", "checkout", {"ip": "10.0.0.1"})
    assert (second.actor, second.reason, second.context) == ("ada", "correction", {"ip": "10.0.0.1", "request": 7})
    assert third == recorded
    assert (third.action, third.subject, third.key, third.new) == ("login", "user:7", None, {"ok": True})
    assert first.transaction_id == second.transaction_id == third.transaction_id != fourth.transaction_id
    assert (fourth.actor, fourth.reason, fourth.context) == (None, None, {})  # it ended with the transaction
    assert before < first.at < second.at < third.at < fourth.at < now(db)
    assert first.session_role == first.role == db.execute("select session_user").fetchall()[0][0]


def test_a_savepoint_takes_entries_and_context_back(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    with pg.transaction() as tx:
        tx.audit.context(actor="ada")
        tx.connection.execute("savepoint s")
        tx.audit.context(actor="eve", reason="none")
        tx.connection.execute("insert into account (id) values (1)")
        tx.connection.execute("rollback to s")
        tx.connection.execute("insert into account (id) values (2)")
    (entry,) = pg.audit.history("account", action="insert")
    assert (entry.key, entry.actor, entry.reason) == (2, "ada", None)


def test_context_needs_a_transaction(pg: PgEverything, url: str, db: Database) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        with pytest.raises(ConfigurationError, match="needs an open transaction"):
            pg.on(connection).audit.context(actor="ada")
        with connection.transaction():
            pg.on(connection).audit.context(actor="ada")


def test_a_transaction_that_is_rolled_back_leaves_nothing(
    tx: Face, pg: PgEverything, db: Database, account: str
) -> None:
    pg.audit.track("account")
    tx.execute("insert into account (id) values (1)")
    tx.audit.record("login", "user:7")
    tx.rollback()
    assert told(pg) == []


def test_masked_values_never_reach_the_trail(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account", mask=["ssn"], exclude=["email"])
    db.execute("insert into account (id, owner, ssn, email) values (1, 'ada', 'secret 1', 'secret 2')")
    db.execute("update account set ssn = 'secret 3', owner = 'bob'")
    db.execute("update account set ssn = 'secret 4'")
    db.execute("update account set email = 'secret 5'")
    db.execute("alter table account rename ssn to number; alter table account add ssn text")
    db.execute("update account set number = 'secret 6', id = 2")
    db.execute("update account set id = 3")
    db.execute("delete from account")
    entries = [entry for entry in pg.audit.history("account") if entry.action != "track"]
    assert [(entry.action, entry.masked) for entry in entries] == [
        ("insert", ("ssn",)),
        ("update", ("ssn",)),
        ("update", ("ssn",)),
        ("update", ("number",)),
        ("update", ("number",)),
        ("update", ()),
        ("update", ()),
        ("delete", ("number", "ssn")),  # which has the name that was masked: rather too much than too little
    ]
    (dumped,) = db.execute("select string_agg(e::text, '') from pgeverything.audit_entries e").fetchone() or ("",)
    assert "secret" not in dumped
    assert "masked column ssn is called number now, and is masked as before" in pg.audit.tracked()[0].drift[0]


def test_an_update_of_the_key_is_in_the_history_of_both(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    db.execute("insert into account (id, owner) values (1, 'ada'), (2, 'bob')")
    db.execute("update account set id = id + 10, owner = upper(owner)")
    for old, new, owner in ((1, 11, "ADA"), (2, 12, "BOB")):
        left = list(pg.audit.history("account", old))[-1]
        came = list(pg.audit.history("account", new))[-1]
        assert (left.action, left.key, left.other_key, left.new) == ("update", old, new, None)
        assert (came.action, came.key, came.other_key, came.old) == ("update", new, old, None)
        assert (left.old["owner"], came.new["owner"]) == (owner.lower(), owner)
        assert left.transaction_id == came.transaction_id


def test_changes_without_an_actor_are_refused_where_one_is_required(
    pg: PgEverything, db: Database, account: str
) -> None:
    db.execute("insert into account (id) values (1)")
    pg.audit.track("account", require_actor=True)
    for change in (
        "insert into account (id) values (2)",
        "update account set owner = 'x'",
        "delete from account",
        "truncate account",
    ):
        with pytest.raises(psycopg.DatabaseError, match=r"of public.account needs an actor") as refused:
            db.execute(change)
        assert refused.value.sqlstate == "PGE20"
    with pg.transaction() as tx:
        tx.audit.context(actor="ada")
        tx.connection.execute("update account set owner = 'x'")
    assert [entry.actor for entry in pg.audit.history("account", 1)] == ["ada"]
    with db.transaction():
        db.execute("select set_config('pgeverything_audit.actor', 'psql', true)")
        db.execute("truncate account")
    assert [entry.actor for entry in pg.audit.history("account", action="truncate")] == ["psql", "psql"]


def test_copy_and_raw_sql_are_caught(pg: PgEverything, db: Database, account: str) -> None:
    pg.audit.track("account")
    with db.cursor().copy("copy account (id, owner) from stdin") as copy:
        for n in range(1, 4):
            copy.write_row((n, f"owner {n}"))
    db.execute("insert into account (id, owner) values (3, 'x') on conflict (id) do update set owner = excluded.owner")
    db.execute("insert into account (id, owner) values (3, 'y') on conflict do nothing")
    db.execute(
        "with gone as (delete from account where id = 1 returning *) update account set owner = 'z' where id = 2"
    )
    actions = sorted((action, key) for action, key, _, _ in told(pg, "account"))
    assert actions == [("delete", 1), ("insert", 1), ("insert", 2), ("insert", 3), ("update", 2), ("update", 3)]


def test_truncate_tells_every_row(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("insert into account (id, owner, ssn, email) select n, 'o', 's', 'e' from generate_series(1, 3) n")
    pg.audit.track("account", mask=["ssn"], personal=["email"], exclude=["changed"])
    before = now(db)
    db.execute("truncate account")
    *rows, statement = pg.audit.history("account", action="truncate")
    assert [(entry.key, entry.new, entry.masked) for entry in rows] == [(n, None, ("ssn",)) for n in (1, 2, 3)]
    assert rows[0].old == {"id": 1, "owner": "o", "balance": None, "email": "e"}
    assert (statement.key, statement.new) == (None, {"table": "public.account", "rows": 3})
    assert sorted(row["id"] for row in pg.audit.as_of("account", before)) == [1, 2, 3]
    db.execute("truncate account")
    assert list(pg.audit.history("account", action="truncate"))[-1].new["rows"] == 0


def test_names_that_need_quotes_and_composite_keys(pg: PgEverything, db: Database) -> None:
    db.execute('create schema "Odd.Schema"')
    db.execute(
        """create table "Odd.Schema"."T ""x"" y" ("A" integer, "b 1" text, "c'%s" jsonb, "m\\n" text,
        primary key ("b 1", "A"))"""
    )
    name = '"Odd.Schema"."T ""x"" y"'
    try:
        tracked = pg.audit.track(name, mask=["m\\n"])
        assert (tracked.table, tracked.key, tracked.mask) == (name, ("b 1", "A"), ("m\\n",))
        db.execute(f"""insert into {name} values (1, 'k"1', '{{"x": [1, null]}}', 'secret')""")
        db.execute(f"""update {name} set "c'%s" = null""")
        history = [["insert", ['k"1', 1]], ["update", ['k"1', 1]]]
        for key in (['k"1', 1], ('k"1', 1), {"A": 1, "b 1": 'k"1'}):
            assert [[entry.action, entry.key] for entry in pg.audit.history(name, key)] == history
        (row,) = pg.audit.as_of(name, now(db), key=['k"1', 1])
        assert row == {"A": 1, "b 1": 'k"1', "c'%s": None}
        update = list(pg.audit.history(name))[-1]
        assert pg.audit.revert(update.id).new == {"c'%s": {"x": [1, None]}}
    finally:
        db.execute('drop schema "Odd.Schema" cascade')


TYPES = """
create type mood as enum ('sad', 'glad');
create type pair as (a integer, b text);
create table typed (
  id uuid primary key, b bytea, i integer[], t text[], j json, jb jsonb, n numeric, f double precision, ts timestamp,
  tz timestamptz, d date, iv interval, m mood, p pair, r daterange, ip inet, bits bit varying, big bigint, c char(5),
  yes boolean, g integer generated always as (1 + 1) stored, ident bigint generated always as identity
);
"""


def test_values_of_every_type_come_back(pg: PgEverything, db: Database) -> None:
    db.execute(TYPES)
    try:
        pg.audit.track("typed")
        db.execute(
            """insert into typed values (
              '9d5ee2dc-33a0-4b0f-9bd2-6f0a6c0e2f41', '\\xdeadbeef00', '{1,null,3}', '{"a,b",NULL,"\\"q"}',
              '{"a": 1.50}', '{"a": [1e3]}', 'NaN', 'Infinity', '2026-01-02 03:04:05.678901', '2026-03-29 01:30:00+00',
              '4713-01-01 BC',
              '1 mon -2 days 03:04:05.6', 'glad', '(1,"x y")', '[2026-01-01,)', '10.0.0.0/8',
              b'1010', 9223372036854775807, 'ab', true)
            """
        )
        copy = db.execute("select to_jsonb(t.*)::text from typed t").fetchall()
        before = now(db)
        db.execute("set timezone = 'Asia/Tokyo'; set datestyle = 'German'; set bytea_output = 'escape'")
        db.execute("set intervalstyle = 'iso_8601'; set extra_float_digits = 0")
        db.execute(
            "update typed set b = '\\x00', i = null, t = '{}', j = '[]', jb = null, n = 1e-30,"
            " f = 0.1, ts = now(), tz = now()"
        )
        db.execute(
            "update typed set d = 'infinity', iv = '1 day', m = 'sad', p = null, r = 'empty',"
            " ip = '::1', bits = b'', big = -1"
        )
        db.execute("delete from typed")
        db.execute("reset all")
        assert pg.audit.as_of("typed", before) == [json.loads(text) for (text,) in copy]
        entries = [entry for entry in pg.audit.history("typed") if entry.action != "track"]
        assert [entry.action for entry in entries] == ["insert", "update", "update", "delete"]
        for entry in reversed(entries[1:]):
            pg.audit.revert(entry.id)
        assert db.execute("select to_jsonb(t.*)::text from typed t").fetchall() == copy
    finally:
        db.execute("drop table typed; drop type mood; drop type pair")


def test_numbers_are_exact(pg: PgEverything, db: Database, account: str) -> None:
    db.execute("alter table account alter balance type numeric")
    pg.audit.track("account")
    db.execute(
        "insert into account (id, balance) values (1, 12345678901234567.89), (2, 1.10), (3, 12345678901234567890)"
    )
    balances = [entry.new["balance"] for entry in pg.audit.history("account", action="insert")]
    assert balances == [Decimal("12345678901234567.89"), 1.1, 12345678901234567890]


# Bulk -----------------------------------------------------------------------------------------------------------------


def test_statements_of_many_rows_have_the_same_entries(pg: PgEverything, db: Database, account: str) -> None:
    def changes() -> list[tuple[Any, ...]]:
        db.execute("insert into account (id, owner, balance) select n, 'o', n from generate_series(1, 6) n")
        with db.cursor().copy("copy account (id, owner) from stdin") as copy:
            copy.write_row((7, "c"))
        db.execute("update account set balance = 2 where id <= 2")  # the second one has it
        db.execute("update account set balance = balance, changed = now()")
        db.execute("update account set id = id + 10, owner = 'p' where id in (3, 4)")
        db.execute(
            "insert into account (id, owner) values (1, 'x'), (8, 'y')"
            " on conflict (id) do update set owner = excluded.owner"
        )
        db.execute("delete from account where id > 5")
        db.execute("update account set owner = 'z' where false")
        db.execute("truncate account")
        entries = [entry for entry in pg.audit.history("account") if entry.action not in ("track", "untrack")]
        told = [(e.action, e.key, e.other_key, e.old, e.new) for e in entries]
        db.execute("delete from pgeverything.audit_entries")
        return sorted(told, key=repr)

    pg.audit.track("account", exclude=["changed", "ssn"])
    by_row = changes()
    assert pg.audit.track("account", exclude=["changed", "ssn"], bulk=True).bulk
    assert changes() == by_row
    db.execute("alter table account drop owner; alter table account add phone text")
    db.execute("insert into account (id, phone) values (1, 'p'); update account set phone = 'q'")
    assert told(pg, "account", 1)[-1] == ("update", 1, {"phone": "p"}, {"phone": "q"})
    pg.audit.track("account", bulk=True, require_actor=True)
    with pytest.raises(psycopg.DatabaseError, match=r"of public.account needs an actor"):
        db.execute("delete from account")
    db.execute("update account set phone = 'r' where false")
    assert pg.audit.tracked()[0].drift == ()
    db.execute('drop trigger "00_pgeverything_audit_delete" on account')
    assert pg.audit.tracked()[0].drift == ("a trigger is missing or disabled: changes have no entries; track it again",)
    for options in ({"mask": ["ssn"]}, {"personal": ["email"]}):
        with pytest.raises(InvalidArgument, match="cannot be tracked in bulk"):
            pg.audit.track("account", bulk=True, **options)  # type: ignore[arg-type]
