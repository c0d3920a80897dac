"""What a handler raises to say something else than "it failed"."""

from __future__ import annotations

from .durations import Duration, seconds


class Snooze(Exception):
    """Run this job again later; the attempt does not count.

    Args:
        delay: how long from now.
    """

    def __init__(self, delay: Duration) -> None:
        self.seconds = seconds(delay, "delay")
        super().__init__(f"snoozed for {self.seconds:g} s")


class Cancel(Exception):
    """End this job as cancelled: there is nothing left to do.

    Args:
        reason: kept with the finished job.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = _storable(reason)


class Reject(Exception):
    """This job can never succeed: it is dead at once, whatever attempts are left.

    Args:
        reason: kept with the dead job.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = _storable(reason)


def _storable(reason: object) -> str:
    """Return the reason as text that Postgres takes: no NUL, and no lone surrogate, as undecodable file names have."""
    return str(reason)[:2000].replace("\0", "\ufffd").encode("utf-8", "replace").decode()
