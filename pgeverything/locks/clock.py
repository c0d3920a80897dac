"""The clock that leases are measured on."""

from __future__ import annotations

import sys
import time

# It has to go on while the machine sleeps, as the server's clock does. `time.monotonic()` stands still then, on Linux
# and on macOS. No clock of a virtual machine shows that its host has paused it; the guard does not need one.
if sys.platform == "linux":
    _CLOCK = time.CLOCK_BOOTTIME
elif sys.platform == "darwin":
    _CLOCK = time.CLOCK_MONOTONIC
else:
    _CLOCK = None


def now() -> float:
    """Return seconds on a clock that is never set and never stands still."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
