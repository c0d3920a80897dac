"""Holders are killed and frozen in their sections, and the server is restarted: what the guard promises holds."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest

from pgeverything import local
from tests import server
from tests.waiting import eventually

from .accounts import fetch
from .conftest import prepare
from .fleet import REPOSITORY
from .locker import TABLES
from .test_restarted_server import restart

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc for who is frozen")

PROCESSES = 8
ACQUISITIONS = int(os.environ.get("FAULTS_ACQUISITIONS", "100"))  # of each process
TTL = 1.0


@dataclass(frozen=True)
class Section:
    """One acquisition. `acquired` is on the database's clock; `outcome` is None where the process died in it."""

    token: int
    pid: int
    acquired: float
    fault: str
    outcome: str | None
    end: str | None


@dataclass
class Crowd:
    """Lockers on one database, replaced when they die and thawed when somebody else has the lock."""

    url: str
    directory: Path
    faults: float
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    found: dict[tuple[int, int], Section] = field(default_factory=dict)
    read: dict[Path, int] = field(default_factory=dict)  # how far, in bytes
    last: dict[int, int] = field(default_factory=dict)  # the last token of each process

    def start(self) -> None:
        environment = os.environ | {
            "LOCKER_URL": self.url,
            "LOCKER_DIRECTORY": str(self.directory),
            "LOCKER_TTL": str(TTL),
            "LOCKER_FAULTS": str(self.faults),
            "PYTHONPATH": str(REPOSITORY),
        }
        with (self.directory / "log").open("ab") as log:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", "tests.faults.locker"],
                    env=environment,
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            )

    def look_after(self) -> int:
        """Replace the dead, thaw the frozen whose lock has gone on; return how many sections were begun."""
        self.read_on()
        for process in list(self.processes):
            if process.poll() is not None:
                assert process.returncode in (0, -signal.SIGKILL), (self.directory / "log").read_text()[-3000:]
                self.processes.remove(process)
                self.start()
            elif is_frozen(process.pid) and self.last.get(process.pid, math.inf) < max(self.last.values(), default=0):
                process.send_signal(signal.SIGCONT)
        return len(self.found)

    def read_on(self) -> None:
        """Read what the journals have got since the last time."""
        for journal in self.directory.glob("*.journal"):
            with journal.open("rb") as file:
                file.seek(self.read.get(journal, 0))
                for line in file:
                    if line.endswith(b"\n"):
                        self.note(int(journal.stem), *line.decode().split())
                        self.read[journal] = self.read.get(journal, 0) + len(line)

    def note(self, pid: int, token: str, what: str, more: str) -> None:
        key = int(token), pid
        if what in ("committed", "refused"):
            self.found[key] = replace(self.found[key], outcome=what, end=more)
        else:
            assert key not in self.found, "a token was given twice"
            self.found[key] = Section(*key, float(what), more, None, None)
            self.last[pid] = int(token)

    def sections(self) -> list[Section]:
        """Return all sections in the order of their tokens."""
        self.read_on()
        return [self.found[key] for key in sorted(self.found)]

    def finish(self) -> None:
        (self.directory / "stop").touch()
        deadline = time.monotonic() + 90
        for process in self.processes:
            while process.poll() is None:
                assert time.monotonic() < deadline, "it does not end"
                process.send_signal(signal.SIGCONT)
                time.sleep(0.02)
            assert process.returncode in (0, -signal.SIGKILL), (self.directory / "log").read_text()[-3000:]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def crowd(url: str, directory: Path, faults: float) -> Iterator[Crowd]:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(TABLES)
    (directory / "counter").write_text("0")
    found = Crowd(url, directory, faults)
    try:
        for _ in range(PROCESSES):
            found.start()
        yield found
    finally:
        found.close()


def check(crowd: Crowd) -> list[Section]:
    """Check what holds whatever happened, and return the sections."""
    sections = crowd.sections()
    tokens = [section.token for section in sections]
    assert len(set(tokens)) == len(tokens), "a token was given twice"
    times = [section.acquired for section in sections]
    assert times == sorted(times), "a token went back"
    commits = fetch(crowd.url, "select n, token from commits order by seq")
    assert [n for n, _ in commits] == list(range(1, len(commits) + 1)), "guarded writes overlapped"
    assert fetch(crowd.url, "select n from guarded") == [(len(commits),)]
    assert all(earlier < later for (_, earlier), (_, later) in pairwise(commits)), "an earlier holder wrote later"
    said = {section.token for section in sections if section.outcome == "committed"}
    assert said <= {token for _, token in commits}
    assert not {section.token for section in sections if section.outcome == "refused"} & {token for _, token in commits}
    return sections


def test_nothing_happens(url: str, tmp_path: Path) -> None:
    """Without faults a lease alone is enough: not one increment of the unprotected counter is lost."""
    with crowd(url, tmp_path, faults=0.0) as calm:
        eventually(lambda: calm.look_after() >= PROCESSES * ACQUISITIONS // 4, "sections", 600)
        calm.finish()
        sections = check(calm)
        lost = sum(section.end == "lost" for section in sections)  # a machine that stands still for a second does that
        if not lost:
            assert int((tmp_path / "counter").read_text()) == len(sections)
        assert {section.outcome for section in sections} <= ({"committed"} if not lost else {"committed", "refused"})


def test_holders_are_killed_and_frozen(url: str, tmp_path: Path) -> None:
    with crowd(url, tmp_path, faults=0.02) as wild:
        eventually(lambda: wild.look_after() >= PROCESSES * ACQUISITIONS, "sections", 3600)
        wild.finish()
        sections = check(wild)
        frozen = [section for section in sections if section.fault == "freeze" and section.outcome is not None]
        assert any(section.outcome == "refused" for section in frozen), "no guard had to refuse: this has shown nothing"
        assert all(section.end == "lost" for section in frozen if section.outcome == "refused")
        killed = [index for index, section in enumerate(sections[:-1]) if section.fault == "kill"]
        assert killed
        for index in killed:
            waited = sections[index + 1].acquired - (sections[index].acquired + TTL)
            assert 0 <= waited <= 1, f"after a death the others waited for {waited:.2f} s longer than the lease"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_the_server_is_restarted(home: Path, tmp_path: Path, how: signal.Signals) -> None:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    with crowd(url, tmp_path, faults=0.005) as busy:
        for _ in range(2):
            enough = busy.look_after() + PROCESSES * ACQUISITIONS // 16
            eventually(lambda enough=enough: busy.look_after() >= enough, "sections", 600)
            restart(home, how)
        enough = busy.look_after() + PROCESSES * ACQUISITIONS // 16
        eventually(lambda enough=enough: busy.look_after() >= enough, "sections after the restart", 600)
        busy.finish()
        check(busy)
