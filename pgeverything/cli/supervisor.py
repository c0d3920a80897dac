"""Several worker processes and the one that looks after them."""

from __future__ import annotations

import contextlib
import logging
import selectors
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

log = logging.getLogger("pgeverything.supervisor")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds before a crashed process is started again, doubling
_STEADY = 60.0  # seconds after which a process counts as having worked, and its next crash as its first
_HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@dataclass(slots=True)
class _Slot:
    """The place of one child, through all its lives."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    line: socket.socket | None = None  # our end: the child says on it that it is ready, and sees there that we ended
    ready: bool = False  # one of its lives has worked
    started: float = 0.0
    pause: float = _FIRST_PAUSE
    next_start: float | None = 0.0  # None: it is over


class Supervisor:
    """Starts worker processes, starts them again when they crash, and ends them together.

    The first signal is passed on once, so that they drain; the second kills. Each child has a process group of its own:
    Ctrl-C reaches only this process, and is not counted twice. A child whose supervisor is killed drains by itself.

    Args:
        command: returns the command line of child number n, from 1; `--supervised=FD` is added to it.
        processes: how many.
        restart: whether a child that ends is started again.
        parent: the socket to the process that started this one, if that wants to know and be followed.
    """

    def __init__(
        self, command: Callable[[int], list[str]], processes: int, *, restart: bool, parent: socket.socket | None = None
    ) -> None:
        self._command, self._restart, self._parent = command, restart, parent
        self._slots = [_Slot(number) for number in range(1, processes + 1)]
        self._stopping = False
        self._code = 0

    def run(self) -> int:
        """Supervise until all is over; return the exit code.

        0 when every child ended well, 1 when one did not, the child's own code when the first cannot even start, 128
        and the signal's number when a second signal cut it short.
        """
        try:
            with selectors.DefaultSelector() as self._selector, self._signals() as signals:
                self._selector.register(signals, selectors.EVENT_READ)
                if self._parent is not None:
                    self._parent.set_inheritable(False)
                    self._selector.register(self._parent, selectors.EVENT_READ)
                while self._start_due():
                    for key, _ in self._selector.select(self._until_next_start()):
                        self._handle(key.fileobj, signals)
                    self._bury_dead()
        finally:
            self._kill()
        return self._code

    @contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """Turn signals into bytes, each its number, on the socket that is yielded."""
        reader, writer = socket.socketpair()
        with reader, writer:
            writer.setblocking(False)
            before = {number: signal.signal(number, lambda *_: None) for number in _HANDLED}
            wakeup = signal.set_wakeup_fd(writer.fileno())
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(wakeup)
                for number, handler in before.items():
                    signal.signal(number, handler)

    def _handle(self, source: object, signals: socket.socket) -> None:
        if source is signals:
            for number in signals.recv(4096):
                if number != signal.SIGCHLD:
                    self._on_signal(number)
        elif self._parent is not None and source is self._parent:
            self._selector.unregister(self._parent)
            self._stop("the process that started this one has ended")
        else:
            slot = next(slot for slot in self._slots if slot.line is source)
            self._hear(slot)

    def _on_signal(self, number: int) -> None:
        if self._stopping:
            log.warning("second signal: killing what runs; other workers rescue its jobs")
            self._code = 128 + number
            self._kill()
        else:
            self._stop(signal.Signals(number).name)

    # Children --------------------------------------------------------------------------------------------------------

    def _start_due(self) -> bool:
        """Start the children whose time has come; return whether any lives or will.

        The first goes ahead alone until it is ready, so that what keeps all of them from starting is said once.
        """
        first = self._slots[0]
        for slot in self._slots:
            if self._stopping or slot.next_start is None or slot.process is not None:
                continue
            if slot is not first and not first.ready:
                continue
            if time.monotonic() >= slot.next_start:
                self._start(slot)
        return any(slot.process is not None or slot.next_start is not None for slot in self._slots)

    def _start(self, slot: _Slot) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            slot.process = subprocess.Popen(  # noqa: S603 - our own command line
                [*self._command(slot.number), f"--supervised={theirs.fileno()}"],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,
            )
        ours.setblocking(False)  # a process that a handler forked may hold the other end open
        slot.line, slot.started = ours, time.monotonic()
        self._selector.register(ours, selectors.EVENT_READ)
        log.info("worker %s is process %s", slot.number, slot.process.pid)

    def _until_next_start(self) -> float | None:
        """In how many seconds something must be started again; None when only an event can change anything."""
        first = self._slots[0]
        times = [
            slot.next_start
            for slot in self._slots
            if slot.process is None and slot.next_start is not None and (slot is first or first.ready)
        ]
        return max(min(times) - time.monotonic(), 0.0) if times else None

    def _hear(self, slot: _Slot) -> None:
        assert slot.line is not None  # noqa: S101 - it was selected
        try:
            said = slot.line.recv(64)
        except BlockingIOError:
            return
        if not said:  # closed: the child is ending; SIGCHLD says when it has
            self._selector.unregister(slot.line)
        elif not slot.ready:
            slot.ready = True
            if self._parent is not None and all(each.ready for each in self._slots):
                with contextlib.suppress(OSError):  # it has ended; the other direction tells us so
                    self._parent.send(b"r")

    def _bury_dead(self) -> None:
        for slot in self._slots:
            if slot.process is not None and (code := slot.process.poll()) is not None:
                self._ended(slot, slot.process.pid, code)

    def _ended(self, slot: _Slot, pid: int, code: int) -> None:
        if slot.line is not None:
            if slot.line in self._selector.get_map():
                self._hear(slot)  # it may have become ready and ended since we looked
            if slot.line in self._selector.get_map():
                self._selector.unregister(slot.line)
            slot.line.close()
        slot.process = slot.line = None
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        if self._stopping:
            slot.next_start = None
            if code not in (0, -signal.SIGTERM):  # a child that did not listen to signals yet dies of ours
                log.error("worker %s (process %s) ended with %s", slot.number, pid, how)
                self._code = self._code or 1
        elif code != 0 and not slot.ready:
            log.error("worker %s (process %s) could not start: %s", slot.number, pid, how)
            self._code = code if code > 0 else 1
            self._stop("a worker cannot start")
        elif not self._restart:
            slot.ready, slot.next_start = True, None
            if code != 0:
                log.error("worker %s (process %s) ended with %s", slot.number, pid, how)
                self._code = 1
        else:
            if time.monotonic() - slot.started >= _STEADY:
                slot.pause = _FIRST_PAUSE
            log.warning("worker %s (process %s) ended with %s: again in %g s", slot.number, pid, how, slot.pause)
            slot.next_start = time.monotonic() + slot.pause
            slot.pause = min(slot.pause * 2, _LONGEST_PAUSE)

    # The end ---------------------------------------------------------------------------------------------------------

    def _stop(self, why: str) -> None:
        """Have every child drain."""
        if self._stopping:
            return
        log.info("%s: stopping %s worker(s)", why, sum(slot.process is not None for slot in self._slots))
        self._stopping = True
        for slot in self._slots:
            slot.next_start = None
            if slot.process is not None:
                slot.process.send_signal(signal.SIGTERM)

    def _kill(self) -> None:
        """Leave no child behind."""
        for slot in self._slots:
            slot.next_start = None
            if slot.process is not None:
                slot.process.kill()
                slot.process.wait()
            if slot.line is not None:
                slot.line.close()
            slot.process = slot.line = None
