"""Months of entries come and go; what stays can still be verified."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

from pgeverything import AuditGap, PgEverything
from pgeverything.audit import retention
from pgeverything.engine.plan import drive

Database = psycopg.Connection[Any]
MONTHS = [datetime(2026, month, 15, tzinfo=UTC) for month in (1, 2, 3)]


@pytest.fixture
def old(pg: PgEverything, db: Database) -> list[int]:
    """Sealed entries of three months that are over, and of this one; the ids of the first of each."""
    db.execute(
        "update pgeverything.audit_sealing set horizon = 0, pending_id = null, pending_xid = null, dropped = null"
    )
    db.execute("drop table if exists account; create table account (id integer primary key, owner text)")
    pg.audit.track("account")
    firsts = []
    for at in MONTHS:
        with pg.transaction() as tx:
            tx.connection.execute(
                "insert into account select %s * 100 + n, 'o' from generate_series(1, 10) n", [at.month]
            )
        ids = [entry.id for entry in pg.audit.history("account", action="insert", newest_first=True, limit=10)]
        db.execute("update pgeverything.audit_entries set at = %s where id = any (%s)", [at, ids])
        firsts.append(min(ids))
    db.execute("update pgeverything.audit_entries set at = %s where action = 'track'", [MONTHS[0] - timedelta(days=1)])
    return [*firsts, pg.audit.record("login", "x").id]


def partitions(db: Database) -> set[str]:
    rows = db.execute("select relid::regclass::text from pg_partition_tree('pgeverything.audit_entries') where isleaf")
    return {name.removeprefix("pgeverything.audit_entries_") for (name,) in rows}


def test_workers_create_the_partitions_of_months_ahead(pg: PgEverything, db: Database) -> None:
    now = datetime.now(UTC)
    ahead = {f"{now.year + (now.month - 1 + n) // 12}{(now.month - 1 + n) % 12 + 1:02}" for n in range(4)}
    assert ahead | {"default"} <= partitions(db)
    last = max(ahead)
    db.execute(f"drop table pgeverything.audit_entries_{last}".encode())
    drive(pg._database.carrier(), retention.tend())
    assert last in partitions(db)


def test_entries_without_a_partition_of_their_own_get_one(pg: PgEverything, db: Database, old: list[int]) -> None:
    assert db.execute("select count(*) from only pgeverything.audit_entries_default").fetchall() == [(31,)]
    assert {"202601", "202602", "202603"}.isdisjoint(partitions(db))
    drive(pg._database.carrier(), retention.tend())
    assert db.execute("select count(*) from only pgeverything.audit_entries_default").fetchall() == [(0,)]
    assert {"202601", "202602", "202603"} <= partitions(db)
    assert pg.audit.seal() == 0  # it has sealed them, too
    found = pg.audit.verify()
    assert (found.ok, found.entries) == (True, 32)
    pg.audit.drop_before(datetime(2026, 4, 1, tzinfo=UTC))


@pytest.mark.parametrize("partitioned", [True, False])
def test_months_are_dropped_and_their_roots_stay(
    pg: PgEverything, db: Database, old: list[int], partitioned: bool
) -> None:
    pg.audit.seal()
    if partitioned:
        drive(pg._database.carrier(), retention.tend())
    root = pg.audit.export_root()
    assert pg.audit.drop_before(datetime(2026, 1, 31, tzinfo=UTC)) is None  # it has not ended then
    assert pg.audit.drop_before(datetime(2026, 3, 1, tzinfo=UTC)) == date(2026, 3, 1)

    kept = [entry.id for entry in pg.audit.history()]
    assert kept[0] == old[2]
    assert {"202601", "202602"}.isdisjoint(partitions(db))
    found = pg.audit.verify(root=root)
    assert (found.ok, found.dropped) == (True, 21)
    last = list(pg.audit.history())[-1]
    assert (last.action, last.new) == ("drop", {"before": "2026-03-01"})
    assert pg.audit.drop_before(datetime(2026, 3, 1, tzinfo=UTC)) == date(2026, 3, 1)
    with pytest.raises(AuditGap, match="entries before 2026-03-01 00:00:00"):
        pg.audit.as_of("account", datetime(2026, 2, 20, tzinfo=UTC))
    assert len(pg.audit.as_of("account", datetime(2026, 3, 14, tzinfo=UTC))) == 20

    with db.transaction(force_rollback=True):  # what is left is as well protected as before
        db.execute("delete from pgeverything.audit_entries where id = %s", [old[2] + 3])
        found = verified(db)
        assert (found.ok, found.entry, found.problem) == (False, old[2] + 3, "it is gone")
    with db.transaction(force_rollback=True):  # and nobody adds to what was dropped
        db.execute(
            "insert into pgeverything.audit_entries (id, at, transaction_id, action, subject, session_role, role)"
            " values (%s, now(), 1, 'login', 'x', 'r', 'r')",
            [old[1]],
        )
        found = verified(db)
        assert (found.ok, found.entry) == (False, old[1])
    with db.transaction(force_rollback=True):
        db.execute("update pgeverything.audit_blocks set root = sha256('x') where number = 1")
        assert (verified(db).ok, verified(db).block) == (False, 1)


def verified(db: Database) -> Any:
    from pgeverything.audit.seal import verify
    from pgeverything.engine.carriers import PsycopgCarrier

    return drive(PsycopgCarrier(db, "pgeverything"), verify())


def test_months_that_are_gone_without_being_dropped_are_named(pg: PgEverything, db: Database, old: list[int]) -> None:
    pg.audit.seal()
    with db.transaction(force_rollback=True):
        db.execute("delete from pgeverything.audit_entries where at < '2026-03-01'")
        db.execute("update pgeverything.audit_sealing set dropped = '2026-03-01'")
        found = verified(db)
        assert not found.ok
        assert found.problem == "months before 2026-03-01 are gone, and no entry says that they were dropped"


def test_what_is_not_sealed_is_not_dropped(url: str, pg: PgEverything, db: Database, old: list[int]) -> None:
    with psycopg.connect(url) as open_one:
        open_one.execute("insert into account values (1000)")
        assert pg.audit.drop_before(datetime(2026, 4, 1, tzinfo=UTC)) is None
        open_one.commit()
    assert pg.audit.drop_before(datetime(2026, 4, 1, tzinfo=UTC)) == date(2026, 4, 1)
    assert pg.audit.verify().ok


def test_a_reader_holds_up_nobody_but_the_drop(url: str, pg: PgEverything, db: Database, old: list[int]) -> None:
    drive(pg._database.carrier(), retention.tend())
    pg.audit.seal()
    with psycopg.connect(url) as reader:
        reader.execute("select count(*) from pgeverything.audit_entries")
        assert pg.audit.drop_before(datetime(2026, 4, 1, tzinfo=UTC)) is None
        db.execute("update account set owner = 'p' where id = 101")
    assert pg.audit.drop_before(datetime(2026, 4, 1, tzinfo=UTC)) == date(2026, 4, 1)


def test_what_an_open_transaction_has_written_is_not_dropped_around(
    pg: PgEverything, db: Database, old: list[int], url: str
) -> None:
    assert pg.audit.seal() > 0
    with psycopg.connect(url) as open_one:  # since January, and its entry had no partition
        open_one.execute(
            "insert into pgeverything.audit_entries (id, at, transaction_id, action, subject, session_role, role)"
            " values (nextval('pgeverything.audit_seq'), %s, pg_current_xact_id()::text::bigint, 'login', 'x', 'a',"
            " 'a')",
            [MONTHS[0]],
        )
        assert pg.audit.drop_before(MONTHS[1]) is None
    assert pg.audit.drop_before(MONTHS[1]) == date(2026, 2, 1)
    pg.audit.seal()
    assert pg.audit.verify().ok
