"""What a lock, its holders, and a request for a lease are."""

from __future__ import annotations

import functools
import inspect
import os
import socket
from dataclasses import dataclass
from datetime import datetime

from ..durations import Duration, seconds
from ..errors import InvalidArgument
from ..jobs.values import check_name, check_whole

SHORTEST = 0.1  # seconds: below that a lease would be lost to a busy machine before its holder hears of it
MOST_SLOTS = 10_000
_BARGING = 0.003  # seconds for which those in line may be overtaken, where the order of arrival does not matter


@dataclass(frozen=True, slots=True)
class Holder:
    """A lease as others see it.

    `owner` is the holder's host:pid. `slots` is how many leases it bears, its own included. A lease that was `released`
    is listed until its `min_hold` has passed.
    """

    token: int
    owner: str
    note: str | None
    shared: bool
    slots: int
    acquired_at: datetime
    expires_at: datetime
    released: bool


@dataclass(frozen=True, slots=True)
class Lock:
    """A name with those who hold a lease on it, and how many wait for one."""

    name: str
    holders: tuple[Holder, ...]
    waiting: int


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of `acquire`, checked. Times are in seconds."""

    name: str
    ttl: float
    wait: float
    slots: int
    shared: bool
    fair: bool
    min_hold: float | None
    note: str | None

    @classmethod
    def checked(
        cls,
        name: str,
        ttl: Duration,
        wait: Duration | None,
        slots: int,
        shared: bool,
        fair: bool,
        min_hold: Duration | None,
        note: str | None,
        *,
        renew: bool = False,
        on_lost: object = None,
        cancel: bool = False,
    ) -> Request:
        """Return the request, or say which argument is wrong with it, also of those that are for the lease."""
        check_name(name, "name", most=1024)
        check_whole(slots, "slots", 1, MOST_SLOTS)
        if note is not None:
            check_name(note, "note", most=500)
        for value, option in ((shared, "shared"), (fair, "fair"), (renew, "renew"), (cancel, "cancel")):
            if not isinstance(value, bool):
                raise InvalidArgument(f"{option}={value!r} must be True or False")
        if on_lost is not None and (not callable(on_lost) or inspect.iscoroutinefunction(on_lost)):
            raise InvalidArgument(f"on_lost={on_lost!r} must be a function that takes the lease and is not awaited")
        if shared and slots != 1:
            raise InvalidArgument("shared=True has no limit to share: leave out slots=, or leave out shared=")
        length = lease_seconds(ttl)
        least = None if min_hold is None else seconds(min_hold, "min_hold")
        if least is not None and least > length:
            raise InvalidArgument(f"min_hold={min_hold!r} must not be longer than ttl={ttl!r}")
        return cls(
            name, length, 0.0 if wait is None else seconds(wait, "wait"), slots, shared, fair, least or None, note
        )

    def params(self, holder: int) -> dict[str, object]:
        """Return the parameters of the statement that are the same each time it is asked."""
        return {
            "name": self.name,
            "holder": holder,
            "ttl": self.ttl,
            "slots": self.slots,
            "shared": self.shared,
            "owner": f"{_host()}:{os.getpid()}",
            "note": self.note,
            "min_hold": self.min_hold,
            "patience": 0.0 if self.fair else _BARGING,
        }


@dataclass(frozen=True, slots=True)
class Grant:
    """A lease that was had. `sent` is when, on our own clock, the statement was sent that got it."""

    slot: int
    token: int
    sent: float
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Busy:
    """Why a lease was not to be had, and in how many seconds it may be, when nothing else happens.

    `ticket` is the place in line. `owner`, `note` and `left`, in seconds, are of the holder whose lease ends first.
    """

    ticket: int | None = None
    retry_in: float | None = None
    owner: str | None = None
    note: str | None = None
    left: float | None = None


def lease_seconds(ttl: Duration) -> float:
    """Return the length of a lease in seconds.

    Raises:
        InvalidArgument: it is no duration, or too short.
    """
    length = seconds(ttl, "ttl")
    if length < SHORTEST:
        raise InvalidArgument(f"ttl={ttl!r} must be at least {SHORTEST:g} s")
    return length


@functools.cache
def _host() -> str:
    return socket.gethostname()
