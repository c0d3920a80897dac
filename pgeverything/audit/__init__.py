"""The audit trail: who changed what, when and why, of any table; sealed, so that it cannot be changed unseen."""

from __future__ import annotations

from ..engine.modules import AsyncModule, Module
from ..engine.plan import op
from . import look, retention
from .look import AsyncReads, Reads
from .record import context, record
from .seal import export_root, seal, verify
from .track import track, tracked, untrack
from .values import Entry, Root, Tracked, Verification

__all__ = [
    "AsyncAuditTrail",
    "AsyncBoundAudit",
    "AuditTrail",
    "BoundAudit",
    "Entry",
    "Root",
    "Tracked",
    "Verification",
]


class _Everywhere:
    track = op(track)
    untrack = op(untrack)
    tracked = op(tracked)
    record = op(record)
    get = op(look.get)
    as_of = op(look.as_of)
    revert = op(look.revert)
    erase = op(retention.erase)


class _Anywhere(_Everywhere):
    """What makes sense on connections of our own."""

    seal = op(seal)
    verify = op(verify)
    export_root = op(export_root)
    drop_before = op(retention.drop_before)


class AuditTrail(Module, Reads, _Anywhere):
    """The audit trail, blocking."""


class AsyncAuditTrail(AsyncModule, AsyncReads, _Anywhere):
    """The audit trail, awaited."""


class BoundAudit(Reads, _Everywhere):
    """The audit trail inside the caller's transaction, blocking."""

    context = op(context)


class AsyncBoundAudit(AsyncReads, _Everywhere):
    """The audit trail inside the caller's transaction, awaited."""

    context = op(context)
