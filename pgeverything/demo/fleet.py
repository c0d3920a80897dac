"""The demo's worker processes: started as anybody would start them, and always ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..doctor.workers import WorkerStatus
from ..errors import PgEverythingError
from .tasks import JOURNAL, PARSE, PROBE, REPAIR, REPORT

LEASE = "4s"  # not the usual 30 s: a demo should not take that long to show a rescue
_PROCESSES, _CONCURRENCY = 2, 4
_START_SECONDS = 60.0
_DRAIN_SECONDS = 30.0


class DemoFailed(PgEverythingError):
    """The demo could not be run to its end."""


class Fleet:
    """The running ``pgeverything worker`` command and its processes."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process, self._log = process, log
        self.command = f"pgeverything worker pgeverything.demo.tasks:pg --processes {_PROCESSES} --lease {LEASE}"

    def check(self) -> None:
        """Raise when the command has ended."""
        if (code := self._process.poll()) is not None:
            raise self.failed(f"the workers ended with exit code {code}")

    def failed(self, what: str) -> DemoFailed:
        """Return an error that carries the last words of the workers."""
        last = self._log.read_text("utf-8", "replace").splitlines()[-3:]
        return DemoFailed(f"{what}; the workers' last words: {' / '.join(last) or 'none'}")

    def kill(self, workers: Sequence[WorkerStatus]) -> int:
        """Kill the busiest worker process with SIGKILL and return its pid."""
        victim = max((each for each in workers if each.alive), key=lambda each: each.running)
        pid = int(victim.name.rpartition(":")[2])  # the default name is host:pid
        os.kill(pid, signal.SIGKILL)
        return pid


@contextmanager
def fleet(url: str, folder: Path) -> Iterator[Fleet]:
    """Start two worker processes, wait until they take jobs, and end them on the way out.

    Args:
        url: the database.
        folder: for their log and their journals.
    """
    command = [sys.executable, "-m", "pgeverything", "worker", "pgeverything.demo.tasks:pg"]
    options = [f"--processes={_PROCESSES}", f"--concurrency={_CONCURRENCY}", f"--lease={LEASE}", "--log-level=warning"]
    # PYTHONWARNINGS: what the parser has to say about thousands of other people's files is not the demo's business.
    environment = os.environ | {"PGEVERYTHING_URL": url, "PYTHONWARNINGS": "ignore", JOURNAL: str(folder)}
    log = folder / "workers.log"
    ours, theirs = socket.socketpair()
    with ours, log.open("wb") as output:
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own command line
                [*command, *options, f"--queues={PARSE},{REPAIR},{PROBE},{REPORT}", f"--supervised={theirs.fileno()}"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[theirs.fileno()],
                process_group=0,  # Ctrl-C is for us; we pass it on
            )
        try:
            running = Fleet(process, log)
            ours.settimeout(_START_SECONDS)
            try:
                ready = ours.recv(1)
            except TimeoutError:
                raise running.failed(f"the workers were not ready within {_START_SECONDS:g} s") from None
            if not ready:
                process.wait(_DRAIN_SECONDS)
                running.check()
            yield running
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_DRAIN_SECONDS)
    except BaseException:
        process.kill()  # its children see that, and drain
        process.wait()
        raise
