"""The board: what the handlers of all worker processes have done, in memory that is read at no cost.

Asking the database how far a worker has got would load the server that is being measured, so a handler
marks its start in a shared memory map: one counter for each worker process, one start time for each job.
"""

from __future__ import annotations

import mmap
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_WORKERS = 64
_WORD = 8


class Board:
    """A file of signed 8-byte integers: `_WORKERS` counters, then the start time of job 0, 1, 2 ..."""

    def __init__(self, path: Path) -> None:
        """Map an existing board file."""
        self.path = path
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self._map).cast("q")

    @classmethod
    def create(cls, path: Path, *, jobs: int) -> Self:
        """Make the file for jobs numbered from 0 to `jobs - 1`; it is sparse, so a generous size is free."""
        with path.open("wb") as file:
            file.truncate((_WORKERS + jobs) * _WORD)
        return cls(path)

    def mark(self, worker: int, job: int) -> None:
        """Note that the handler of `job` starts now, in worker process number `worker`."""
        # One clock for all processes of a machine (Linux, macOS), which NTP does not step.
        self._words[_WORKERS + job] = time.monotonic_ns()
        self._words[worker] += 1

    def executed(self) -> int:
        """Handler starts so far, in all workers together."""
        return sum(self._words[:_WORKERS])

    def started_at(self, job: int) -> int:
        """The monotonic nanosecond at which the handler of `job` started last, 0 when it has not."""
        return self._words[_WORKERS + job]

    def check_each_ran_once(self, jobs: int) -> None:
        """Refuse the measurement unless jobs 0 to `jobs - 1` have all run, none of them twice."""
        missing = sum(1 for word in self._words[_WORKERS : _WORKERS + jobs] if word == 0)
        executed = self.executed()
        if missing or executed != jobs:
            raise RuntimeError(f"{jobs} jobs were due, {missing} never ran and {executed} executions were counted")

    def close(self) -> None:
        """Unmap the file; the file itself stays."""
        self._words.release()
        self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
