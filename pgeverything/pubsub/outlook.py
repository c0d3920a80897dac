"""One look and one heartbeat for all open subscriptions of a process."""

from __future__ import annotations

import os
import time

from ..engine.plan import Plan
from ..events.read import horizon
from .member import Claim, Member, beat, look
from .pace import Pace

_QUIET = ("idle", "paused", "stopped")  # states of a subscription that a member can only wait in


class Outlook:
    """How far the log can be read, which durable subscriptions have nothing to hand out, and their members' leases.

    The threads of the subscribers share it: everything here is replaced in one step, and being late by one look does no
    harm.
    """

    def __init__(self) -> None:
        self._upto, self._looked_at = 0, float("-inf")
        self._quiet: dict[int, tuple[float, float]] = {}  # when a subscription was seen to be, and until when it may be
        self._members: set[Member] = set()
        self._open = 0
        self.asking = Pace(int.from_bytes(os.urandom(8)) >> 1)

    def begin(self, member: Member | None = None) -> None:
        """One more reads: a broadcast, or a member of a durable subscription."""
        self._open += 1
        if member is not None:
            self._members.add(member)

    def end(self, member: Member | None = None) -> Plan[None]:
        """One reads no more; the last one asks for no more hints."""
        self._open -= 1
        if member is not None:
            self._members.discard(member)
        if self._open == 0:
            yield from self.asking.awake()

    # Looks -----------------------------------------------------------------------------------------------------------

    def horizon(self, after: int, since: float) -> Plan[int]:
        """Return how far a reader may go who is at `after`.

        What was seen once holds for ever; that there was nothing new holds when somebody has looked `since` that time
        of the monotonic clock.
        """
        if self._upto <= after and self._looked_at < since:
            began = time.monotonic()
            if subscriptions := self.subscriptions:
                self.saw((yield from look(subscriptions)), began)
            else:
                self._saw_log((yield from horizon(after)), began)
        return max(self._upto, after)

    @property
    def subscriptions(self) -> set[int]:
        """The numbers of the durable subscriptions that have a member here."""
        return {each for member in tuple(self._members) for each in member.subscriptions}

    def quiet(self, subscription: int, since: float) -> float | None:
        """Return in how many seconds something is due in a subscription that was seen to be quiet `since` then.

        None when it was not, and one has to look oneself.
        """
        seen_at, due_at = self._quiet.get(subscription, (float("-inf"), 0.0))
        due = due_at - time.monotonic()
        return due if seen_at >= since and due > 0 else None

    def saw(self, claim: Claim, began: float) -> None:
        """Note what a claim has brought that was sent at `began`."""
        for each, state in claim.states.items():
            if state in _QUIET:
                self._quiet[each] = began, time.monotonic() + claim.due.get(each, float("inf"))
            else:
                self._quiet.pop(each, None)
        self._saw_log(claim.horizon, began)

    def _saw_log(self, upto: int, began: float) -> None:
        self._upto, self._looked_at = max(self._upto, upto), began

    # Leases ----------------------------------------------------------------------------------------------------------

    def beat(self, member: Member) -> Plan[bool]:
        """Renew the lease of a member, and of the others here that will need it soon, unless one of them just did.

        Returns whether it still was a member.
        """
        if member.age < member.heartbeat / 2:
            return True
        yield from beat([member, *(each for each in tuple(self._members - {member}) if each.age >= each.heartbeat / 2)])
        return not member.lost
