"""A command that runs while we hold a lock: its signals, its end, and what happens when the lease is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

from .output import say

if TYPE_CHECKING:
    from ..locks import Lease

_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_FROM_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # which sends them to the command as well
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # as shells say it


class Running:
    """A command under a lock.

    Args:
        command: the program and its arguments.
        grace: seconds from SIGTERM to SIGKILL when the lease is lost.
    """

    def __init__(self, command: Sequence[str], grace: float) -> None:
        self._command, self._grace = command, grace
        self._process: subprocess.Popen[bytes] | None = None
        self._lost, self._ended = threading.Event(), threading.Event()
        # In the foreground of a terminal the command must stay in our process group, or it could not read from there.
        self._foreground = _in_foreground()

    def run(self, lease: Lease) -> int:
        """Run it to its end and return the exit code to pass on."""
        environment = os.environ | {
            "PGEVERYTHING_LOCK": lease.name,
            "PGEVERYTHING_LOCK_TOKEN": str(lease.token),
        }
        with self._passing_signals_on():
            try:
                self._process = subprocess.Popen(  # noqa: S603 - what the person asked for
                    self._command, env=environment, process_group=None if self._foreground else 0
                )
            except OSError as error:
                say(f"{self._command[0]}: {error.strerror}")
                return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
            if self._lost.is_set():  # before there was something to stop
                threading.Thread(target=self._stop, daemon=True).start()
            code = self._process.wait()
            self._ended.set()
        code = 128 - code if code < 0 else code
        return code or 1 if lease.lost else code

    def lost(self, lease: Lease) -> None:
        """Stop the command: somebody else may have the lock soon. Called in a thread of its own."""
        say(f"the lease on {lease.name!r} is lost: stopping the command")
        self._lost.set()
        if self._process is not None:
            self._stop()

    def _stop(self) -> None:
        self._send(signal.SIGTERM)
        if not self._ended.wait(self._grace):
            say(f"it is still there after {self._grace:g} s: killing it")
            self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        if self._process is None or self._ended.is_set():
            return
        with suppress(ProcessLookupError):
            if self._foreground:
                os.kill(self._process.pid, number)
            else:
                os.killpg(self._process.pid, number)

    @contextmanager
    def _passing_signals_on(self) -> Iterator[None]:
        def pass_on(number: int, _frame: FrameType | None) -> None:
            if not (self._foreground and number in _FROM_THE_TERMINAL):
                self._send(number)

        before = _handle(_PASSED_ON, pass_on)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a wait as Ctrl-C does: so that it leaves the line."""

    def end(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = _handle((signal.SIGTERM, signal.SIGHUP), end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_foreground() -> bool:
    """Whether we read from the terminal that we belong to; it may also be one of another session, as under `setsid`."""
    try:
        return os.isatty(0) and os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False


def _handle(numbers: Sequence[signal.Signals], handler: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Handle these signals, but for those that we were started to ignore, as by `nohup`; return what was before."""
    wanted = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}
