"""The local server and what happens to it: kills, races, full disks, recycled process ids."""

from __future__ import annotations

import glob
import json
import os
import resource
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import local
from pgeverything.local import cluster
from pgeverything.local.account import server_account
from pgeverything.local.binaries import find_binaries, readable_copy
from tests.local_servers import ENSURE, execute, kill, one, spawn
from tests.waiting import PATIENCE, eventually

if TYPE_CHECKING:
    from pathlib import Path


def test_the_server_outlives_its_starter(home: Path) -> None:
    starter = spawn(ENSURE, home, start_new_session=True)
    # The pipes reach their end only if the server holds neither.
    output, messages = starter.communicate(timeout=PATIENCE)
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


def test_backends_that_outlive_a_killed_server_are_waited_for(home: Path) -> None:
    server = local.ensure(home, durable=False)
    log = server.data_dir.with_name("server.log")
    with psycopg.connect(server.url) as attached:
        backend = attached.info.backend_pid
        os.kill(backend, signal.SIGSTOP)  # as in a long system call
        try:
            kill(server.pid)
            starter = spawn(ENSURE, home)
            eventually(lambda: "still in use" in log.read_text(), "the shared memory to be found in use")
            assert starter.poll() is None
        finally:
            os.kill(backend, signal.SIGCONT)
        output, messages = starter.communicate(timeout=PATIENCE)

    assert starter.returncode == 0, messages
    assert one(json.loads(output)["url"], "SELECT 1") == 1


def test_a_start_that_loses_to_another_returns_the_winner(home: Path) -> None:
    server = local.ensure(home, durable=False)
    folder = cluster.Cluster(server.data_dir.parent)
    account = server_account()
    programs = readable_copy(find_binaries([]), account, home)

    assert cluster.start(folder, programs, account, durable=False) == server


def test_a_starter_killed_while_it_initialises(home: Path) -> None:
    starter = spawn(ENSURE, home)
    eventually(lambda: glob.glob(f"{home}/*/init-*/global"), "initdb to begin")  # noqa: PTH207 - bears with what vanishes
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
    eventually(lambda: list(home.glob("*/data/postmaster.pid")), "the server to begin")
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


def test_a_full_disk_while_it_initialises(home: Path) -> None:
    # With room to spare at first: where root has to copy the programs, the copy would fail before initdb does.
    folder = local.ensure(home, durable=False).data_dir.parent
    local.stop(home)
    shutil.rmtree(folder)
    # Files of at most 1 MB: the write fails in the middle, as it does on a full disk.
    limited = spawn(ENSURE, home, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))
    _, messages = limited.communicate(timeout=PATIENCE)

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
