from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from pgeverything.local import places
from pgeverything.local.account import current_account
from pgeverything.local.postmaster import Postmaster, read_postmaster

COMPLETE = "4711\n/home/18/data\n1790000000\n5432\n/home/18\n\n  123 456\nready   \n"

paths = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=30).map("/{}".format)


def test_a_complete_file(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(COMPLETE)

    assert read_postmaster(tmp_path) == Postmaster(4711, tmp_path, Path("/home/18"), ready=True)


@pytest.mark.parametrize("length", range(len(COMPLETE)))
def test_a_file_that_is_being_written(tmp_path: Path, length: int) -> None:
    (tmp_path / "postmaster.pid").write_text(COMPLETE[:length])

    found = read_postmaster(tmp_path)

    assert found is None or not found.ready or found.pid == 4711


@pytest.mark.parametrize("text", ["", "\n", "none\n", "-4711\n", "0\n", "1\n"])
def test_a_file_without_a_pid(tmp_path: Path, text: str) -> None:
    (tmp_path / "postmaster.pid").write_text(text)

    assert read_postmaster(tmp_path) is None


def test_no_file(tmp_path: Path) -> None:
    assert read_postmaster(tmp_path) is None
    assert read_postmaster(tmp_path / "nothing") is None


@given(paths)
def test_every_directory_survives_the_url(directory: str) -> None:
    url = Postmaster(1, Path("/data"), Path(directory), ready=True).url

    parsed = conninfo_to_dict(url)
    assert (parsed["host"], parsed["port"]) == (str(Path(directory)), "5432")
    assert (parsed["user"], parsed["dbname"]) == ("postgres", "postgres")
    assert make_url(url).query["host"] == str(Path(directory))


def test_only_a_process_with_this_data_directory_is_alive() -> None:
    def is_alive(pid: int, data: str) -> bool:
        return Postmaster(pid, Path(data), None, ready=False).is_alive()

    code = "print(flush=True); input()"
    command = [sys.executable, "-c", code, "-D", "/some/data"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert is_alive(process.pid, "/some/data")
        assert not is_alive(process.pid, "/some/dat")
        assert not is_alive(process.pid, "/other/data")
        assert not is_alive(os.getpid(), "/some/data")
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert not is_alive(process.pid, "/some/data")  # a zombie
    assert not is_alive(process.pid, "/some/data")


def test_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("PGEVERYTHING_HOME", str(tmp_path / "link"))
    assert places.home_directory(None) == tmp_path / "real"
    assert places.home_directory(tmp_path / "other") == tmp_path / "other"

    monkeypatch.setenv("PGEVERYTHING_HOME", "")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Path("/root") not in places.home_directory(None).parents
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert places.home_directory(None).is_relative_to(tmp_path)


@pytest.mark.parametrize("length", [84, 85, 86, 87, 200])
def test_the_socket_address_stays_below_100_bytes(tmp_path: Path, length: int) -> None:
    folder = Path("/" + "x" * (length - 1))

    directory = places.socket_directory(folder, current_account())

    assert len(f"{directory}/.s.PGSQL.5432") < 100
    if directory != folder:
        directory.rmdir()
