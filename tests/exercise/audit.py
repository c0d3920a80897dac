"""Everything of the audit trail."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from .session import Session

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
ALL: dict[str, Any] = dict.fromkeys(("subject", "key", "actor", "action", "since", "until"))

TABLE = """
create table if not exists public.audited (
  a integer, b text, note text, secret text, email text, at timestamptz not null default now(), primary key (a, b));
create table if not exists public.audited_parts (id integer primary key, note text) partition by range (id);
create table if not exists public.audited_part partition of public.audited_parts for values from (0) to (10);
"""
CHANGES = """
delete from public.audited;
delete from public.audited_parts;
insert into public.audited (a, b, note, secret, email) select 1, n::text, 'n', 's', 'e' from generate_series(1, 9) n;
update public.audited set note = 'm', email = 'f' where b < '5';
update public.audited set at = '2026-01-01 00:00:00+00';
update public.audited set b = '10' where b = '9';
delete from public.audited where b = '1';
insert into public.audited_parts select n, 'n' from generate_series(1, 5) n;
update public.audited_parts set note = 'm' where id < 3;
delete from public.audited_parts where id = 5;
truncate public.audited_parts;
"""


def exercise(session: Session) -> None:
    run = session.run
    for statement in (TABLE + CHANGES).split(";\n"):
        session.sql(statement)
    ways = {"exclude": ["at"], "mask": ["secret"], "personal": ["email"], "require_actor": False, "bulk": False}
    plain: dict[str, Any] = {"exclude": [], "mask": [], "personal": [], "require_actor": False, "bulk": False}
    run("audit.track", table="public.audited", **ways)
    run("audit.track", table="public.audited_parts", **plain)
    run("audit.tracked")
    run("audit.context", actor="ada", reason="why", more='{"ip": "::1"}')
    run("audit.context_holds")
    for statement in CHANGES.split(";\n"):
        session.sql(statement)
    run("audit.record", action="login", subject="user:7", data='{"ok": true}')
    subject, _, relation, key = run("audit.resolve", table="public.audited", key='[1, "2"]')[0]
    row = {"subject": subject, "key": key}
    for name in ("audit.history", "audit.history_back"):
        for filters in ({}, row, {"subject": subject}, {"actor": "ada", "action": "login", "since": LONG_AGO}):
            run(name, **ALL | filters, low=0, high=2**62, limit=100)
    run("audit.id_at", at=LONG_AGO)
    run("audit.gap", subject=subject, at=LONG_AGO)
    run("audit.as_of", relation=relation, at=LONG_AGO, key=None)
    run("audit.as_of", relation=relation, at=LONG_AGO, key='[1, "2"]')
    last = run("audit.history_back", **ALL | row, low=0, high=2**62, limit=1)[0][0]
    run("audit.get", id=last)
    assert run("audit.revert", id=last)[0][1] is None
    run(
        "audit.revert",
        id=run("audit.history_back", **ALL | {"subject": "public.audited_parts"}, low=0, high=2**62, limit=2)[1][0],
    )
    transaction = run("trace.current")[0][0]
    for name in ("trace.entries", "trace.events", "trace.jobs"):
        run(name, id=transaction)
    run("audit.erase", **row)
    if session.one_transaction:  # the seal refuses to be a part of one that has written
        session.sql("select pgeverything.audit_chain(1000000, 5, 100)")
    else:
        run("audit.seal", most=5)
    for name in ("audit.unsealed", "audit.head", "audit.partitions"):
        run(name)
    run("audit.blocks", after=0, limit=10)
    run("audit.sealed", low=0, high=2**62, limit=100)
    run("audit.drop", before=LONG_AGO)
    session.sql("truncate public.audited")
    run("audit.track", table="public.audited", **plain | {"bulk": True})
    for statement in CHANGES.split(";\n"):
        session.sql(statement)
    run("audit.untrack", table="public.audited")
    run("audit.untrack", table="public.audited_parts")
    session.sql("truncate public.audited, public.audited_parts")
