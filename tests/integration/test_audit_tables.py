"""The audit trail of partitioned tables, and what cannot be tracked or asked for."""

from __future__ import annotations

import re
from datetime import datetime
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import InvalidArgument, PgEverything

from .trail import now, told

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]

pytestmark = pytest.mark.usefixtures("_nothing_left")


# Partitions -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def parts(_nothing_left: None, db: Database) -> str:
    db.execute(
        "create table parts (note text, secret text, id integer primary key) partition by range (id);"
        "create table parts_1 partition of parts for values from (0) to (10);"
        "create table parts_2 (id integer primary key, gone text, secret text, note text);"
        "alter table parts_2 drop gone; alter table parts attach partition parts_2 for values from (10) to (20)"
    )
    return "public.parts"


def test_partitions_of_a_table_are_tracked_with_it(pg: PgEverything, db: Database, parts: str) -> None:
    pg.audit.track("parts", mask=["secret"])
    db.execute("create table parts_3 partition of parts for values from (20) to (30)")
    db.execute("insert into parts (id, note, secret) values (1, 'a', 's'), (11, 'b', 's'), (21, 'c', 's')")
    db.execute("update parts_2 set note = 'by name', secret = 'x'")
    db.execute("update parts set id = 12 where id = 1")  # to another partition
    assert [(action, key) for action, key, _, _ in told(pg, "parts")] == [
        ("insert", 1),
        ("insert", 11),
        ("insert", 21),
        ("update", 11),
        ("delete", 1),
        ("insert", 12),
    ]
    assert {entry.masked for entry in pg.audit.history("parts") if entry.action != "track"} == {("secret",)}
    assert pg.audit.tracked()[0].drift == (
        "partitions were attached since: a TRUNCATE of one of them by name has no entry; track it again",
    )
    before = now(db)
    db.execute("truncate parts")
    assert sorted(e.key for e in pg.audit.history("parts", action="truncate") if e.key is not None) == [11, 12, 21]
    assert sorted(row["id"] for row in pg.audit.as_of("parts", before)) == [11, 12, 21]
    assert pg.audit.track("parts", mask=["secret"]).drift == ()
    db.execute("insert into parts (id) values (22); truncate parts_3")
    assert [e.key for e in pg.audit.history("parts", 22)] == [22, 22]
    assert pg.audit.untrack("parts")
    db.execute("insert into parts (id) values (5)")
    assert told(pg, "parts", 5) == []


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "options", "why"),
    [
        ("nothing", {}, "there is no such table here"),
        ("no key", {}, "must be a table's name as SQL has it"),
        ("keyless", {}, "public.keyless has no primary key, so its rows have no names. Add one"),
        ("seen", {}, "must be a table"),
        ("parts_1", {}, "public.parts_1 is a partition. Track the table that it is a part of"),
        ("pgeverything.jobs", {}, "is not a table of yours"),
        ("account", {"exclude": ["nix"]}, "public.account has no column nix"),
        ("account", {"mask": ["id"]}, "column id belongs to the key"),
        ("account", {"mask": ["ssn"], "exclude": ["ssn"]}, "column ssn can be one of excluded, masked and personal"),
        ("account", {"exclude": "ssn"}, "exclude='ssn' must be a list of names"),
    ],
)
def test_what_cannot_be_tracked_is_said(
    on: Face, db: Database, account: str, parts: str, table: str, options: dict[str, Any], why: str
) -> None:
    db.execute("create table keyless (a integer); create view seen as select 1 as one")
    with pytest.raises(InvalidArgument, match=re.escape(why)):
        on.audit.track(table, **options)


def test_bad_input_is_refused_before_any_sql() -> None:
    pg = PgEverything("postgresql://nobody@127.0.0.1:1/nowhere")
    when = datetime(2026, 1, 1)  # noqa: DTZ001
    with pytest.raises(InvalidArgument, match="action='update' is written by the trail itself"):
        pg.audit.record("update", "x")
    with pytest.raises(InvalidArgument, match="key= needs a table"):
        pg.audit.history(key=1)
    with pytest.raises(InvalidArgument, match="with a time zone"):
        pg.audit.history(since=when)
    with pytest.raises(InvalidArgument, match="with a time zone"):
        pg.audit.as_of("t", when)
    with pytest.raises(InvalidArgument, match="root='x' must be what export_root"):
        pg.audit.verify(root="x")
    with pytest.raises(InvalidArgument, match="must be the value of the primary key"):
        pg.audit.history("t", [])
