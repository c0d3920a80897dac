"""The locks that `locks.py` compares, each behind the same two calls."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, ClassVar

REDIS = "BENCHMARK_REDIS_URL"


class Locker(ABC):
    """One lock, for one process."""

    name: ClassVar[str]
    choices: ClassVar[str]
    package: ClassVar[str]

    @property
    def version(self) -> str:
        """The installed version of its client."""
        return version(self.package)

    def install(self, url: str) -> None:  # noqa: B027 - most have none
        """Create its tables in an empty database, where it has any."""

    @abstractmethod
    def open(self, url: str) -> None:
        """Connect."""

    @abstractmethod
    def acquire(self) -> Callable[[], object]:
        """Wait for the lock; return what releases it."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""


class PgEverythingLocks(Locker):
    name, package = "pgeverything", "pgeverything"
    choices = "locks.acquire(name, wait='60s') and lease.release(): a durable lease of 30 s with a fencing token"
    listens, options = True, dict[str, Any]()

    def install(self, url: str) -> None:
        from pgeverything import PgEverything

        with PgEverything(url) as pg:
            pg.migrate()

    def open(self, url: str) -> None:
        from pgeverything import PgEverything

        self._pg = PgEverything(url)
        self._locks = self._pg.locks
        if not self.listens:
            self._pg._database.carrier().hints = None

    def acquire(self) -> Callable[[], object]:
        lease = self._locks.acquire("hot", wait="60s", **self.options)
        assert lease is not None
        return lease.release

    def close(self) -> None:
        self._pg.close()


class PgEverythingPolling(PgEverythingLocks):
    name, listens = "polling", False
    choices = "the same where LISTEN does not work, as behind a transaction pooler"


class RedisLock(Locker):
    name, package = "redis-py", "redis"
    choices = "redis.lock.Lock(timeout=30), which looks every 100 ms: a lease that is not durable, and no token"
    pause = 0.1

    def open(self, url: str) -> None:
        import redis

        self._redis = redis.Redis.from_url(os.environ[REDIS])

    def acquire(self) -> Callable[[], object]:
        lock = self._redis.lock("hot", timeout=30, sleep=self.pause)
        assert lock.acquire()
        return lock.release

    def close(self) -> None:
        self._redis.close()


class RedisLockFast(RedisLock):
    name, pause = "redis-py 5 ms", 0.005
    choices = "the same with sleep=0.005"


class Advisory(Locker):
    name, package = "advisory", "psycopg"
    choices = "pg_advisory_lock on a connection that each process keeps: no lease, no token, nothing behind a pooler"

    def open(self, url: str) -> None:
        import psycopg

        self._connection: psycopg.Connection[Any] = psycopg.connect(url, autocommit=True)

    def acquire(self) -> Callable[[], object]:
        self._connection.execute("select pg_advisory_lock(42)")
        return lambda: self._connection.execute("select pg_advisory_unlock(42)")

    def close(self) -> None:
        self._connection.close()


class PgEverythingFair(PgEverythingLocks):
    name, options = "fair", {"fair": True}
    choices = "the same with fair=True"


LOCKERS: dict[str, type[Locker]] = {
    each.name: each
    for each in (PgEverythingLocks, PgEverythingFair, PgEverythingPolling, RedisLock, RedisLockFast, Advisory)
}


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis without persistence on loopback; yield its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("there is no redis-server: install one, give --redis, or leave redis-py out with --lockers")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="pgeverything-bench-redis-") as name:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", name]
        server = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, process_group=0)
        try:
            deadline = time.monotonic() + 10
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("redis-server did not start")
                time.sleep(0.02)
            yield f"redis://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
