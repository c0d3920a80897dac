"""The schema: whether it fits this library, what this role may do in it, and whether all of it is sound."""

from __future__ import annotations

from collections.abc import Sequence

from ..engine.plan import Plan, Query, Rows, one_or_none, same
from ..engine.statements import statements
from ..errors import SchemaTooNew
from ..schema import migrate
from .values import Check, spell

SQL = statements("doctor")

DAYS = 2
"""Daily partitions that must be there in advance."""


def schema(name: str) -> Plan[list[Check]]:
    """Judge whether the schema fits this library; where it does not, nothing in it can be examined."""
    usage = yield from Query(SQL["usage"], {}, one_or_none)
    if usage is False:
        fix = "have its owner grant usage on it (docs/how-to/roles.md)"
        return [Check("schema", "problem", f"this role may not use schema {name!r}", fix)]
    try:
        yield from migrate.verify(name, pending_is_fine=True)
        history = yield from migrate.status(name)
    except SchemaTooNew as error:
        return [Check("schema", "problem", str(error).partition(": ")[0], "upgrade this installation")]
    pending = [f"{each.version:04d} {each.name}" for each in history if each.applied_at is None]
    latest = max((each.version for each in history if each.applied_at is not None), default=0)
    figures = {"migration": latest, "pending": pending}
    if pending:
        found = f"schema {name!r} lacks {spell(pending)}" if latest else f"schema {name!r} is not there"
        return [Check("schema", "problem", found, "run `pgeverything migrate`", figures)]
    newer = latest - migrate.migrations()[-1].version
    found = f"schema {name!r} has migration {latest:04d}"
    if newer > 0:
        found += ", which is newer than this library and does not disturb it"
    return [Check("schema", "ok", found, figures=figures)]


def rights() -> Plan[list[Check]]:
    """Judge what this role may do."""
    return [judge_rights((yield from Query(SQL["lacking"], {}, same)))]


def judge_rights(rows: Rows) -> Check:
    """Judge the rights that are missing, of (right, names)."""
    if not rows:
        return Check("privileges", "ok", "this role may do all that an application does")
    lacks = [f"{right} on {spell(names)}" for right, names in rows]
    found = f"this role lacks {'; '.join(lacks)}"
    fix = "grant them if it is to run workers; a producer or a monitor needs fewer (docs/how-to/roles.md)"
    return Check("privileges", "warning", found, fix, {right: list(names) for right, names in rows})


def indexes() -> Plan[list[Check]]:
    """Judge whether every index is used."""
    rows = yield from Query(SQL["indexes"], {}, same)
    if not rows:
        return [Check("indexes", "ok", "every index is valid")]
    found = "invalid: " + spell([f"{index} on {table}" for index, table in rows])
    fix = "REINDEX INDEX CONCURRENTLY, or DROP INDEX what a broken REINDEX has left (its name ends in _ccnew or _ccold)"
    return [Check("indexes", "problem", found, fix, {"indexes": [index for index, _ in rows]})]


def partitions() -> Plan[list[Check]]:
    """Judge whether there are partitions for what comes, and none of it went elsewhere."""
    ahead = yield from Query(SQL["ahead"], {}, same)
    strays = yield from Query(SQL["strays"], {}, same)
    return [judge_partitions(dict(ahead), [name for (name,) in strays])]


def judge_partitions(ahead: dict[str, int], strays: Sequence[str]) -> Check:
    """Judge how many partitions there are in advance, and default partitions that hold something."""
    figures = {"ahead": ahead, "strays": list(strays)}
    fix = "keep a worker running, and see that its role may execute the functions of docs/how-to/roles.md"
    short = [f"{name} has {n}" for name, n in ahead.items() if n < (1 if name in ("events", "audit_entries") else DAYS)]
    if short:
        found = f"too few partitions in advance: {spell(short)}; new rows will go to the default partition"
        return Check("partitions", "warning", found, fix, figures)
    if strays:
        found = f"{spell(strays)} holds rows, which had no partition of their own; a worker moves them"
        return Check("partitions", "warning", found, fix, figures)
    return Check("partitions", "ok", "there are partitions for what comes", figures=figures)
