"""How often to look: soon after there was something, ever more seldom when there is nothing, until a hint comes."""

from __future__ import annotations

import random
import time

from ..engine.plan import Plan, Query, nothing
from ..engine.statements import statements

SQL = statements("events")

_FIRST = 0.02  # seconds: the first pause
_SLOWER = 1.25  # how much longer the next one is: so a pause is a fifth of the time since there was something
_SLOWER_HINTED = 4.0
_MOST, _MOST_HINTED = 1.0, 30.0
_CROWDED, _MOST_CROWDED = 0.005, 0.25
_ASLEEP = 75.0  # seconds for which publishers are asked to send hints
_BUSY = 1.0  # seconds of uninterrupted work after which they are asked not to


class Pace:
    """The pauses between looks, and whether publishers are asked for hints.

    A reader that can be told of new events says so in the database, looks once more, and sleeps. A publisher that began
    before that and commits later sends no hint, and one that stood in the way of others may end without one: so pauses
    begin short and grow fourfold, and what was held up is found after about three times as long again at most. Where
    polling is all there is they grow by a quarter: an event is found after a tenth of the time since the last one, on
    average.

    Args:
        id: a number that no other reader has.
        most: the longest pause; by default 30 s with hints and 1 s without.
    """

    def __init__(self, id: int = 0, most: float | None = None) -> None:  # noqa: A002
        self.id, self._most = id, most
        self._pause, self._crowded = _FIRST, _CROWDED
        self._asked_until = 0.0
        self._idle_since: float | None = None

    def found(self) -> None:
        """There was something, or a hint that there may be."""
        self._pause, self._crowded = _FIRST, _CROWDED

    def crowded(self) -> float:
        """Return how long to sleep when somebody else is claiming, who may also hold the subscription for an hour."""
        now = self._crowded
        self._crowded = min(now * 1.1, _MOST_CROWDED)
        return now * random.uniform(0.4, 1.6)  # noqa: S311

    def pause(self, next_due: float, *, hinted: bool) -> float:
        """Return how long to sleep now; `next_due` is when something is known to be due."""
        self._crowded = _CROWDED
        most = self._most if self._most is not None else _MOST_HINTED if hinted else _MOST
        now = min(self._pause, most)
        self._pause = min(now * (_SLOWER_HINTED if hinted else _SLOWER), most)
        return min(now * random.uniform(0.9, 1.1), next_due)  # noqa: S311 - so that members do not look in step

    def ask(self, *, hinted: bool) -> Plan[bool]:
        """Ask publishers for hints, unless they know; returns whether it did, and then one has to look once more."""
        if not hinted or time.monotonic() < self._asked_until - _MOST_HINTED - 5.0:
            return False
        before, self._asked_until = self._asked_until, time.monotonic() + _ASLEEP  # one of those who share it will do
        try:
            yield from Query(SQL["sleep"], {"id": self.id, "seconds": _ASLEEP}, nothing)
        except BaseException:
            self._asked_until = before
            raise
        return True

    def working(self, busy_since: float) -> Plan[None]:
        """Ask them not to any more, after a while of uninterrupted work: a hint costs a publisher something."""
        if self._asked_until and time.monotonic() - busy_since > _BUSY:
            yield from self.awake()

    def awake(self) -> Plan[None]:
        """Ask for no hints."""
        if self._asked_until:
            self._asked_until = 0.0
            yield from Query(SQL["awake"], {"id": self.id}, nothing)
