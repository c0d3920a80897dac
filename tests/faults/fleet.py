"""Worker processes that a test starts, kills, freezes and replaces."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE

REPOSITORY = Path(__file__).parents[2]


@dataclass
class Fleet:
    """Workers of one program on one database.

    Attributes:
        url: the database.
        directory: holds their logs, the journal and the gate.
        killed: the process ids that a test has killed.
        program: the module that they run.
    """

    url: str
    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: set[int] = field(default_factory=set)
    program: str = "tests.faults.app"

    @property
    def journal(self) -> Path:
        return self.directory / "journal"

    @property
    def gate(self) -> Path:
        return self.directory / "gate"

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        """Start a worker with these options of `pg.worker()`."""
        environment = os.environ | {
            "FAULTS_URL": self.url,
            "FAULTS_WORKER": json.dumps({"lease": "2s"} | options),
            "FAULTS_JOURNAL": str(self.journal),
            "FAULTS_GATE": str(self.gate),
            "PYTHONPATH": str(REPOSITORY),
        }
        with (self.directory / f"worker-{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", self.program],
                env=environment,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """Kill a worker the hard way."""
        self.killed.add(process.pid)
        process.kill()
        process.wait()

    def check(self) -> None:
        """Fail when a worker has ended that nobody killed."""
        for number, process in enumerate(self.processes):
            if process.poll() not in {None, 0} and process.pid not in self.killed:
                raise AssertionError(f"worker {number} ended with {process.returncode}:\n{self.logs()}")

    def drain(self) -> None:
        """Ask all workers to end, and wait until they have."""
        alive = [process for process in self.processes if process.poll() is None]
        for process in alive:
            process.terminate()
        for process in alive:
            if process.wait(PATIENCE) == -signal.SIGTERM:
                self.killed.add(process.pid)  # it was still importing, and had no handler for the signal
        self.check()

    def logs(self, lines: int = 25) -> str:
        """Return the end of each worker's log."""
        return "\n".join(
            f"--- {path.name}\n" + "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            for path in sorted(self.directory.glob("worker-*.log"))
        )

    def close(self) -> None:
        """End whatever is left."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
