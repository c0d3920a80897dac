"""The grants of `docs/how-to/roles.md` keep the audit trail from those who are audited."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from pgeverything import AuditError, InvalidArgument, PgEverything

DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
def audited(direct_url: str, db: psycopg.Connection[object], roles: dict[str, str]) -> Iterator[str]:
    """A table of the tracker's, which the application may change and the schema's owner may not see."""
    tracker, app = roles["tracker"], roles["app"]
    db.execute(f"create schema shop authorization {tracker}".encode())
    with psycopg.connect(make_conninfo(direct_url, options=f"-c role={tracker}")) as connection:
        connection.execute("create table shop.account (id integer primary key, email text, balance integer)")
        connection.execute(f"grant usage on schema shop to {app}".encode())
        connection.execute(f"grant select, insert, update, delete, truncate on shop.account to {app}".encode())
        PgEverything(direct_url).on(connection).audit.track("shop.account", personal=["email"])
    yield "shop.account"
    db.execute("drop schema shop cascade")


def test_the_application_adds_to_the_trail_and_changes_nothing_of_it(
    app: PgEverything, audited: str, roles: dict[str, str], db: psycopg.Connection[object]
) -> None:
    with app.transaction() as tx:
        tx.audit.context(actor="ada")
        tx.connection.execute("insert into shop.account values (1, 'a@x', 10)")
        tx.connection.execute("update shop.account set balance = 20")
        tx.connection.execute("truncate shop.account")
        tx.audit.record("export", "shop.account")
    entries = [entry for entry in app.audit.history() if entry.action != "track"]
    actions = ["insert", "update", "truncate", "truncate", "export"]
    assert [(entry.action, entry.role, entry.actor) for entry in entries] == [
        (action, roles["app"], "ada") for action in actions
    ]
    assert {entry.session_role for entry in entries} == {db.info.user}
    assert app.audit.revert(entries[2].id).role == roles["app"]
    assert app.audit.seal() == 1
    assert app.audit.verify().ok
    partition = db.execute("select tableoid::regclass::text from pgeverything.audit_entries limit 1").fetchall()[0][0]
    for statement in (
        "insert into pgeverything.audit_entries select * from pgeverything.audit_entries",
        "update pgeverything.audit_entries set actor = 'eve'",
        "delete from pgeverything.audit_entries",
        "truncate pgeverything.audit_entries",
        f"delete from {partition}",
        f"insert into {partition} select * from {partition}",
        "delete from pgeverything.audit_blocks",
        "update pgeverything.audit_sealing set dropped = '2030-01-01'",
        "select pgeverything.audit_erase('shop.account', '[1]')",
        "select pgeverything.audit_drop('2030-01-01')",
        "select pgeverything.audit_note('untrack', 'shop.account', '{}')",
        "select pgeverything.audit_write('update', 'shop.account', '[1]', null, '{}', '{}')",
        (
            "create temp table mine (id integer primary key);"
            "create trigger t after insert on mine for each row"
            " execute function pgeverything.audit_row('shop.account', '', '{}', '{}', '{}', '{1}', 'id')"
        ),
    ):
        with app.transaction() as tx, pytest.raises(DENIED):
            tx.connection.execute(statement)
    with pytest.raises(AuditError, match="a table is tracked by its owner"):
        app.audit.untrack(audited)


def test_nobody_is_told_to_open_the_trail_for_an_application(app: PgEverything) -> None:
    check = app.doctor()["privileges"]
    assert (check.verdict, check.figures) == ("ok", {})


def test_the_tracker_tracks_on_a_connection_of_ours(direct_url: str, audited: str, roles: dict[str, str]) -> None:
    with PgEverything(make_conninfo(direct_url, options=f"-c role={roles['tracker']}")) as tracker:
        assert tracker.audit.track(audited, mask=["balance"]).mask == ("balance",)
        assert [each.table for each in tracker.audit.tracked()] == [audited]
        assert next(tracker.audit.history(audited)).action == "track"
        assert tracker.audit.untrack(audited)


def test_default_privileges_do_not_open_the_trail(
    app: PgEverything, db: psycopg.Connection[object], roles: dict[str, str]
) -> None:
    grantees = f"{roles['app']}, {roles['producer']}, public"
    change = "alter default privileges in schema pgeverything"
    db.execute(f"{change} grant all on tables to {grantees}".encode())
    try:
        with app.transaction() as tx:
            made = tx.connection.execute("select pgeverything.audit_partitions(8)").fetchall()
    finally:
        db.execute(f"{change} revoke all on tables from {grantees}".encode())
    opened = db.execute(
        "select p.relid::regclass::text from pg_partition_tree('pgeverything.audit_entries') p, unnest(%s::text[]) r"
        " where has_table_privilege(r, p.relid, 'insert, update, delete, truncate, references, trigger')"
        "    or (has_table_privilege(r, p.relid, 'select') and r = %s)",
        [[roles["app"], roles["producer"]], roles["producer"]],
    ).fetchall()
    assert made == [(5,)]
    assert opened == []


def test_the_auditor_verifies_erases_and_drops(
    direct_url: str, app: PgEverything, audited: str, roles: dict[str, str]
) -> None:
    with app.transaction() as tx:
        tx.connection.execute("insert into shop.account values (1, 'a@x', 10)")
    with PgEverything(make_conninfo(direct_url, options=f"-c role={roles['auditor']}")) as auditor:
        assert auditor.audit.seal() == 1
        assert auditor.audit.erase(audited, 1) == 1
        assert auditor.audit.seal() == 1
        assert auditor.audit.verify().ok
        assert auditor.audit.drop_before(datetime(2026, 1, 1, tzinfo=UTC)) is None
        assert [entry.erased for entry in auditor.audit.history(audited, 1)] == [("email",)]
        with auditor.transaction() as tx, pytest.raises(DENIED):
            tx.connection.execute("delete from pgeverything.audit_entries")


def test_a_producer_does_not_see_the_trail(producer: PgEverything) -> None:
    with pytest.raises(DENIED):
        list(producer.audit.history())


def test_an_unfit_owner_of_the_trail_is_said(
    direct_url: str, db: psycopg.Connection[object], roles: dict[str, str], server_url: str
) -> None:
    owner = roles["tracker"]
    db.execute("create schema cell")
    db.execute(f"grant all on schema cell to {owner}".encode())
    try:
        with PgEverything(make_conninfo(direct_url, options=f"-c role={owner}"), schema="cell") as pg:
            pg.migrate()
        db.execute("create schema hidden; create table hidden.t (id integer primary key)")
        with pytest.raises(InvalidArgument, match=f"{owner} owns the trail and may not use the schema of hidden.t"):
            PgEverything(direct_url, schema="cell").audit.track("hidden.t")
        db.execute(f"grant usage on schema hidden to {owner}".encode())
        PgEverything(direct_url, schema="cell").audit.track("hidden.t")
        db.execute("insert into hidden.t values (1); truncate hidden.t")
        entries = [entry.action for entry in PgEverything(direct_url, schema="cell").audit.history("hidden.t")]
        assert entries == ["track", "insert", "truncate", "truncate"]
    finally:
        db.execute("drop schema if exists hidden cascade; drop schema cell cascade")
