"""`pgeverything audit` and `trace`, as a person and as a script see them."""

from __future__ import annotations

import json
import threading
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything
from pgeverything.cli import main

Database = psycopg.Connection[Any]


@pytest.fixture(autouse=True)
def _environment(url: str, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)
    db.execute(
        "update pgeverything.audit_sealing set horizon = 0, pending_id = null, pending_xid = null, dropped = null"
    )
    db.execute(
        "drop table if exists account; create table account (id integer primary key, owner text, ssn text, email text)"
    )


def run(*args: str | int) -> Result:
    return CliRunner().invoke(main, list(map(str, args)))


def audit(*args: str | int) -> Result:
    result = run("audit", *args)
    assert result.exit_code == 0, result.stderr
    return result


def audit_json(*args: str | int) -> Any:
    return json.loads(audit(*args, "--json").stdout)


def lines(*args: str | int) -> list[Any]:
    return [json.loads(line) for line in audit(*args, "--json").stdout.splitlines()]


def test_the_life_of_a_trail(db: Database) -> None:
    options = ["--mask", "ssn", "--personal", "email", "--require-actor"]
    assert audit("track", "account", *options).stderr == "public.account is tracked\n"
    assert audit_json("tracked")[0]["mask"] == ["ssn"]
    assert "public.account" in audit("tracked").stdout
    with db.transaction():
        db.execute(
            "select set_config('pgeverything_audit.actor', 'ada', true),"
            " set_config('pgeverything_audit.reason', 'r', true)"
        )
        db.execute("insert into account values (1, 'x', 's', 'e@x')")
        db.execute("update account set owner = 'y', ssn = 't'")
    then = db.execute("select clock_timestamp()").fetchall()[0][0].isoformat()

    text = audit("history", "account", 1).stdout
    assert 'owner: "x" -> "y", ssn: ***' in text
    assert "by ada  (r)" in text
    _, inserted, updated = lines("history", "account", "--since", "2020-01-01")
    assert (inserted["action"], inserted["new"]["email"], updated["masked"]) == ("insert", "e@x", ["ssn"])
    assert [entry["id"] for entry in lines("history", "--actor", "ada", "--newest-first", "--limit", 1)] == [
        updated["id"]
    ]
    assert (
        lines("as-of", "account", then)
        == lines("as-of", "account", then, 1)
        == [{"id": 1, "owner": "y", "email": "e@x"}]
    )
    assert "e@x" in audit("as-of", "account", then).stdout
    nothing = audit("as-of", "account", then, "999")
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (0, "", "account had no such row at that time\n")

    refused = run("audit", "revert", updated["id"], "--actor", "bob")
    assert (refused.exit_code, "the values of ssn are masked" in refused.stderr) == (1, True)
    recorded = audit_json("record", "export", "account", '{"rows": 1}', "--actor", "bob", "--reason", "asked")
    assert (recorded["actor"], recorded["reason"], recorded["new"]) == ("bob", "asked", {"rows": 1})
    assert audit("erase", "account", 1).stderr == "personal values of 1 entries are erased\n"
    assert "email: erased" in audit("history", "account", 1).stdout

    assert audit_json("seal") == {"blocks": 1}
    root = audit("root").stdout.strip()
    assert audit_json("root")["hash"] == root.partition(":")[2]
    assert audit_json("verify", "--root", root)["ok"]
    assert "as it was sealed" in audit("verify").stderr
    db.execute("update pgeverything.audit_entries set actor = 'eve' where id = %s", [inserted["id"]])
    found = run("audit", "verify", "--json")
    assert (found.exit_code, json.loads(found.stdout)["entry"]) == (1, inserted["id"])
    assert f"block 1, entry {inserted['id']}: it was changed" in run("audit", "verify").stderr
    assert audit("drop", "--before", "2020-01-01").stderr == "nothing was ever dropped\n"
    assert audit("untrack", "account").stderr == "account is tracked no longer\n"


def test_revert(db: Database) -> None:
    audit("track", "account")
    db.execute("insert into account (id, owner) values (1, 'x')")
    (entry,) = lines("history", "account", 1)
    assert "is reverted by entry" in audit("revert", entry["id"], "--actor", "bob", "--reason", "wrong").stderr
    last = lines("history", "account", 1)[-1]
    assert (last["action"], last["actor"], last["reason"], last["context"]) == (
        "delete",
        "bob",
        "wrong",
        {"reverts": entry["id"]},
    )
    again = run("audit", "revert", entry["id"])
    assert (again.exit_code, "the row is gone" in again.stderr) == (1, True)


def test_tail_prints_what_comes(db: Database, url: str) -> None:
    with PgEverything(url) as pg:
        pg.audit.record("before", "x")
        found: list[Result] = []
        following = threading.Thread(target=lambda: found.append(run("audit", "tail", "--limit", 2, "--json")))
        following.start()
        while following.is_alive():
            pg.audit.record("during", "x")
            following.join(0.2)
    entries = [json.loads(line) for line in found[0].stdout.splitlines()]
    assert [entry["action"] for entry in entries] == ["during", "during"]
    assert entries[0]["id"] < entries[1]["id"]


def test_trace(db: Database, url: str) -> None:
    with PgEverything(url) as pg, pg.transaction() as tx:
        number = tx.transaction_id()
        tx.audit.record("login", "user:7")
        job = tx.jobs.enqueue("work")
        event = tx.events.append("orders", 1, type="placed")
    found = json.loads(run("trace", number, "--json").stdout)
    assert [found["entries"][0]["action"], found["events"][0]["position"], found["jobs"][0]["id"]] == [
        "login",
        event.position,
        job.id,
    ]
    shown = run("trace", number).stdout
    assert all(word in shown for word in ("login", "orders", "placed", "work"))
    assert "has left nothing" in run("trace", 1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["track", "nothing"], 2, "there is no such table"),
        (["history", "--since", "yesterday"], 2, "is not a time like"),
        (["as-of", "account", "2026-01-01"], 2, "is not tracked"),
        (["revert", "999999999"], 1, "there is no entry"),
        (["record", "update", "x"], 2, "is written by the trail itself"),
        (["record", "login", "x", "{"], 2, "is not JSON"),
        (["verify", "--root", "x"], 2, "must be what export_root() returned"),
    ],
)
def test_what_is_refused(arguments: list[str], code: int, why: str) -> None:
    result = run("audit", *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert why in result.stderr
