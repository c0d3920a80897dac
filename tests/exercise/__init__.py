"""Runs the statements of every module, with effect, for tests that look at what Postgres makes of them."""

from __future__ import annotations

from . import audit, cache, doctor, events, jobs, locks, pubsub, scheduler
from .session import Session


def exercise(session: Session) -> None:
    """Run everything that runs often, and every way to look at things, with effect."""
    for module in (jobs, events, pubsub, scheduler, cache, locks, doctor, audit):
        module.exercise(session)
