"""``pgeverything demo`` as a command: it counts right, cleans up after itself, and finds what is broken."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psycopg
import pytest

from pgeverything import Job
from pgeverything.demo import files, report
from pgeverything.demo.tasks import decoded, readable_part
from tests.waiting import PATIENCE


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "pgeverything", "demo", *args]


def test_the_demo_loses_nothing(new_database: Callable[[], str]) -> None:
    url = new_database()
    done = subprocess.run(
        command("--url", url, "--files", "300"), check=False, capture_output=True, text=True, timeout=180
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr + done.stdout

    first, second = re.findall(r"^files +(\d+) found = (\d+) finished \+ (\d+) dead letters", done.stdout, re.MULTILINE)
    found, finished, dead = map(int, first)
    assert found == finished + dead == 306
    assert dead >= 6  # ours at least
    moved, repaired = map(int, re.findall(r"redrive +(\d+) of .*: (\d+) finished", done.stdout)[0])
    assert moved == repaired >= 1
    assert tuple(map(int, second)) == (306, finished + moved, dead - moved)
    asked, built = map(
        int, re.findall(r"the report +(\d+) jobs in \d process(?:es)? asked for its lock, (\d+) built", done.stdout)[0]
    )
    assert (asked, built) == (200, 1)
    assert "the cache      200 jobs read its lines, 1 from the table: what was cached before is gone" in done.stdout
    rescued, twice = map(int, re.findall(r"the kill +(\d+) jobs rescued.*; (\d+) started twice", done.stdout)[0])
    assert rescued >= 1
    assert twice <= rescued
    assert re.search(
        r"^the schedule +2 ticks ran, enqueued [0-9.]+, [0-9.]+ ms after their time$", done.stdout, re.MULTILINE
    )
    log = re.findall(r"the log +(\d+) events, .* the totals of (\d+) packages are their sum,", done.stdout)
    assert int(log[0][0]) == finished + moved
    assert re.search(r"^the replay .* later it holds the same$", done.stdout, re.MULTILINE)
    assert re.search(
        r"^the trail .* changed \d+ rows?, and the table as of before is what it was$", done.stdout, re.MULTILINE
    )
    assert "  pgeverything jobs list --schema pgeverything_demo\n" in done.stdout
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from pgeverything_demo_tables.totals").fetchone() == (
            int(log[0][1]),
        )
        assert connection.execute("select count(*) from pgeverything_demo.workers").fetchall() == [(0,)]
        crashed = connection.execute("select count(*) from pgeverything_demo.all_jobs where crashes > 0").fetchall()
        assert crashed == [(rescued,)]


def test_ctrl_c_ends_the_workers(new_database: Callable[[], str]) -> None:
    url = new_database()
    with subprocess.Popen(command("--url", url), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if line.startswith("enqueued"):
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert "interrupted" in process.stderr.read()
        assert process.wait(PATIENCE) == 130
    with psycopg.connect(url) as connection:
        assert connection.execute("select count(*) from pgeverything_demo.workers").fetchall() == [(0,)]


def test_a_second_demo_in_the_same_database_is_refused(new_database: Callable[[], str]) -> None:
    url = new_database()
    with subprocess.Popen(command("--url", url), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("enqueued"):
                break
        second = subprocess.run(command("--url", url), check=False, capture_output=True, text=True, timeout=PATIENCE)
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert second.returncode == 1
    assert "another demo runs in this database" in second.stderr


# Files ------------------------------------------------------------------------------------------------------------


def test_the_standard_library_is_found_without_what_is_installed() -> None:
    found = files.library_files()
    assert Path(ast.__file__) in found
    assert not any("site-packages" in path.parts for path in found)
    assert len(files.spread(found, 10)) == len(set(files.spread(found, 10))) == 10
    assert files.spread(found, 10**6) == found


def test_our_broken_files_are_broken_and_can_be_read_in_part(tmp_path: Path) -> None:
    for path in files.write_broken_files(tmp_path):
        source = path.read_bytes()
        with pytest.raises((SyntaxError, UnicodeDecodeError)):
            ast.parse(decoded(source))
        names = {
            node.name for node in ast.walk(readable_part(source)) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        assert path.name == "tabs.py" or names, path.name


@pytest.mark.parametrize("source", [b"", b"\0", b"(", b")", b"\xff\xfe", b"if x:", b"'''", b"\\", b"x = (\n\n\n"])
def test_reading_in_part_comes_to_an_end(source: bytes) -> None:
    assert isinstance(readable_part(source), ast.Module)


def test_a_file_belongs_to_a_package(tmp_path: Path) -> None:
    assert files.package(Path(ast.__file__)) == "ast"
    assert files.package(files.library() / "json" / "decoder.py") == "json"
    assert files.package(tmp_path / "broken.py") == tmp_path.name


# Accounts ---------------------------------------------------------------------------------------------------------

NOW = datetime(2024, 5, 17, 12, tzinfo=UTC)


def job(number: int, path: str, state: str = "succeeded", **more: object) -> Job:
    times = {"created_at": NOW, "started_at": NOW, "finished_at": NOW + timedelta(seconds=1)}
    return Job(number, "parse", "parse", state, args={"path": path}, **(times | more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "jobs",
    [
        [job(1, "a")],  # one is lost
        [job(1, "a"), job(2, "a")],  # one twice, one lost
        [job(1, "a"), job(2, "b", "running")],
        [job(1, "a"), job(2, "b", "cancelled")],
        [job(1, "a"), job(2, "b"), job(3, "b")],
    ],
)
def test_an_account_that_does_not_balance(jobs: list[Job]) -> None:
    assert not report.account([Path("a"), Path("b")], jobs).balanced


def test_an_account_that_balances() -> None:
    found = report.account([Path("a"), Path("b")], [job(1, "a"), job(2, "b", "dead")])
    assert found == report.Account(2, 1, 1, balanced=True)


def test_the_cost_of_a_kill(tmp_path: Path) -> None:
    (tmp_path / "1.started").write_text("1\n2\n")
    (tmp_path / "2.started").write_text("2\n3\n")
    jobs = [job(1, "a"), job(2, "b", crashes=1, started_at=NOW + timedelta(seconds=7)), job(3, "c")]
    cost = report.kill(99, NOW, jobs, [NOW + timedelta(seconds=5)], tmp_path)
    assert cost == report.Kill(pid=99, rescued=1, back=5.0, again=7.0, twice=1)
    assert report.kill(99, NOW, [], [], tmp_path / "none") == report.Kill(99, 0, 0.0, 0.0, 0)
    assert report.speed(jobs) == report.Speed(2, 1.0)
