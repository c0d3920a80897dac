"""What is known of a lease in this process, for blocking and for asyncio code."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn, Self

from ..errors import LeaseLost, LockError
from .clock import now
from .values import Grant, Request

_RENEWED = 1 / 3  # of its length: when a lease is renewed in the background, so that two renewals may fail


class Held:
    """A lease on a name. It may be used from any thread, and belongs to this process: in a fork, it releases nothing.

    Attributes:
        name: the lock's name.
        ttl: the length of the lease in seconds, from when it was acquired or last renewed.
        token: the fencing token. It is greater than every token that was given for this name before, so what is outside
            of this database can refuse the late writes of an earlier holder: hand it over with each write.
        note: what was said about it when it was acquired.
    """

    def __init__(self, request: Request, grant: Grant, on_lost: Callable[[Any], object] | None) -> None:
        self.name, self.note = request.name, request.note
        self.slot, self.token = grant.slot, grant.token
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._lost = self._released = self._entered = False
        self._ours = False  # whether it was when it was released
        self._pid = os.getpid()
        self.ttl = request.ttl
        self._sent, self._expires_at = grant.sent, grant.expires_at

    @property
    def expires_at(self) -> datetime:
        """When it ends, on the database's clock; for the eye: compare `remaining` with what you have to do."""
        return self._expires_at

    @property
    def remaining(self) -> float:
        """For how many seconds the lease is certainly ours; 0 when it is not.

        Measured on our own clock, which goes on while the machine sleeps, from before the statement was sent, and a
        tenth of the length less, at most a second: what is begun shortly before the end should end before it.
        """
        return max(self.ends - now(), 0.0) if not (self._lost or self._released) else 0.0

    @property
    def lost(self) -> bool:
        """Whether the lease may be somebody else's. Once lost, it stays lost."""
        if not self._lost and not self._released and now() >= self.ends:
            self.lose()
        return self._lost

    @property
    def released(self) -> bool:
        """Whether it was given back."""
        return self._released

    # What the rest of this package uses -----------------------------------------------------------------------------

    @property
    def ends(self) -> float:
        """Until when, on our own clock, it is trusted."""
        return self._sent + self.ttl - min(self.ttl / 10, 1.0)

    @property
    def due(self) -> float:
        """When, on our own clock, it should be renewed."""
        return self._sent + self.ttl * _RENEWED

    def renewed(self, sent: float, expires_at: datetime) -> None:
        """Note that a statement, sent then, has renewed it."""
        with self._lock:
            if sent > self._sent:  # an answer may be overtaken by a later one
                self._sent, self._expires_at = sent, expires_at

    def lose(self) -> None:
        """Note that it is lost, and tell who wants to know, once."""
        with self._lock:
            if self._lost or self._released:
                return
            self._lost = True
        if self._on_lost is not None:
            self._tell(self._on_lost)

    @property
    def tells(self) -> bool:
        """Whether somebody wants to know when it is lost."""
        return self._on_lost is not None

    @property
    def forked(self) -> bool:
        """Whether this is a fork's copy. The lease stays its parent's, also when the fork leaves the block."""
        return self._pid != os.getpid()

    def give_up(self) -> bool:
        """Note that it is given back; whether it was not before."""
        with self._lock:
            first, self._released = not self._released, True
            return first

    def check(self) -> None:
        """Raise unless it is certainly ours.

        Raises:
            LeaseLost: it is not.
        """
        if self._released:
            raise LeaseLost(f"the lease on {self.name!r} was released: acquire the lock again")
        if self.lost:
            raise LeaseLost(
                f"the lease on {self.name!r} (token {self.token}) is lost: it was not renewed within {self.ttl:g} s, "
                "or somebody broke the lock"
            )

    def enter(self) -> Self:
        """Note that a `with` block is entered; one at most, because a lock is had once."""
        with self._lock:
            if self._entered or self._released:
                raise LockError(
                    f"the lease on {self.name!r} is in use by a `with` block, or released: it cannot be entered twice; "
                    "acquire another lease, or leave out the inner block"
                )
            self._entered = True
        return self

    def _tell(self, on_lost: Callable[[Any], object]) -> None:
        """Call it where it holds up nobody."""
        raise NotImplementedError

    def __repr__(self) -> str:
        state = "released" if self._released else "lost" if self.lost else f"{self.remaining:.1f} s left"
        return f"<{type(self).__name__} {self.name!r} token={self.token} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a lease belongs to the process that acquired it and cannot be pickled: "
            "pass lease.name and lease.token, or acquire in the other process"
        )
