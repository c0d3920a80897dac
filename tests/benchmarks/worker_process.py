"""A worker process: `start()` is the benchmark's side of it, the script is the process itself."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import peers
from board import Board

if TYPE_CHECKING:
    from collections.abc import Iterator

_STOP_SECONDS = 60


class WorkerProcess:
    """A worker that is connected and waits for `begin()`."""

    def __init__(self, peer: peers.Peer, url: str, board: Board, number: int) -> None:
        command = [sys.executable, __file__, peer.name, url, str(board.path), str(number)]
        # A process group of its own: Ctrl-C goes to the benchmark, which then stops its workers.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, process_group=0
        )

    def wait_until_connected(self) -> None:
        """Return when the worker has its connections; raise when it died instead."""
        assert self._process.stdout is not None
        # Libraries may greet on stdout; the word of the protocol is a line of its own.
        while (line := self._process.stdout.readline()) != "ready\n":
            if not line:
                raise RuntimeError(f"a worker ended before it was connected, exit code {self._process.wait()}")

    def begin(self) -> None:
        """Let it work."""
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Raise when the worker has died."""
        if (code := self._process.poll()) is not None:
            raise RuntimeError(f"a worker ended in the middle of the measurement, exit code {code}")

    def stop(self) -> None:
        """Ask it to stop as an operator would, and wait until it has."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate(timeout=_STOP_SECONDS)

    def kill(self) -> None:
        """Make sure that nothing is left behind, whatever happened before."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def start(peer: peers.Peer, url: str, board: Board, count: int = 1) -> Iterator[list[WorkerProcess]]:
    """Start `count` workers and wait until all are connected; stop them at the end of the block."""
    workers = [WorkerProcess(peer, url, board, number) for number in range(count)]
    try:
        for worker in workers:
            worker.wait_until_connected()
        yield workers
        for worker in workers:
            worker.stop()
    finally:
        for worker in workers:
            worker.kill()


def main() -> None:
    """Run one worker until SIGTERM."""
    name, url, path, number = sys.argv[1:]
    worker = int(number)

    def ready() -> None:
        print("ready", flush=True)
        sys.stdin.readline()

    with Board(Path(path)) as board:
        peers.load(name).work(url, lambda job: board.mark(worker, job), ready)


if __name__ == "__main__":
    main()
