"""Ends a program's work at a signal: the first one drains, the second stops at once."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Callable, Coroutine

log = logging.getLogger("pgeverything.worker")


async def until_signalled(serve: Coroutine[object, object, None], stop: Callable[[], None]) -> None:
    """Run `serve` to its end; call `stop` at SIGTERM or SIGINT, and at a second signal let it kill the process.

    The handlers that were installed before are put back.
    """
    loop, serving = asyncio.get_running_loop(), asyncio.create_task(serve)
    asked = False

    def on_signal(number: int) -> None:
        nonlocal asked
        if asked:
            log.warning("second signal: stopping at once; what runs is rescued by other workers")
            signal.signal(number, signal.SIG_DFL)  # not sys.exit, which would wait for the handlers' threads
            signal.raise_signal(signal.Signals(number))
        else:
            log.info("%s: claiming nothing more, finishing what runs", signal.Signals(number).name)
            asked = True
            stop()

    before = {}
    if threading.current_thread() is threading.main_thread():  # nobody sends signals to another
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.getsignal(number)
            loop.add_signal_handler(number, on_signal, number)
    try:
        await serving
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # None: not one of Python's
                signal.signal(number, handler)  # the loop leaves the default behind, not the program's own
