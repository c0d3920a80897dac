"""The messages in the hands of one process: taken, running, and handled but not acknowledged.

Those of one lane run one after the other: the next one starts when the one before it is acknowledged.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Iterable, Mapping

from ..pubsub.values import Held

_MOST_AHEAD = 500  # messages ready ahead of the handlers
_AHEAD_SECONDS = 0.1  # how much work a process may hold that nobody else can take


class Inbox:
    """Counts what is held, and says how much more to claim.

    Args:
        concurrency: how many handlers run at once.
        most: how many messages of each subscription may be in our hands.
    """

    def __init__(self, concurrency: int, most: Mapping[int, int]) -> None:
        self._concurrency, self._most = concurrency, dict(most)
        self.held: dict[int, Held] = {}  # by identity: a message may be here again while its last delivery ends
        self.running = 0
        self._ready: asyncio.Queue[Held] = asyncio.Queue()
        # The one that is ready or runs, and those behind it; a message without a key is in none.
        self._lanes: dict[tuple[int, int | None], deque[Held]] = {}
        self._counts: Counter[int] = Counter()
        self._average: float | None = None
        self._room = asyncio.Event()

    def replace(self, subscription: int, new: int) -> None:
        """Have as many of a new subscription as there could be of an old one."""
        self._most[new] = self._most.pop(subscription)

    def take(self, messages: Iterable[Held]) -> None:
        """Take messages into our hands, in the order of positions."""
        for held in messages:
            self.held[id(held)] = held
            self._counts[held.subscription] += 1
            if held.lane is None:
                self._ready.put_nowait(held)
            elif (lane := self._lanes.get((held.subscription, held.lane))) is not None:
                lane.append(held)
            else:
                self._lanes[held.subscription, held.lane] = deque([held])
                self._ready.put_nowait(held)

    async def next(self) -> Held:
        """Return the next message to handle, when there is one."""
        held = await self._ready.get()
        self.running += 1
        return held

    def ran(self, took: float) -> None:
        """Note that a handler has ended after so many seconds."""
        self.running -= 1
        self._average = took if self._average is None else self._average + (took - self._average) * 0.05
        self._room.set()

    def pass_on(self, held: Held) -> None:
        """Let the next message of its lane go, if it is still the one that they wait for."""
        if (lane := self._lane(held)) is not None:
            lane.popleft()
            if lane:
                self._ready.put_nowait(lane[0])
            else:
                del self._lanes[held.subscription, held.lane]

    def _lane(self, held: Held) -> deque[Held] | None:
        """Return the lane that it is at the head of: after a lease was lost there may be a new one of that number."""
        if held.lane is None:
            return None
        lane = self._lanes.get((held.subscription, held.lane))
        return lane if lane is not None and lane[0] is held else None

    def drop_lane(self, held: Held) -> None:
        """Let go of what comes after it in its lane: it was put back with it."""
        if (lane := self._lane(held)) is not None:
            del self._lanes[held.subscription, held.lane]
            for other in list(lane)[1:]:
                other.lost = True
                self.drop(other)

    def drop(self, held: Held) -> None:
        """Let go of one message."""
        if self.held.pop(id(held), None) is not None:
            self._counts[held.subscription] -= 1
            self._room.set()

    def unstarted(self) -> list[Held]:
        """Take back out what has not started: of each lane only the first, with which the others go."""
        first = []
        while not self._ready.empty():
            first.append(self._ready.get_nowait())
        for held in first:
            self.drop_lane(held)
            self.drop(held)
        for lane in self._lanes.values():  # behind those that run
            first += list(lane)[1:2]
            while len(lane) > 1:
                self.drop(lane.pop())
        return first

    def lose(self) -> list[Held]:
        """Let go of everything; returns what is running, or handled and not acknowledged."""
        while not self._ready.empty():
            held = self._ready.get_nowait()
            self.drop_lane(held)
            self.drop(held)
        for lane in list(self._lanes.values()):
            self.drop_lane(lane[0])
        left = list(self.held.values())
        for held in left:
            held.lost = True
        return left

    def wanted(self) -> dict[int, int]:
        """How many messages of each subscription to claim now; nothing when there is enough to do."""
        ahead = 0
        if self._average is not None:
            ahead = min(_MOST_AHEAD, int(self._concurrency * _AHEAD_SECONDS / max(self._average, 1e-6)))
        wanted = self._concurrency - self.running + ahead - self._ready.qsize()
        if wanted <= 0 or wanted < ahead // 2:
            return {}
        share = -(-wanted // len(self._most))
        room = {each: min(share, most - self._counts[each]) for each, most in self._most.items()}
        return {each: count for each, count in room.items() if count > 0}

    async def room(self, longest: float) -> dict[int, int]:
        """Wait until there is room for more, at most so many seconds."""
        self._room.clear()
        if not (wanted := self.wanted()):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(longest):
                    await self._room.wait()
            wanted = self.wanted()
        return wanted
