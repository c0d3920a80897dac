"""PgBouncer in transaction mode before the test server: every transaction may meet another server session.

With ``PGEVERYTHING_TEST_PGBOUNCER=1`` all integration tests reach their databases through one, except those that say
why they cannot. Prepared statements are off then, as a PgBouncer before 1.21 asks for.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgeverything.local.account import server_account

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
"""Where it is, or None."""
EVERYWHERE = os.environ.get("PGEVERYTHING_TEST_PGBOUNCER", "") not in ("", "0")
"""Whether all integration tests go through it."""
ASYNCPG = {
    "statement_cache_size": 0,
    "prepared_statement_cache_size": 0,
    "prepared_statement_name_func": lambda: f"__asyncpg_{uuid.uuid4()}__",
}
"""What SQLAlchemy has to tell asyncpg, which prepares whatever it runs."""


def needs_a_session(why: str) -> pytest.MarkDecorator:
    """Mark a test that cannot go through it."""
    return pytest.mark.skipif(EVERYWHERE, reason=f"not through PgBouncer: {why}")


needs_hints = needs_a_session("a hint is heard by the session that listens")
"""Mark a test of what hints hasten, which without them comes at the next look."""


def prepare_nothing() -> None:
    """Turn prepared statements off in this process and its children: in our connections and in the tests' own."""
    os.environ["PGEVERYTHING_PREPARE"] = "off"
    for kind in (psycopg.Connection, psycopg.AsyncConnection):
        kind.connect.__func__.__kwdefaults__["prepare_threshold"] = None


_SETTINGS = """\
[databases]
* = {server}
[pgbouncer]
pool_mode = transaction
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
max_client_conn = 500
default_pool_size = 8
server_round_robin = 1
log_connections = 0
log_disconnections = 0
"""


@contextmanager
def pgbouncer(program: str, server_url: str) -> Iterator[Callable[[str], str]]:
    """Start a PgBouncer before a server; yield what turns the URL of a database into the one that goes through it."""
    account = server_account()  # PgBouncer refuses to be root, and the server's socket is its account's own
    with tempfile.TemporaryDirectory() as name:
        directory, port = Path(name), _free_port()
        settings = directory / "pgbouncer.ini"
        settings.write_text(_SETTINGS.format(server=_server(server_url), port=port))
        if os.geteuid() == 0:
            for path in (directory, settings):
                os.chown(path, account.uid, account.gid)
        options = {"user": account.uid, "group": account.gid, "extra_groups": []} if os.geteuid() == 0 else {}
        with (directory / "log").open("w") as log:
            process = subprocess.Popen([program, settings], stdin=subprocess.DEVNULL, stdout=log, stderr=log, **options)
        try:
            url = make_conninfo(host="127.0.0.1", port=port, user=conninfo_to_dict(server_url).get("user", "postgres"))
            _wait_for(url, process, directory / "log")
            yield lambda database: f"postgresql://{_user(server_url)}@127.0.0.1:{port}/{_name(database)}"
        finally:
            process.terminate()
            process.wait(10)


def _server(url: str) -> str:
    """Return where the server is, in the words of PgBouncer's settings."""
    parts = conninfo_to_dict(url)
    known = {name: parts[name] for name in ("host", "port", "user", "password") if parts.get(name)}
    return " ".join(f"{name}={value}" for name, value in known.items())


def _user(url: str) -> str:
    return str(conninfo_to_dict(url).get("user") or "postgres")


def _name(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, dbname="postgres"):
            return
        time.sleep(0.02)
    raise RuntimeError(f"pgbouncer did not start: {log.read_text()}")
