"""What keeps dead rows in the tables, and who is in whose way."""

from __future__ import annotations

from ..engine.plan import Plan, Query, Rows, same, whole
from ..engine.statements import statements
from .server import settings
from .values import Check, Verdict, ago, spell

SQL = statements("doctor")

PATIENCE = 60.0
"""Seconds that a transaction may be open without a word."""
LONG = 600.0
"""Seconds after which one that does nothing, or that is prepared, is a problem, and one that works is worth a word."""
BEHIND = 1_000_000
"""Transactions that a slot or a standby may keep vacuum behind."""
WAIT = 10.0
"""Seconds that a statement may wait for a lock."""
BLOATED = 10
"""Times the number of dead rows at which vacuum is due."""


def held_back() -> Plan[list[Check]]:
    """Judge who keeps vacuum from removing dead rows."""
    params = {"patience": PATIENCE, "transactions": BEHIND}
    rows = yield from Query(SQL["holders"], params, same)
    hidden = yield from Query(SQL["hidden"], {}, whole)
    return [judge_holders(rows, hidden)]


def judge_holders(rows: Rows, hidden: int) -> Check:
    """Judge the rows of `doctor.holders`, and how many sessions are not shown."""
    names = ("kind", "name", "owner", "application", "state", "seconds", "transactions", "about")
    noted = [row for row in rows if _kind(row) != "session" or row[5] >= LONG]
    figures = {"holders": [dict(zip(names, row, strict=True)) for row in noted], "hidden": hidden}
    if noted:
        fix = "; ".join(dict.fromkeys(_CURES[_kind(row)] for row in noted))
        verdict: Verdict = "problem" if any(map(_is_problem, noted)) else "warning"
        return Check("vacuum", verdict, spell([_holder(row) for row in noted]), fix, figures)
    if hidden:
        found = f"{hidden} session(s) of other roles are not shown to this one"
        return Check("vacuum", "unknown", found, "grant it pg_read_all_stats, or ask as another role", figures)
    return Check("vacuum", "ok", "nothing holds vacuum back", figures=figures)


_CURES = {
    "idle": "commit or roll back in that program, or end it with pg_terminate_backend(pid); "
    "idle_in_transaction_session_timeout ends such sessions by itself",
    "session": "let it end, or end it with pg_terminate_backend(pid); run long reports on a standby",
    "prepared": "COMMIT PREPARED or ROLLBACK PREPARED it",
    "slot": "start what reads the slot, or drop it with pg_drop_replication_slot(name)",
    "standby": "turn hot_standby_feedback off there, or end its long queries",
}


def _kind(row: tuple[object, ...]) -> str:
    return "idle" if row[0] == "session" and str(row[4]).startswith("idle") else str(row[0])


def _is_problem(row: tuple[object, ...]) -> bool:
    return _kind(row) in ("idle", "prepared") and isinstance(row[5], int | float) and row[5] >= LONG


def _holder(row: tuple[object, ...]) -> str:
    kind, name, owner, application, state, seconds, transactions, about = row
    age = ago(seconds) if isinstance(seconds, int | float) else f"{transactions or 0:,} transactions"
    if kind == "session":
        query = " ".join(str(about).split())[:80]
        return f"pid {name} ({owner}, {application or 'no application_name'}) is {state} for {age} ({query})"
    if kind == "prepared":
        return f"transaction {name!r} of {owner} is prepared for {age}"
    if kind == "slot":
        return f"replication slot {name!r} ({application}) is {state}, {age} behind and keeps {about} of WAL"
    return f"standby {application!r} (pid {name}) holds vacuum {age} back"


def tables() -> Plan[list[Check]]:
    """Judge whether vacuum comes to our tables, and whether it keeps up."""
    rows = yield from Query(SQL["tables"], {}, same)
    found = yield from settings()
    return [autovacuum(rows, found), bloat(rows)]


def autovacuum(rows: Rows, settings: dict[str, str]) -> Check:
    """Judge whether autovacuum may come."""
    off = [name for name in ("autovacuum", "track_counts") if settings[name] == "off"]
    if off:
        found = f"{' and '.join(off)} is off in the whole server: dead rows stay, and every claim gets slower"
        return Check("autovacuum", "problem", found, "turn it on", {"off": off})
    tables = [name for name, _, _, enabled, _ in rows if not enabled]
    if tables:
        found = f"autovacuum is off for {spell(tables)}: dead rows stay there"
        fix = "alter table ... reset (autovacuum_enabled)"
        return Check("autovacuum", "problem", found, fix, {"off": tables})
    return Check("autovacuum", "ok", "autovacuum looks after every table", figures={"off": []})


def bloat(rows: Rows) -> Check:
    """Judge whether it keeps up."""
    full = [(name, dead, due, last) for name, dead, due, _, last in rows if dead > BLOATED * max(due, 1)]
    figures = {name: {"dead_rows": dead, "vacuum_due_at": due, "last": last} for name, dead, due, last in full}
    if not full:
        return Check("bloat", "ok", "vacuum keeps up with dead rows", figures=figures)
    shown = [f"{name} has {dead:,} dead rows (vacuum is due at {due:,.0f})" for name, dead, due, _ in full]
    fix = "end what holds vacuum back (see `vacuum`); else give autovacuum more workers or a higher cost limit"
    return Check("bloat", "warning", spell(shown), fix, figures)


def blocked() -> Plan[list[Check]]:
    """Judge who waits for locks on our tables."""
    return [judge_blocked((yield from Query(SQL["blocked"], {"patience": WAIT}, same)))]


def judge_blocked(rows: Rows) -> Check:
    """Judge (pid, user, seconds, query, and of who is in the way: pid, user, state, query)."""
    if not rows:
        return Check("locks", "ok", "no statement waits long for a lock on our tables")
    names = ("pid", "user", "seconds", "query", "by", "by_user", "by_state", "by_query")
    shown = [
        f"pid {pid} ({user}) has waited {ago(seconds)} for pid {by} ({by_user or '?'}, {state or 'prepared or hidden'})"
        for pid, user, seconds, _, by, by_user, state, _ in rows
    ]
    fix = "end the transaction that is in the way, with pg_terminate_backend(pid) if need be"
    figures = {"blocked": [dict(zip(names, row, strict=True)) for row in rows]}
    return Check("locks", "problem", spell(shown), fix, figures)
