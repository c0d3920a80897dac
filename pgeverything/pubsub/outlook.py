"""One look at the log for all broadcasts of a process: what one of them has just seen, the others need not ask."""

from __future__ import annotations

import os
import time

from ..engine.plan import Plan
from ..events.read import horizon
from .pace import Pace


class Outlook:
    """How far the log can be read, as far as anybody here has asked; and whether publishers are asked for hints."""

    def __init__(self) -> None:
        self._upto, self._looked_at = 0, float("-inf")
        self._open = 0
        self.asking = Pace(int.from_bytes(os.urandom(8)) >> 1)

    def begin(self) -> None:
        """One more reads."""
        self._open += 1

    def horizon(self, after: int, since: float) -> Plan[int]:
        """Return how far a reader may go who is at `after`.

        What was seen once holds for ever; that there was nothing new holds when somebody has looked `since` that time
        of the monotonic clock.
        """
        if self._upto > after:
            return self._upto
        if self._looked_at >= since:
            return after
        began = time.monotonic()
        found = yield from horizon(after)
        self._upto = max(self._upto, found)
        self._looked_at = began
        return found

    def end(self) -> Plan[None]:
        """One reads no more; the last one asks for no more hints."""
        self._open -= 1
        if self._open == 0:
            yield from self.asking.awake()
