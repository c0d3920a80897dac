"""The caches that `cache.py` compares, each behind the same few calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

TTL = 3600


class Cache(ABC):
    """A cache. Its calls are made by several threads at once."""

    name: ClassVar[str]
    choices: ClassVar[str]
    package: ClassVar[str]

    @property
    def version(self) -> str:
        """The installed version of its client."""
        return version(self.package)

    def install(self, url: str) -> None:  # noqa: B027 - not every cache has something to do
        """Create its tables in an empty database, where it has any."""

    @abstractmethod
    def open(self, url: str) -> None:
        """Connect."""

    @abstractmethod
    def get(self, key: str) -> Any: ...

    @abstractmethod
    def set(self, key: str, value: str) -> None: ...

    def get_many(self, keys: list[str]) -> Any:
        """Return the values of many keys in one call; LookupError where there is no such call."""
        raise LookupError

    def near(self) -> Callable[[str], Any]:
        """Return a get that keeps values in this process; LookupError where there is none."""
        raise LookupError

    def close(self) -> None:  # noqa: B027
        """Disconnect."""


class PgEverythingCache(Cache):
    name, package = "pgeverything", "pgeverything"
    choices = "PgEverything(url).cache, its own pool; near: cache.near(ttl=1 h)"

    def install(self, url: str) -> None:
        from pgeverything import PgEverything

        with PgEverything(url) as pg:
            pg.migrate()

    def open(self, url: str) -> None:
        from pgeverything import PgEverything

        self._pg = PgEverything(url)
        self.get, self.get_many = self._pg.cache.get, self._pg.cache.get_many  # type: ignore[method-assign]
        self._set = self._pg.cache.set

    def get(self, key: str) -> Any:
        raise NotImplementedError

    def set(self, key: str, value: str) -> None:
        self._set(key, value, TTL)

    def near(self) -> Callable[[str], Any]:
        return self._pg.cache.near(TTL).get

    def close(self) -> None:
        self._pg.close()


class Bare(Cache):
    """What Postgres and its driver can do at best: no pool, no tags, no leases, no JSON, no count of anything."""

    name, package = "bare psycopg", "psycopg"
    choices = "one prepared statement on an UNLOGGED table, connections and cursors kept in a deque"

    def install(self, url: str) -> None:
        import psycopg

        with psycopg.connect(url) as connection:
            connection.execute(
                'create unlogged table kv (key text collate "C" primary key, value text, expires_at timestamptz)'
                " with (fillfactor = 70)"
            )

    def open(self, url: str) -> None:
        self._url = url
        self._all: list[Any] = []
        self._idle: deque[Any] = deque()

    def _run(self, statement: str, params: tuple[Any, ...]) -> Any:
        import psycopg

        try:
            cursor = self._idle.pop()
        except IndexError:
            connection = psycopg.connect(self._url, autocommit=True)
            self._all.append(connection)
            cursor = connection.cursor()
        cursor.execute(statement, params)
        rows = cursor.fetchall() if cursor.description else ()
        self._idle.append(cursor)
        return rows

    def get(self, key: str) -> Any:
        return self._run("select value from kv where key = %s and expires_at > clock_timestamp()", (key,))

    def set(self, key: str, value: str) -> None:
        self._run(
            "insert into kv values (%s, %s, clock_timestamp() + interval '1 hour')"
            " on conflict (key) do update set value = excluded.value, expires_at = excluded.expires_at",
            (key, value),
        )

    def get_many(self, keys: list[str]) -> Any:
        return dict(
            self._run("select key, value from kv where key = any (%s) and expires_at > clock_timestamp()", (keys,))
        )

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class Redis(Cache):
    name, package = "redis-py", "redis"
    choices = "redis.Redis, its own connection pool; server without persistence, on a Unix socket as Postgres is"

    def open(self, url: str) -> None:
        import redis

        self._redis = redis.Redis.from_url(os.environ["BENCHMARK_REDIS_URL"])
        self._redis.flushdb()
        self.get, self.get_many = self._redis.get, self._redis.mget  # type: ignore[method-assign,assignment]

    def get(self, key: str) -> Any:
        raise NotImplementedError

    def set(self, key: str, value: str) -> None:
        self._redis.set(key, value, ex=TTL)

    def close(self) -> None:
        self._redis.close()


class Django(Cache):
    """Django's cache in a database table."""

    name, package = "django", "django"
    choices = "DatabaseCache, MAX_ENTRIES above what is stored, persistent connections"

    def _configure(self, url: str) -> Any:
        import django
        from django.conf import settings
        from django.core.cache import caches
        from psycopg.conninfo import conninfo_to_dict

        place = conninfo_to_dict(url)
        database = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": place["dbname"],
            "USER": place.get("user", ""),
            "HOST": place.get("host", ""),
            "PORT": str(place.get("port", "")),
            "CONN_MAX_AGE": None,
        }
        if not settings.configured:
            backend = {
                "BACKEND": "django.core.cache.backends.db.DatabaseCache",
                "LOCATION": "kv",
                "OPTIONS": {"MAX_ENTRIES": 10_000_000},
            }
            settings.configure(DATABASES={"default": database}, CACHES={"default": backend}, USE_TZ=True)
            django.setup()
        from django.db import connections

        connections.close_all()
        connections.databases["default"] |= {"NAME": place["dbname"]}
        return caches["default"]

    def install(self, url: str) -> None:
        from django.core.management import call_command

        self._configure(url)
        call_command("createcachetable", verbosity=0)
        self.close()

    def open(self, url: str) -> None:
        self._cache = self._configure(url)

    def get(self, key: str) -> Any:
        return self._cache.get(key)

    def set(self, key: str, value: str) -> None:
        self._cache.set(key, value, TTL)

    def get_many(self, keys: list[str]) -> Any:
        return self._cache.get_many(keys)

    def close(self) -> None:
        from django.db import connections

        connections.close_all()


class DiskCache(Cache):
    """SQLite files on this machine: no server, and no second machine."""

    name, package = "diskcache", "diskcache"
    choices = "diskcache.Cache in a temporary directory"

    def open(self, url: str) -> None:
        import diskcache

        self._directory = tempfile.mkdtemp(prefix="pgeverything-bench-disk-")
        self._cache = diskcache.Cache(self._directory)

    def get(self, key: str) -> Any:
        return self._cache.get(key)

    def set(self, key: str, value: str) -> None:
        self._cache.set(key, value, TTL)

    def close(self) -> None:
        self._cache.close()
        shutil.rmtree(self._directory, ignore_errors=True)


CACHES: dict[str, type[Cache]] = {each.name: each for each in (PgEverythingCache, Bare, Redis, Django, DiskCache)}


@contextmanager
def redis_server() -> Iterator[str]:
    """Run a Redis of the benchmark's own, without persistence, on a Unix socket; yield its URL."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        raise SystemExit("there is no redis-server: install one, pass --redis, or leave redis-py out of --caches")
    home = Path(tempfile.mkdtemp(prefix="pgeverything-bench-redis-"))
    socket = home / "socket"
    options = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--dir", str(home)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        give_up = time.monotonic() + 30
        while not socket.exists():
            if process.poll() is not None or time.monotonic() > give_up:
                raise SystemExit("redis-server did not start")
            time.sleep(0.05)
        yield f"unix://{socket}"
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(home)
