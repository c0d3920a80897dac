"""The seal: what was changed behind the trail's back is named, and what is sealed is final."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgeverything import PgEverything
from pgeverything.audit import Verification
from pgeverything.audit.seal import merkle_root

Database = psycopg.Connection[Any]

COLUMNS = ("id", "at", "transaction_id", "action", "subject", "key", "other_key", "old", "new", "masked", "digests",
           "actor", "reason", "context", "session_role", "role", "personal")  # fmt: skip


@pytest.fixture
def sealed(pg: PgEverything, db: Database) -> Iterator[list[int]]:
    """Three blocks of entries; the ids of the changes of rows."""
    db.execute(
        "update pgeverything.audit_sealing set horizon = 0, pending_id = null, pending_xid = null, dropped = null"
    )
    db.execute("drop table if exists account")
    db.execute("create table account (id integer primary key, owner text, ssn text, email text)")
    pg.audit.track("account", mask=["ssn"], personal=["email"])
    for block in range(3):
        with pg.transaction() as tx:
            tx.audit.context(actor="ada", reason="because", ip="::1")
            execute = tx.connection.execute
            execute(
                "insert into account select %s + n, 'o', 's', 'e@' || n from generate_series(1, 20) n", [block * 100]
            )
            execute("update account set owner = 'p', ssn = 't', email = 'f' where id % 2 = 0")
            execute("update account set id = id + 50 where id % 100 = 7")
            execute("delete from account where id % 100 = 8")
        assert pg.audit.seal() == 1
    assert pg.audit.verify().ok
    yield [entry.id for entry in pg.audit.history("account") if entry.key is not None]
    db.execute("drop table account")


def block_of(db: Database, id_: int) -> int:
    found = "select min(number) from pgeverything.audit_blocks where last_id >= %s"
    return int(db.execute(found, [id_]).fetchall()[0][0])


def test_what_is_sealed_is_right(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    found = pg.audit.verify()
    assert found == Verification(ok=True, blocks=3, entries=found.entries, unsealed=0)
    assert found.entries == db.execute("select count(*) from pgeverything.audit_entries").fetchall()[0][0]
    pg.audit.record("login", "x")
    assert pg.audit.verify().unsealed == 1
    assert pg.audit.seal() == 1
    assert pg.audit.seal() == 0
    assert pg.audit.verify(root=pg.audit.export_root()).ok


@pytest.mark.parametrize("column", COLUMNS)
def test_a_byte_that_was_changed_is_found(pg: PgEverything, db: Database, sealed: list[int], column: str) -> None:
    """In any entry, in any column that has a value, and where there was none."""
    changes = {
        "id": "id + 1000000",
        "at": "at + interval '1 microsecond'",
        "transaction_id": "transaction_id + 1",
        "old": "coalesce(old, '{}') || '{\"x\": 1}'",
        "new": "coalesce(new, '{}') || '{\"x\": 1}'",
        "context": "coalesce(context, '{}') || '{\"x\": 1}'",
        "digests": "coalesce(digests, '{}') || '{\"x\": {}}'",
        "masked": "array_append(masked, 'x')",
        "personal": "jsonb_set(personal, '{salt}', '\"x\"')",
    }
    for id_ in random.Random(column).sample(sealed, 6):
        change = changes.get(column, f"coalesce({column}, '') || 'x'")
        where = f"where id = {id_} and {column} is not null" if column == "personal" else f"where id = {id_}"
        with db.transaction(force_rollback=True):
            touched = db.execute(f"update pgeverything.audit_entries set {column} = {change} {where}".encode()).rowcount
            found = pg_on(db, pg)
            if touched:
                assert (found.ok, found.entry) == (False, id_), found
                assert column == "id" or found.block == block_of(db, id_)
    assert pg.audit.verify().ok


def pg_on(db: Database, pg: PgEverything) -> Verification:
    """Verify inside the transaction that has tampered."""
    from pgeverything.audit.seal import verify
    from pgeverything.engine.carriers import PsycopgCarrier
    from pgeverything.engine.plan import drive

    return drive(PsycopgCarrier(db, "pgeverything"), verify())


def test_an_entry_that_is_gone_is_named(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    for id_ in (sealed[0], sealed[30], sealed[-1]):
        with db.transaction(force_rollback=True):
            db.execute("delete from pgeverything.audit_entries where id = %s", [id_])
            found = pg_on(db, pg)
            assert (found.ok, found.block, found.entry) == (False, block_of(db, id_), id_)
            assert "gone" in (found.problem or "")


def test_an_entry_that_was_added_is_named(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    copy = ", ".join(column for column in COLUMNS if column != "id")
    for id_ in (sealed[0], sealed[40]):
        with db.transaction(force_rollback=True):
            db.execute("delete from pgeverything.audit_entries where id = %s", [id_ + 1])
            db.execute(
                f"insert into pgeverything.audit_entries (id, {copy}) select {id_ + 1}, {copy}"
                f" from pgeverything.audit_entries where id = {id_}".encode()
            )
            found = pg_on(db, pg)
            assert (found.ok, found.block, found.entry) == (False, block_of(db, id_), id_ + 1)
        with db.transaction(force_rollback=True):  # twice the same
            db.execute(
                f"insert into pgeverything.audit_entries (id, {copy}) select {id_}, {copy}"
                f" from pgeverything.audit_entries where id = {id_}".encode()
            )
            found = pg_on(db, pg)
            assert (found.ok, found.block) == (False, block_of(db, id_))
            assert found.entry == id_


def test_two_entries_that_have_changed_places_are_named(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    one, two = sealed[10], sealed[12]
    with db.transaction(force_rollback=True):
        db.execute("update pgeverything.audit_entries set id = %s - id where id in (%s, %s)", [one + two, one, two])
        found = pg_on(db, pg)
        assert (found.ok, found.block, found.entry) == (False, block_of(db, one), one)


@pytest.mark.parametrize(
    ("tampering", "block"),
    [
        ("update pgeverything.audit_blocks set root = sha256('x') where number = 2", 2),
        ("update pgeverything.audit_blocks set hash = sha256('x') where number = 2", 2),
        ("update pgeverything.audit_blocks set entries = entries + 1 where number = 2", 2),
        ("update pgeverything.audit_blocks set month = month - 31 where number = 2", 2),
        ("update pgeverything.audit_blocks set leaves = leaves || sha256('x') where number = 2", 2),
        ("update pgeverything.audit_blocks set leaves = null where number = 3", 3),
        ("update pgeverything.audit_blocks set last_id = last_id - 1 where number = 1", 1),
        ("delete from pgeverything.audit_blocks where number = 2", 2),
        ("delete from pgeverything.audit_blocks where number = 1", 1),
    ],
)
def test_a_block_that_was_changed_is_named(
    pg: PgEverything, db: Database, sealed: list[int], tampering: str, block: int
) -> None:
    with db.transaction(force_rollback=True):
        db.execute(tampering.encode())
        found = pg_on(db, pg)
        assert (found.ok, found.block, found.entry) == (False, block, None)


def test_who_makes_the_whole_chain_anew_is_found_by_a_root_from_elsewhere(
    pg: PgEverything, db: Database, sealed: list[int]
) -> None:
    root = pg.audit.export_root()
    assert root is not None
    db.execute("update pgeverything.audit_entries set actor = 'eve' where id = %s", [sealed[5]])
    db.execute("delete from pgeverything.audit_blocks")
    pg.audit.seal()
    assert pg.audit.verify().ok
    found = pg.audit.verify(root=root)
    assert (found.ok, found.problem) == (False, "the chain ends before block 3")
    db.execute("delete from pgeverything.audit_blocks")
    db.execute("select * from pgeverything.audit_chain(1000000, 3, 40)")
    found = pg.audit.verify(root=str(root))
    assert (found.ok, found.block, found.problem) == (False, 3, "it is not the block whose root was exported")


def test_personal_values_can_be_erased_and_the_seal_holds(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    entries = list(pg.audit.history("account", 2))
    assert [entry.new["email"] for entry in entries][:2] == ["e@2", "f"]
    assert pg.audit.erase("account", 2) == len(entries)
    assert pg.audit.erase("account", 2) == 0
    found = pg.audit.verify()
    assert (found.ok, found.erased, found.unsealed) == (True, len(entries), 1)
    erased = list(pg.audit.history("account", 2))
    assert [entry.erased for entry in erased] == [("email",)] * len(entries)
    assert [entry.new.get("owner") for entry in erased] == [entry.new.get("owner") for entry in entries]
    (dumped,) = db.execute(
        "select string_agg(e::text, '') from pgeverything.audit_entries e where key = '[2]'"
    ).fetchall()
    assert "e@2" not in dumped[0]
    pg.audit.seal()
    assert pg.audit.verify().ok
    # The salted hash is of no use without the salt: not even who knows the value can tell.
    assert hashlib.sha256(b'"e@2"').hexdigest() not in dumped[0]


def test_personal_values_that_are_gone_without_an_erasure_are_named(
    pg: PgEverything, db: Database, sealed: list[int]
) -> None:
    with db.transaction(force_rollback=True):
        db.execute("update pgeverything.audit_entries set personal = null where id = %s", [sealed[3]])
        found = pg_on(db, pg)
        assert (found.ok, found.block, found.entry) == (False, 1, sealed[3])
        assert "no entry says that they were erased" in (found.problem or "")
    for value in ("x", None):
        with db.transaction(force_rollback=True):
            change = "update pgeverything.audit_entries set personal = jsonb_set(personal, '{new,email}', %s)"
            change += " where id = %s"
            db.execute(change.encode(), [Jsonb(value), sealed[3]])
            found = pg_on(db, pg)
            assert (found.ok, found.entry, found.problem) == (False, sealed[3], "its personal values were changed")


def test_roots_of_any_number_of_entries_are_the_same_in_sql(db: Database) -> None:
    for count in (*range(1, 18), 100, 257):
        leaves = [hashlib.sha256(str(n).encode()).digest() for n in range(count)]
        found = db.execute("select pgeverything.audit_root(%s)", [b"".join(leaves)]).fetchall()[0][0]
        assert found == merkle_root(leaves)


def test_blocks_are_of_one_month_and_of_bounded_size(pg: PgEverything, db: Database, sealed: list[int]) -> None:
    with db.transaction(force_rollback=True):
        db.execute("delete from pgeverything.audit_blocks")
        middle, last = sealed[30], sealed[-1]
        db.execute("update pgeverything.audit_entries set at = at - interval '40 days' where id <= %s", [middle])
        blocks, more = db.execute("select * from pgeverything.audit_chain(%s, 100, 7)", [last]).fetchall()[0]
        assert not more
        rows = db.execute("select month, entries, last_id from pgeverything.audit_blocks order by number").fetchall()
        assert len(rows) == blocks
        assert {month for month, _, last_id in rows if last_id <= middle}.isdisjoint(
            month for month, _, last_id in rows if last_id > middle
        )
        assert all(entries <= 7 for _, entries, _ in rows)
        assert pg_on(db, pg).ok
