"""The event log: append-only, one order for every reader, nothing lost between concurrent commits."""

from __future__ import annotations

from ..engine.modules import AsyncModule, Module
from ..engine.plan import op
from . import look, retention
from .append import append, append_many, extending
from .look import OpenPublisher, Topic
from .reader import AsyncReads, Reads
from .values import Event

__all__ = ["AsyncBoundEvents", "AsyncEventLog", "BoundEvents", "Event", "EventLog", "OpenPublisher", "Topic"]


class _Everywhere:
    head = op(look.head)
    version = op(look.version)
    topics = op(look.topics)
    stalled_by = op(look.stalled_by)


class _InTransaction(_Everywhere):
    """What makes sense inside the caller's transaction."""

    append = op(append)
    append_many = op(append_many)


class _Anywhere(_Everywhere):
    """What makes sense on connections of our own."""

    append = extending(append)
    append_many = extending(append_many)
    drop_before = op(retention.drop_before)
    retain = op(retention.retain)


class EventLog(Module, Reads, _Anywhere):
    """The event log, blocking."""


class AsyncEventLog(AsyncModule, AsyncReads, _Anywhere):
    """The event log, awaited."""


class BoundEvents(Reads, _InTransaction):
    """The event log inside the caller's transaction, blocking."""


class AsyncBoundEvents(AsyncReads, _InTransaction):
    """The event log inside the caller's transaction, awaited."""
