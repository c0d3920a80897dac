"""``pgeverything lock`` and ``pgeverything locks``: a command under a lock, who holds what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner, Result

from pgeverything import PgEverything
from pgeverything.cli import main
from tests.waiting import PATIENCE, eventually


@pytest.fixture(autouse=True)
def named(url: str, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment names a migrated database in which no lock is held."""
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    monkeypatch.delenv("PGEVERYTHING_SCHEMA", raising=False)


def run(*args: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == exit_code, result.output
    return result


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pgeverything", *args]


def lock(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command("lock", *args), check=False, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a command under a lock; what is left of it is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*args: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                command("lock", *args),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


# A command under a lock ---------------------------------------------------------------------------------------------


def test_the_command_runs_under_the_lock(pg: PgEverything) -> None:
    script = 'echo "$PGEVERYTHING_LOCK $PGEVERYTHING_LOCK_TOKEN"; "$0" -m pgeverything locks show nightly --json'
    done = lock("nightly", "--note", "backup", "--", "sh", "-c", script, sys.executable)
    assert (done.returncode, done.stderr) == (0, "")
    first, _, rest = done.stdout.partition("\n")
    (holder,) = json.loads(rest)["holders"]
    assert first == f"nightly {holder['token']}"
    assert holder["note"] == "backup"
    assert pg.locks.get("nightly") is None  # released


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -KILL $$", 137), ("exit 0", 0)])
def test_its_exit_code_is_passed_on(script: str, code: int) -> None:
    assert lock("a", "--", "sh", "-c", script).returncode == code


def test_what_cannot_be_run(tmp_path: Path, pg: PgEverything) -> None:
    (tmp_path / "text").write_text("not a program")
    missing, refused = lock("a", "--", str(tmp_path / "nothing")), lock("a", "--", str(tmp_path / "text"))
    assert (missing.returncode, refused.returncode) == (127, 126)
    assert "No such file" in missing.stderr
    assert "Permission denied" in refused.stderr
    assert pg.locks.get("a") is None


def test_a_lock_that_is_not_obtained(pg: PgEverything, tmp_path: Path) -> None:
    with pg.locks.hold("a", note="by hand"):
        for wait in ([], ["--wait", "50ms"]):
            done = lock("a", *wait, "--", "touch", str(tmp_path / "ran"))
            assert done.returncode == 4
            assert "(by hand) has it" in done.stderr
    assert not (tmp_path / "ran").exists()


def test_it_waits(pg: PgEverything, start: Callable[..., subprocess.Popen[str]], db: psycopg.Connection[Any]) -> None:
    with pg.locks.hold("a"):
        process = start("a", "--wait", "60s", "--", "echo", "mine")
        eventually(lambda: db.execute("select from pgeverything.lock_waiters").fetchall(), "it to wait")
    assert process.communicate(timeout=PATIENCE)[0] == "mine\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_wait_that_is_ended_leaves_the_line(
    pg: PgEverything,
    start: Callable[..., subprocess.Popen[str]],
    db: psycopg.Connection[Any],
    number: signal.Signals,
    code: int,
) -> None:
    with pg.locks.hold("a"):
        process = start("a", "--wait", "60s", "--", "echo", "mine")
        eventually(lambda: db.execute("select from pgeverything.lock_waiters").fetchall(), "it to wait")
        process.send_signal(number)
        assert process.wait(PATIENCE) == code
        assert db.execute("select from pgeverything.lock_waiters").fetchall() == []


def test_signals_are_passed_on_and_the_lock_is_kept_until_the_command_has_ended(
    pg: PgEverything, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    script = """
        trap 'echo usr1' USR1
        trap 'touch ending; while [ ! -e end ]; do sleep 0.05; done; exit 9' TERM
        touch begun
        while :; do sleep 0.05; done
    """
    process = start("a", "--", "sh", "-c", script)
    eventually((tmp_path / "begun").exists, "it to begin")
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "usr1\n"
    process.send_signal(signal.SIGTERM)
    eventually((tmp_path / "ending").exists, "it to be told to end")
    assert pg.locks.acquire("a") is None
    (tmp_path / "end").touch()
    assert process.wait(PATIENCE) == 9
    assert pg.locks.acquire("a") is not None


def test_a_signal_that_we_were_started_to_ignore_stays_ignored(tmp_path: Path, pg: PgEverything) -> None:
    """As `nohup` starts it: neither the wait nor the command ends with the terminal."""
    script = "trap 'exit 9' USR1; touch begun; while :; do sleep 0.05; done"
    started = ["sh", "-c", "trap '' HUP; exec \"$@\"", "sh", *command("lock", "a", "--", "sh", "-c", script)]
    process = subprocess.Popen(started, stdin=subprocess.DEVNULL, cwd=tmp_path)
    try:
        eventually((tmp_path / "begun").exists, "it to begin")
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGUSR1)
        assert process.wait(PATIENCE) == 9
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("trap", ["", "trap '' TERM;"])
def test_a_command_whose_lease_is_lost_is_stopped_with_its_children(
    pg: PgEverything, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, trap: str
) -> None:
    script = f"{trap} sleep 1000 & echo $! > child; touch begun; wait; wait"
    process = start("a", "--ttl", "1s", "--grace", "200ms", "--", "sh", "-c", script)
    eventually((tmp_path / "begun").exists, "it to begin")
    assert pg.locks.break_lock("a") == 1
    assert process.wait(PATIENCE) == (137 if trap else 143)
    assert process.stderr is not None
    said = process.stderr.read()
    assert "is lost: stopping the command" in said
    assert ("killing it" in said) is bool(trap)
    child = int((tmp_path / "child").read_text())
    eventually(lambda: not _alive(child), "its child to end")


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_it_is_renewed_while_the_command_runs(pg: PgEverything, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("a", "--ttl", "1s", "--", "sleep", "60")
    eventually(lambda: pg.locks.get("a"), "it to have the lock")
    seen: set[Any] = set()

    def renewed() -> bool:
        lock = pg.locks.get("a")
        assert lock is not None
        seen.add(lock.holders[0].expires_at)
        return len(seen) > 4

    eventually(renewed, "renewals")
    process.terminate()
    assert process.wait(PATIENCE) == 143


def test_on_a_terminal_ctrl_c_reaches_the_command_once(tmp_path: Path, pg: PgEverything) -> None:
    keyboard, terminal = os.openpty()
    trapping = 'trap "echo interrupted; exit 5" INT; touch begun; while :; do sleep 0.05; done'
    script = f"exec < {os.ttyname(terminal)} > said 2>&1; exec \"$0\" -m pgeverything lock a -- sh -c '{trapping}'"
    process = subprocess.Popen(["sh", "-c", script, sys.executable], start_new_session=True, cwd=tmp_path)
    try:
        eventually((tmp_path / "begun").exists, "it to begin")
        os.write(keyboard, b"\x03")
        assert process.wait(PATIENCE) == 5
        assert (tmp_path / "said").read_text() == "interrupted\n"
        assert pg.locks.get("a") is None
    finally:
        process.kill()
        process.wait()
        os.close(keyboard)
        os.close(terminal)


def test_on_a_terminal_of_another_session_it_runs(pg: PgEverything) -> None:
    keyboard, terminal = os.openpty()
    try:
        command = [sys.executable, "-m", "pgeverything", "lock", "a", "--", "echo", "ran"]
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            stdin=terminal,
            start_new_session=True,
            timeout=PATIENCE,
        )
    finally:
        os.close(keyboard)
        os.close(terminal)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


def test_bad_usage() -> None:
    run("lock", "a", exit_code=2)
    run("lock", "a", "--ttl", "soon", "--", "true", exit_code=2)
    run("lock", "a", "--grace", "soon", "--", "true", exit_code=2)
    run("lock", "a", "--shared", "--slots", "2", "--", "true", exit_code=2)


# Looking and breaking -----------------------------------------------------------------------------------------------


def test_they_are_listed_shown_and_broken(pg: PgEverything) -> None:
    assert json.loads(run("locks", "list", "--json").stdout) == []
    assert run("locks", "show", "a").stderr == "nobody holds 'a'\n"
    pg.locks.acquire("a", note="\x1b[31mred")
    pg.locks.acquire("b", slots=2)
    pg.locks.acquire("c", shared=True)
    kept = pg.locks.acquire("d", min_hold="30s")
    assert kept is not None
    kept.release()

    lines = run("locks", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "a", "b", "c", "d"]
    assert [kind for kind in ("alone", "1 of 2", "shared", "kept by min_hold") if kind in "".join(lines)] == [
        "alone",
        "1 of 2",
        "shared",
        "kept by min_hold",
    ]
    assert "\x1b" not in "".join(lines)
    assert [lock["name"] for lock in json.loads(run("locks", "list", "b", "--json").stdout)] == ["b"]
    assert "alone" in run("locks", "show", "a").stdout
    assert run("locks", "break", "a").stderr == "took 'a' from 1 holder\n"
    assert run("locks", "break", "a").stderr == "nobody holds 'a'\n"
    assert json.loads(run("locks", "show", "a", "--json").stdout) is None
