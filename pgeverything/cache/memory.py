"""What a process keeps of the cache in its own memory."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from .entries import ANYTHING, hint
from .values import Stored

if TYPE_CHECKING:
    from ..engine.plan import Hints

LISTEN_FOR = 90.0  # seconds for which a process says that it wants to hear of invalidations
_SAY_EVERY = 30.0


def now() -> float:
    """Return seconds on a clock that is never set, and that goes on while the machine sleeps, as the server's does."""
    # On Linux `time.monotonic()` stands still then.
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


class Memory:
    """Entries by key: at most so many, those used last, each for at most `ttl` seconds from before it was read.

    So whatever is given out was in the database at some moment of the last `ttl` seconds. A hint that an entry was
    invalidated ends it earlier.

    Args:
        ttl: how long an entry may be given out, in seconds.
        most: how many to keep.
    """

    def __init__(self, ttl: float, most: int) -> None:
        self.ttl, self.most = ttl, most
        self.epoch = 0
        self._entries: OrderedDict[str, Draft] = OrderedDict()
        self._lock = threading.Lock()
        self._say_at = 0.0

    def __len__(self) -> int:
        return len(self._entries)

    def live(self, key: str) -> Stored | None:
        """Return what is kept of a key."""
        entry = self._entries.get(key)
        if entry is None or entry.stored is None:
            return None
        if now() >= entry.until:
            entry.drop()
            return None
        try:
            self._entries.move_to_end(key)
        except KeyError:
            return None  # invalidated this moment
        return entry.stored

    def must_say(self) -> bool:
        """Whether this process must say again that it wants to hear of invalidations."""
        if (at := now()) < self._say_at:
            return False
        self._say_at = at + _SAY_EVERY
        return True

    def keep(self, draft: Draft) -> None:
        """Keep what a draft has read, unless a hint came while it did."""
        gone = []
        with self._lock:
            if not draft.dropped and draft.epoch == self.epoch:
                if (old := self._entries.pop(draft.key, None)) is not None:
                    gone.append(old)
                self._entries[draft.key] = draft
                if len(self._entries) > self.most:
                    gone.append(self._entries.popitem(last=False)[1])
            else:
                gone.append(draft)
        for each in gone:
            each.stop()

    def remove(self, draft: Draft) -> None:
        """Keep a draft no longer, or not at all."""
        with self._lock:
            draft.dropped = True
            if self._entries.get(draft.key) is draft:
                del self._entries[draft.key]

    def clear(self) -> None:
        """Forget everything, also what is being read at this moment."""
        with self._lock:
            gone = list(self._entries.values())
            self._entries.clear()
            self.epoch += 1
        for each in gone:
            each.stop()


class Draft:
    """An entry that is being read, and is kept then.

    Its time runs from when it is made, and from then on it hears of invalidations: what it reads may be older than one
    that it hears of, so it is not kept then. Leave its `with` block when it has been read.

    Args:
        memory: where to keep it.
        key: the key.
        hints: where hints arrive; None where they cannot.
    """

    __slots__ = ("_memory", "_stops", "dropped", "epoch", "key", "stored", "until")

    def __init__(self, memory: Memory, key: str, hints: Hints | None) -> None:
        self._memory, self.key, self.epoch = memory, key, memory.epoch
        self.until = now() + memory.ttl
        self.stored: Stored | None = None
        self.dropped = False
        self._stops: list[Callable[[], None]] = []
        if hints is not None:
            self._stops = [hints.watch(hint([key]), self.drop), hints.watch(ANYTHING, self.drop)]

    def drop(self) -> None:
        """Keep it no longer, or not at all."""
        self._memory.remove(self)
        self.stop()

    def stop(self) -> None:
        """Hear no more. A hint and who reads may both say so at once."""
        with contextlib.suppress(IndexError):  # to look whether there is one left, and take it, are two steps
            while True:
                self._stops.pop()()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self.stored is None:
            self.stop()
        else:
            self._memory.keep(self)
