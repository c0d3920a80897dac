"""Checked by mypy, never run: what the names of the audit trail promise."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator
from datetime import date, datetime
from typing import Any, assert_type

from pgeverything import AsyncAuditTrail, AsyncPgEverything, AuditTrail, Entry, PgEverything
from pgeverything.audit import Root, Tracked, Verification
from pgeverything.trace import Trace


def blocking(pg: PgEverything, when: datetime) -> None:
    assert_type(pg.audit, AuditTrail)
    assert_type(pg.audit.track("t", exclude=["a"], mask=("b",), personal=[], require_actor=True), Tracked)
    assert_type(pg.audit.untrack("t"), bool)
    assert_type(pg.audit.tracked(), list[Tracked])
    assert_type(pg.audit.record("login", "user:7", {"any": "thing"}), Entry)
    assert_type(pg.audit.history("t", 7, actor="a", since=when, until=when, limit=5), Iterator[Entry])
    assert_type(pg.audit.as_of("t", when, key=[1, "2"]), list[dict[str, Any]])
    assert_type(pg.audit.revert(7), Entry)
    assert_type(pg.audit.seal(), int)
    assert_type(pg.audit.verify(root="1:ab"), Verification)
    assert_type(pg.audit.export_root(), Root | None)
    assert_type(pg.audit.erase("t", 7), int)
    assert_type(pg.audit.drop_before(when), date | None)
    assert_type(pg.trace(7), Trace)
    pg.audit.context(actor="a")  # type: ignore[attr-defined]
    pg.audit.track(7)  # type: ignore[arg-type]
    pg.audit.as_of("t", "yesterday")  # type: ignore[arg-type]
    with pg.transaction() as tx:
        tx.audit.context(actor="ada", reason="why", ip="::1", request=7)
        assert_type(tx.audit.history("t"), Iterator[Entry])
        assert_type(tx.transaction_id(), int)
        tx.audit.seal()  # type: ignore[attr-defined]
        tx.audit.context("ada")  # type: ignore[call-arg]


async def awaited(pg: AsyncPgEverything, when: datetime) -> None:
    assert_type(pg.audit, AsyncAuditTrail)
    _ = assert_type(pg.audit.verify(), Coroutine[Any, Any, Verification])
    assert_type(pg.audit.history("t"), AsyncIterator[Entry])
    async for entry in pg.audit.history():
        assert_type(entry, Entry)
    assert_type(await pg.trace(7), Trace)
    async with pg.transaction() as tx:
        await tx.audit.context(actor="ada")
        assert_type(await tx.transaction_id(), int)
