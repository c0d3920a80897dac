"""What an open `subscribe()` reads from: the log itself, or a durable subscription that members share."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from ..durations import Duration, seconds
from ..engine.plan import Plan, Query, Sleep, Watch, Watching, whole
from ..engine.refusals import unreachable
from ..engine.statements import statements
from ..errors import MessageLost, SubscriptionError
from ..events.patterns import Topics
from ..events.read import batch, horizon
from ..events.values import Event
from ..retry import Retry
from .manage import Known, create
from .member import SUSPICION, Member, acknowledge, check_closed, check_state, put_back
from .outlook import Outlook
from .pace import Pace
from .values import Held

log = logging.getLogger("pgeverything.pubsub")
EVENTS = statements("events")

T = TypeVar("T")

_BATCH = 1000
_LONGEST_TROUBLE = 5.0
_AHEAD = 0.5  # seconds of work that a member takes ahead, and nobody else can have
_FULL = 0.02  # seconds between looks for room when all that may be in flight is
_APART = 0.001  # seconds between looks whether a claim, or a nack in another thread, is over
_EVER = 2**31
_FAILED = SubscriptionError("nack()")


def insist(make: Callable[[], Plan[T]], what: str) -> Plan[T]:
    """Run a plan until the database was there for it."""
    trouble = 0.1
    while True:
        try:
            return (yield from make())
        except Exception as error:
            if not unreachable(error):
                raise
            log.warning("lost the database, %s again in %.1f s: %s", what, trouble, error)
        yield Sleep(trouble)
        trouble = min(trouble * 2, _LONGEST_TROUBLE)


class Source:
    """What is read until it is closed, which may be in the middle of a wait."""

    def __init__(self) -> None:
        self.closed = False
        self._watching: Watching | None = None

    def close(self) -> None:
        """Wait no longer."""
        self.closed = True
        if (watching := self._watching) is not None:
            watching.event.set()


class Broadcast(Source):
    """Every event from now on; the cursor is here."""

    def __init__(self, topics: Topics, timeout: float | None, outlook: Outlook) -> None:
        super().__init__()
        self._topics, self._timeout, self._outlook = topics, timeout, outlook
        self._position = 0
        self._pace = Pace()

    def begin(self) -> Plan[None]:
        """Fix where it begins."""
        dropped = yield from Query(EVENTS["dropped"], {}, whole)
        self._position = yield from horizon(dropped)
        self._outlook.begin()

    def more(self) -> Plan[list[Event]]:
        """Wait for the next events; none when there were none for as long as was to be waited."""
        return (yield from insist(self._more, "looking"))

    def _more(self) -> Plan[list[Event]]:
        began = since = time.monotonic()
        with (yield from Watch("events:")) as watching:
            self._watching = watching
            while not self.closed:
                upto = yield from self._outlook.horizon(self._position, since)
                if upto > self._position:
                    found = yield from batch(self._topics, after=self._position, upto=upto, limit=_BATCH)
                    self._position = found[-1].position if len(found) == _BATCH else upto
                    self._pace.found()
                    if found:
                        return found
                    continue
                if (left := _left(self._timeout, began)) <= 0:
                    return []
                hinted = watching.channel is not None
                if (yield from self._outlook.asking.ask(hinted=hinted)):
                    since = time.monotonic()
                    continue
                pause = self._pace.pause(left, hinted=hinted)
                since = time.monotonic() + pause / 2  # who wakes up a little later than another need not ask
                if (yield from watching.wait(pause)):
                    self._pace.found()
                    since = time.monotonic()
            return []

    def settle(self, done: bool, delay: Duration | None) -> None:  # noqa: ARG002
        """Refuse what only a durable subscription can do."""
        if not done:
            raise SubscriptionError("a broadcast delivers nothing again: subscribe(..., name=...) makes it durable")

    def end(self) -> Plan[None]:
        """Leave."""
        yield from self._outlook.end()


class Durable(Source):
    """A member of a durable subscription. All but `settle` and `beat` is called by one thread at a time."""

    def __init__(
        self,
        pattern: str,
        name: str,
        start: dict[str, Any],
        settings: dict[str, Any],
        outlook: Outlook,
        *,
        retry: Retry,
        max_in_flight: int,
        lease: float,
        timeout: float | None,
    ) -> None:
        super().__init__()
        self._pattern, self._name, self._start, self._settings = pattern, name, start, settings
        self._outlook = outlook
        self._retry, self._most, self._lease, self._timeout = retry, max_in_flight, lease, timeout
        self._known: Known | None = None
        self.member: Member | None = None
        self._pace = Pace()
        self._ahead: deque[Held] = deque()
        self._hand: dict[int, Held] = {}  # by position: what is not settled, taken ahead or given out
        self._size, self._given, self._handed_at = 1, 0, 0.0
        self._suspected_at: float | None = None
        self._claiming = self._warned = False
        self._nacks: set[int] = set()  # positions that are being put back
        self.beating: asyncio.Task[None] | None = None  # renews the lease in an event loop

    def begin(self) -> Plan[None]:
        """Create the subscription, or find it, and become a member."""
        known = yield from create(self._name, self._pattern, self._start, self._settings)
        member = Member([known], self._lease)
        yield from member.register()
        self._known, self.member = known, member
        self._outlook.begin(member)

    def next(self) -> Held | None:
        """Return the next message that was taken ahead, if there is one that is still ours."""
        assert self.member is not None  # noqa: S101
        if not self.member.trusted:
            self.lose()
            return None
        while self._ahead:
            held = self._ahead.popleft()
            if not held.lost:
                return held
        return None

    def more(self) -> Plan[bool]:
        """Wait until there are messages to hand out; returns whether there are."""
        return (yield from insist(self._more, "claiming"))

    def _more(self) -> Plan[bool]:
        began = since = time.monotonic()
        waited = False  # whether there was nothing to do, so that it is time to look after the others here too
        assert self._known is not None  # noqa: S101
        known, outlook = self._known, self._outlook
        with (yield from Watch("events:")) as watching:
            self._watching = watching
            while not self.closed:
                yield from self._keep_up()
                if (room := min(self._next_size(), self._most - len(self._hand))) <= 0:
                    if _left(self._timeout, began) <= 0:
                        return False
                    yield from self._full(began)
                    continue
                if (due := outlook.quiet(known.id, since)) is None:
                    others = dict.fromkeys(outlook.subscriptions, 0) if waited else {}
                    claim = yield from self._claim(others | {known.id: room})
                    state, due = claim.states.get(known.id), claim.due.get(known.id, float("inf"))
                    if state == "lost":
                        self.lose()
                        continue
                    if claim.held:
                        self._size = len(claim.held)
                        self._handed_at = time.monotonic()
                        self._pace.found()
                        return True
                    yield from check_state(known, state)
                    if state == "more":
                        self._pace.found()
                        continue
                    if state == "busy" and _left(self._timeout, began) > 0:
                        yield Sleep(self._pace.crowded())
                        continue
                if (left := _left(self._timeout, began)) <= 0:
                    return False
                hinted = watching.channel is not None
                if (yield from outlook.asking.ask(hinted=hinted)):
                    since = time.monotonic()
                    continue
                pause = self._pace.pause(min(left, due), hinted=hinted)
                since = time.monotonic() + pause / 2  # who wakes up a little later than another need not look
                waited = not (yield from watching.wait(pause))
                if not waited:
                    self._pace.found()
                    since = time.monotonic()
            return False

    def _full(self, since: float) -> Plan[None]:
        """Wait for room: others may settle what they hold, in their own threads."""
        if not self._warned and time.monotonic() - since > 10.0:
            self._warned = True
            log.warning(
                "subscription %r: max_in_flight=%s messages are not acknowledged; waiting for room",
                self._name,
                self._most,
            )
        yield Sleep(_FULL)

    def _claim(self, most: dict[int, int]) -> Plan[Any]:
        assert self.member is not None  # noqa: S101
        while True:
            self._claiming = True
            if not self._nacks:
                break
            self._claiming = False
            yield Sleep(_APART)
        began = time.monotonic()
        try:
            claim = yield from self.member.claim(most)
            self._take(claim.held)
            self._outlook.saw(claim, began)
        except BaseException:  # Ctrl-C and a cancelled task too
            self._suspected_at = time.monotonic()  # it may have gone through without its answer reaching us
            raise
        finally:
            self._claiming = False
        return claim

    def _take(self, messages: list[Held]) -> None:
        for held in messages:
            held.hand = self._hand
            self._hand[held.position] = held
        self._ahead.extend(messages)

    def _keep_up(self) -> Plan[None]:
        """Be a member, and hold nothing that we do not know of."""
        member = self.member
        assert member is not None  # noqa: S101
        if not member.trusted:
            self.lose()
            yield from member.leave()
            yield from member.register()
            self._suspected_at = None
        elif self._suspected_at is not None:
            yield from member.put_back_unknown(self._hand.values())
            if time.monotonic() - self._suspected_at > SUSPICION:
                self._suspected_at = None

    def _next_size(self) -> int:
        """How many to take: twice as many as the last time when those were short work, else less."""
        took = time.monotonic() - self._handed_at
        return max(1, min(_BATCH, self._size * 2 if took < _AHEAD else int(self._size * _AHEAD / took)))

    def lose(self) -> None:
        """Hold nothing any more: the lease is over."""
        for held in list(self._hand.values()):
            held.lost = True
        self._hand.clear()
        self._ahead.clear()

    def settle(self, held: Held, done: bool, delay: Duration | None) -> Plan[None]:
        """Acknowledge a message, or give it back.

        Raises:
            MessageLost: it is not ours any more.
            SubscriptionError: it was acknowledged in a transaction that is still open.
        """
        length = None if delay is None else seconds(delay, "delay")
        if held.lost:
            raise lost(held, self._name)
        if held.settled:
            return
        if held.tried:
            yield from check_closed(held)
        refused = (yield from self._acknowledge(held)) if done else (yield from self._nack(held, length))
        held.settled = True
        held.let_go()
        if refused:
            held.lost = True
            raise lost(held, self._name)

    def _acknowledge(self, held: Held) -> Plan[bool]:
        """Acknowledge one message, again when the connection was lost with the answer; returns whether it was refused.

        What a repeated acknowledgement does not find, the first one has ended, or somebody who sought; unless the lease
        was lost meanwhile, and somebody else may have it.
        """
        assert self.member is not None  # noqa: S101
        try:
            return bool((yield from acknowledge([held]))[0])
        except Exception as error:
            if not unreachable(error):
                raise
        refused, _ = yield from insist(lambda: acknowledge([held]), "acknowledging")
        return bool(refused) and (held.lost or not self.member.trusted)

    def _nack(self, held: Held, delay: float | None) -> Plan[bool]:
        if delay is None:
            delay = self._retry.next_delay(held.delivery, _FAILED, _EVER) or 0.0
        self._nacks.add(held.position)
        try:
            while self._claiming:  # in another thread: it would still give us what comes after this one
                yield Sleep(_APART)
            answer = yield from put_back(held, delay, failed=True)
            self._put_back_with(held, answer)
        finally:
            self._nacks.discard(held.position)
        return answer is None

    def _put_back_with(self, held: Held, answer: str | None) -> None:
        """Let go of what was put back with a message: what comes after it in its lane, unless that skips it."""
        if answer != "dead":
            for other in list(self._hand.values()):  # they were put back with it
                if other.follows(held):
                    other.lost = True
                    other.let_go()

    def put_back_ahead(self) -> Plan[None]:
        """Put back what was not handed out: of each key the first, with which the others go."""
        lanes = set()
        while self._ahead:
            held = self._ahead.popleft()
            first = held.lane is None or held.lane not in lanes
            lanes.add(held.lane)
            held.let_go()
            if first and not held.lost:
                yield from put_back(held, 0.0, begun=False)

    def end(self) -> Plan[None]:
        """Put back what is held and be no member any more."""
        if self.member is not None:
            self.lose()
            yield from self._outlook.end(self.member)
            yield from self.member.leave()

    def beat(self) -> Plan[bool]:
        """Renew the lease; returns whether it still was one."""
        assert self.member is not None  # noqa: S101
        return (yield from self._outlook.beat(self.member))


def lost(held: Held, name: str) -> MessageLost:
    """Return the error that says so."""
    return MessageLost(
        f"message {held.position} of subscription {name!r} is not this member's any more: its lease was lost, an "
        "earlier message of its key was put back, or somebody moved the subscription"
    )


def _left(timeout: float | None, began: float) -> float:
    return float("inf") if timeout is None else began + timeout - time.monotonic()
