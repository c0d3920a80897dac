"""How tests wait: for a condition, and so long that only a failure ever waits to the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 90.0  # seconds


def eventually(
    condition: Callable[[], T], what: str | Callable[[], str] = "what was waited for", within: float = PATIENCE
) -> T:
    """Wait until `condition()` is true and return what it returned; fail with `what` when it never becomes so."""
    deadline = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.005)
    return found


async def until(condition: Callable[[], Any], what: str = "what was waited for", within: float = PATIENCE) -> None:
    """Wait until a condition holds that may be a question to the database, while the event loop goes on."""
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(condition):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        await asyncio.sleep(0.005)
