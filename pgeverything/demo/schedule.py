"""The demo's schedule: every second, twice, on the workers that are there anyway."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..app import PgEverything
from ..scheduler import Tick
from .tasks import PROBE

_NAME, _TICKS = "every-second", 2
_PATIENCE = 30.0
_LOOK = 0.1


@dataclass(frozen=True, slots=True)
class Ticks:
    """What became of the schedule: its ticks, and how many seconds after each its job was enqueued."""

    ran: int
    delays: tuple[float, ...]


def run(pg: PgEverything, say: Callable[[str], object], check: Callable[[], object]) -> Ticks:
    """Add a schedule that ticks twice, and wait until it has.

    Args:
        pg: the demo's schema.
        say: told what happens.
        check: raises when the workers have ended.
    """
    pg.scheduler.add(_NAME, "probe", every="1s", remaining=_TICKS, queue=PROBE)
    say(f"added a schedule that ticks every second, {_TICKS} times")
    deadline = time.monotonic() + _PATIENCE
    while pg.scheduler.get(_NAME).state != "ended" and time.monotonic() < deadline:
        check()
        time.sleep(_LOOK)
    return measure(pg.scheduler.history(_NAME))


def measure(history: list[Tick]) -> Ticks:
    """Count the ticks that ran, and how late each was."""
    ran = [tick for tick in reversed(history) if tick.outcome == "ran"]
    return Ticks(len(ran), tuple((tick.at - tick.tick).total_seconds() for tick in ran))
