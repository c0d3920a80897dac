"""The server: what it is, how it is set, and what it may run out of."""

from __future__ import annotations

from ..engine.plan import Plan, Query, Rows, same
from ..engine.statements import statements
from .values import Check

SQL = statements("doctor")

OLDEST = 150_000
NEARLY, FULL = 0.8, 0.95
# Postgres vacuums by force from autovacuum_freeze_max_age on (200 million), without caring for anything else from 1.6
# billion on, and takes no more writes at 2.1 billion.
OLD, TOO_OLD = 1_000_000_000, 1_600_000_000

STANDBY = "this server is a standby, which takes no writes"

_SETTINGS = (
    "server_version", "server_version_num", "server_encoding", "fsync", "full_page_writes", "synchronous_commit",
    "default_transaction_isolation", "default_transaction_read_only", "autovacuum", "track_counts",
)  # fmt: skip


def settings() -> Plan[dict[str, str]]:
    """Return the settings that matter here, as they are for this role in this database."""
    return dict((yield from Query(SQL["settings"], {"names": list(_SETTINGS)}, same)))


def server(standby: bool) -> Plan[list[Check]]:
    """Judge what the server is and how it is set."""
    found = yield from settings()
    return [kind(found, standby=standby), durability(found), session(found)]


def kind(found: dict[str, str], *, standby: bool) -> Check:
    """Judge which server it is."""
    version, figures = found["server_version"], {"version": found["server_version"], "standby": standby}
    if standby:
        return Check("server", "problem", STANDBY, "connect to the primary", figures)
    if int(found["server_version_num"]) < OLDEST:
        return Check("server", "problem", f"PostgreSQL {version} is too old", "upgrade it to 15 or newer", figures)
    return Check("server", "ok", f"PostgreSQL {version}, a primary", figures=figures)


def durability(found: dict[str, str]) -> Check:
    """Judge whether what is committed stays."""
    figures = {name: found[name] for name in ("fsync", "full_page_writes", "synchronous_commit")}
    off = [name for name in ("fsync", "full_page_writes") if found[name] == "off"]
    if off:
        what = f"{' and '.join(off)} is off: a crash of the machine can destroy the whole database"
        return Check("durability", "problem", what, "turn it on, unless all of it may be lost", figures)
    if found["synchronous_commit"] == "off":
        what = "synchronous_commit is off: a crash forgets what was committed in the last second"
        fix = "turn it on for this role, unless jobs, events and leases may be lost"
        return Check("durability", "warning", what, fix, figures)
    return Check("durability", "ok", "what is committed survives a crash", figures=figures)


def session(found: dict[str, str]) -> Check:
    """Judge how transactions begin for this role."""
    names = ("default_transaction_isolation", "default_transaction_read_only", "server_encoding")
    figures = {name: found[name] for name in names}
    if found["default_transaction_read_only"] == "on":
        fix = "set it off for this role: alter role ... set default_transaction_read_only = off"
        return Check("session", "problem", "default_transaction_read_only is on: nothing can be written", fix, figures)
    if (level := found["default_transaction_isolation"]) not in ("read committed", "read uncommitted"):
        what = (
            f"default_transaction_isolation is {level}: statements fail where they should wait, and events are not read"
        )
        fix = "set read committed for this role, and the higher level where a transaction of yours needs it"
        return Check("session", "problem", what, fix, figures)
    if (encoding := found["server_encoding"]) != "UTF8":
        what = f"the database's encoding is {encoding}: text that it has no characters for is refused"
        return Check("session", "warning", what, "use a database with the encoding UTF8", figures)
    return Check("session", "ok", "transactions begin as read committed", figures=figures)


def connections() -> Plan[list[Check]]:
    """Judge how many connections are left."""
    return [judge_connections((yield from Query(SQL["connections"], {}, same)))]


def judge_connections(rows: Rows) -> Check:
    """Judge the limit that is nearest, of (what, used, most)."""
    what, used, most = max(rows, key=lambda row: row[1] / max(row[2], 1))
    figures = {name: {"used": number, "most": limit} for name, number, limit in rows}
    share = used / max(most, 1)
    found = f"{used} of {most} connections of {what} are used"
    if share < NEARLY:
        return Check("connections", "ok", found, figures=figures)
    fix = "use fewer processes or a smaller PGEVERYTHING_POOL_SIZE, or put PgBouncer in between"
    return Check("connections", "problem" if share >= FULL else "warning", found, fix, figures)


def wraparound() -> Plan[list[Check]]:
    """Judge how far the oldest rows of the cluster are behind."""
    database, age, multi = (yield from Query(SQL["ages"], {}, same))[0]
    return [judge_age(database, age, multi)]


def judge_age(database: str, age: int, multi: int) -> Check:
    """Judge the ages of the oldest transaction and multixact id."""
    oldest, figures = max(age, multi), {"database": database, "transactions": age, "multixacts": multi}
    found = f"the oldest rows, in database {database!r}, are {oldest / 1e6:.0f} million transactions old"
    if oldest < OLD:
        return Check("wraparound", "ok", found, figures=figures)
    fix = (
        "find what holds vacuum back (see `vacuum`), then VACUUM FREEZE the oldest tables of that database; "
        "at 2,100 million the server takes no more writes"
    )
    return Check("wraparound", "problem" if oldest >= TOO_OLD else "warning", found, fix, figures)
