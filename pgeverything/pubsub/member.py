"""A member of subscriptions: takes deliveries under a lease, and ends each by the token it was handed out with."""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..engine.plan import Plan, Query, nothing, one, same, whole
from ..engine.refusals import lock_not_available
from ..engine.statements import statements
from ..errors import RetentionGap, SubscriptionError, SubscriptionNotFound
from ..events.values import read_events
from ..failures import Failure
from .manage import Known
from .values import Held

log = logging.getLogger("pgeverything.pubsub")
SQL = statements("pubsub")

SUSPICION = 15.0  # seconds for which a broken connection's last claim may still be at work in the server
SHORTEST = 2.0  # seconds of a lease: a slow commit may hold up a heartbeat for that long


class Claim:
    """What a claim has brought.

    Attributes:
        held: the deliveries.
        states: how each subscription is; see the SQL function.
        due: in how many seconds the next delivery of a subscription is due that waits for its time.
        horizon: how far the log can be read.
    """

    __slots__ = ("due", "held", "horizon", "states")

    def __init__(self) -> None:
        self.held: list[Held] = []
        self.states: dict[int, str] = {}
        self.due: dict[int, float] = {}
        self.horizon = 0

    @property
    def next_due(self) -> float:
        """In how many seconds the next delivery of any of them is due."""
        return min(self.due.values(), default=float("inf"))

    @property
    def more(self) -> bool:
        """Whether there is more to be had."""
        return "more" in self.states.values()

    @property
    def busy(self) -> bool:
        """Whether somebody else was claiming at this moment."""
        return "busy" in self.states.values()


class Member:
    """The row of a process in `members`, and for how long it can still be trusted.

    The time is measured on our own clock from before each heartbeat was sent, so it ends before the patience of the
    others does.
    """

    def __init__(self, subscriptions: Sequence[Known], lease: float, name: str | None = None) -> None:
        self.subscriptions = {each.id: each for each in subscriptions}
        self.name = name or f"{socket.gethostname()}:{os.getpid()}"
        self.lease, self.heartbeat = lease, lease / 3
        self.id = 0
        self._renewed = float("-inf")

    @property
    def left(self) -> float:
        """For how many seconds what it holds is certainly still its own; below 0 when it is not."""
        return self._renewed + self.lease * 5 / 6 - time.monotonic()

    @property
    def age(self) -> float:
        """For how many seconds the lease has not been renewed."""
        return time.monotonic() - self._renewed

    @property
    def trusted(self) -> bool:
        """Whether what it holds is certainly still its own."""
        return self.left > 0

    @property
    def lost(self) -> bool:
        """Whether it was told that it is no member."""
        return self._renewed == float("-inf")

    @property
    def next_beat(self) -> float:
        """In how many seconds to renew the lease: not in step with the others here, so that one does it for all."""
        rest = self.heartbeat * random.uniform(0.9, 1.0)  # noqa: S311
        return rest - self.age if self.age < rest else rest

    def register(self) -> Plan[None]:
        """Become a member, under a new number."""
        sent = time.monotonic()
        params = {"name": self.name, "subscriptions": list(self.subscriptions), "lease": self.lease}
        self.id = yield from Query(SQL["register"], params, whole)
        self.renewed(sent)
        yield from rescue()

    def take_up(self, known: Known, instead_of: int) -> Plan[None]:
        """Consume another subscription instead of one that was deleted."""
        subscriptions = {id_: each for id_, each in self.subscriptions.items() if id_ != instead_of} | {known.id: known}
        yield from Query(SQL["take_up"], {"member": self.id, "subscriptions": list(subscriptions)}, nothing)
        self.subscriptions = subscriptions

    def renewed(self, sent: float | None) -> None:
        """Note that the lease was renewed by what was `sent` then, or is lost."""
        self._renewed = float("-inf") if sent is None else sent

    def leave(self) -> Plan[None]:
        """Put back what it holds, and be no member any more."""
        if self.id:
            yield from Query(SQL["leave"], {"member": self.id}, nothing)

    def claim(self, most: Mapping[int, int]) -> Plan[Claim]:
        """Take up to so many deliveries of each subscription.

        A delivery whose event retention has dropped meanwhile is dead, because there is nothing to deliver.
        """
        claim, missing = yield from _claim(self.id, most)
        if "lost" in claim.states.values():
            self.renewed(None)
        for gone in missing:
            answer = yield from put_back(gone, 0.0, begun=False, reason="retention has dropped its event")
            if answer != "dead":  # what comes after it was put back with it
                claim.held = [each for each in claim.held if not each.follows(gone)]
        return claim

    def put_back_unknown(self, held: Iterable[Held]) -> Plan[None]:
        """Put back what is in our name and not among these: the answer to its claim was lost with its connection."""
        known = list(held)
        params = {
            "member": self.id,
            "subscriptions": [each.subscription for each in known],
            "positions": [each.position for each in known],
            "tokens": [each.token for each in known],
        }
        back = yield from Query(SQL["orphans"], params, whole)
        if back:
            log.warning("put back %s message(s) that were in this member's name and not in its hands", back)


def look(subscriptions: Iterable[int]) -> Plan[Claim]:
    """Look how subscriptions are, and how far the log can be read; takes nothing, and one need be no member."""
    return (yield from _claim(0, dict.fromkeys(subscriptions, 0)))[0]


def _claim(member: int, most: Mapping[int, int]) -> Plan[tuple[Claim, list[Held]]]:
    params = {"member": member, "subscriptions": list(most), "most": list(most.values())}
    rows = yield from Query(SQL["claim"], params, same)
    claim, missing, handed = Claim(), [], []
    for row in rows:
        if row[3] is None:
            claim.states[row[0]] = row[1]
            claim.horizon = row[4]
            if row[2] is not None:
                claim.due[row[0]] = max(row[2], 0.001)
        elif row[7] is None:
            missing.append(Held(row[0], row[3], row[4], row[6], row[5], None))  # type: ignore[arg-type]  # nobody gets it
        else:
            handed.append(row)
    events = read_events([(row[3], *row[7:]) for row in handed])
    claim.held = [
        Held(row[0], row[3], row[4], row[6], row[5], event) for row, event in zip(handed, events, strict=True)
    ]
    return claim, missing


def beat(members: Iterable[Member]) -> Plan[None]:
    """Renew the leases of members of this process, or learn that they are lost. Looks after those that fell silent."""
    ids = {each.id: each for each in members}
    sent = time.monotonic()
    renewed, silent = (yield from Query(SQL["beat"], {"members": list(ids)}, same))[0]
    for id_, each in ids.items():
        if each.id == id_:  # and not a new one meanwhile
            each.renewed(sent if id_ in renewed else None)
    if silent:
        yield from rescue()


def rescue() -> Plan[None]:
    """End members that have fallen silent, and put back what they hold."""
    back = yield from Query(SQL["rescue"], {}, whole)
    if back:
        log.warning("put back %s message(s) of members that fell silent", back)


def acknowledge(held: Sequence[Held]) -> Plan[tuple[list[Held], int]]:
    """End deliveries; returns those that were refused, and how many others have become due by it."""
    params = {
        "subscriptions": [each.subscription for each in held],
        "positions": [each.position for each in held],
        "tokens": [each.token for each in held],
    }
    accepted, freed = (yield from Query(SQL["acknowledge"], params, same))[0]
    if len(accepted) == len(held):
        return [], freed
    kept = set(accepted)
    return [each for place, each in enumerate(held, 1) if place not in kept], freed


def check_closed(held: Held) -> Plan[None]:
    """Raise when a transaction that has acknowledged a message is still open, perhaps in this very thread.

    Raises:
        SubscriptionError: it is.
    """
    params = {"subscription": held.subscription, "position": held.position}
    try:
        yield from Query(SQL["touch"], params, nothing)
    except Exception as error:
        if not lock_not_available(error):
            raise
        raise SubscriptionError(
            f"message {held.position} was acknowledged in a transaction that is still open: its end decides"
        ) from error


def put_back(
    held: Held,
    delay: float,
    *,
    begun: bool = True,
    failed: bool = False,
    reason: str | None = None,
    failure: Failure | None = None,
) -> Plan[str | None]:
    """End the holding of a delivery without its being done.

    Args:
        held: which one.
        delay: in how many seconds it may be delivered again.
        begun: whether it was worked on, which counts as a delivery.
        failed: whether that counts as a failure.
        reason: why it is dead, if it is.
        failure: what went wrong.

    Returns:
        "again"; "dead", when what comes after it goes on; "held", when that was put back with the dead one; or
        None when it is not ours.
    """
    params: dict[str, Any] = {
        "subscription": held.subscription,
        "position": held.position,
        "token": held.token,
        "delay": delay,
        "failed": int(failed),
        "delivered": int(begun),
        "reason": reason,
        "fingerprint": failure.fingerprint if failure else None,
        "error": failure.json() if failure else None,
    }
    return (yield from Query(SQL["put_back"], params, one))  # type: ignore[no-any-return]  # `one` is any row


def check_state(known: Known, state: str | None) -> Plan[None]:
    """Raise when a subscription cannot go on by itself.

    Raises:
        SubscriptionNotFound: it was deleted.
        RetentionGap: retention has dropped events that it has not delivered.
    """
    if state == "gone":
        raise SubscriptionNotFound(f"subscription {known.name!r} was deleted")
    if state == "gap":
        rows = yield from Query(SQL["gap"], {"subscription": known.id}, same)
        if rows and rows[0][1] < rows[0][2]:
            name, claimed, dropped = rows[0]
            raise RetentionGap(
                f"events of positions {claimed + 1} to {dropped} were dropped by retention before subscription "
                f"{name!r} delivered them; seek({name!r}, 'earliest') goes on with what is left",
                claimed + 1,
                dropped,
            )
