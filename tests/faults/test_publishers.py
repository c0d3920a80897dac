"""Sixteen publishers that sleep, roll back and are killed, and readers that poll all the time.

Nothing is lost, doubled, out of order, or below a position that a reader has passed.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pgeverything import Event, PgEverything
from pgeverything.engine.plan import drive
from pgeverything.events.patterns import compile_pattern
from pgeverything.events.read import batch, horizon
from tests.waiting import PATIENCE, eventually

from .accounts import fetch
from .fleet import REPOSITORY

EVENTS = int(os.environ.get("FAULTS_EVENTS", "50000"))
PROCESSES, THREADS = 4, 4


class Reading:
    """A reader in a thread, which goes by positions alone and keeps what it saw, in order."""

    def __init__(self, more: Callable[[int], tuple[int, Sequence[Event]]]) -> None:
        self.seen: list[Event] = []
        self.position = self.polls = 0
        self._more = more
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.poll()
        except BaseException as error:  # raised again in the test's own thread
            self._error = error

    def poll(self) -> None:
        self.position, events = self._more(self.position)
        self.seen += events
        self.polls += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error


def by_horizon(pg: PgEverything) -> Callable[[int], tuple[int, Sequence[Event]]]:
    """As a subscription reads."""

    def more(after: int) -> tuple[int, Sequence[Event]]:
        carrier = pg._database.carrier()
        upto = drive(carrier, horizon(after))
        events = drive(carrier, batch(compile_pattern(">"), after=after, upto=upto, limit=500))
        return (events[-1].position if len(events) == 500 else upto), events

    return more


def by_read(pg: PgEverything, pattern: str) -> Callable[[int], tuple[int, Sequence[Event]]]:
    """As a program reads that stores the position of the last event it has."""

    def more(after: int) -> tuple[int, Sequence[Event]]:
        events = list(pg.events.read(pattern, after=after))
        return (events[-1].position if events else after), events

    return more


@contextmanager
def bystander(url: str) -> Iterator[None]:
    """A transaction that wrote something else and stays open throughout."""
    with psycopg.connect(url) as connection:
        connection.execute("insert into effects (number) values (1)")
        connection.execute("select pgeverything.enqueue('t')")
        yield
        connection.rollback()


class Publishers:
    """Processes of publishers, of which one after the other is killed and replaced."""

    def __init__(self, url: str, directory: Path, chance: random.Random) -> None:
        self._url, self._directory, self._chance = url, directory, chance
        self._stop = directory / "stop"
        self.running: list[subprocess.Popen[bytes]] = []
        self.killed = 0
        self._started = 0

    def start(self) -> None:
        self._started += 1
        name = f"p{self._started}"
        arguments = [self._url, name, str(self._chance.random()), str(THREADS), self._stop, self._directory / name]
        with (self._directory / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-m", "tests.faults.publisher", *map(str, arguments)]
            self.running.append(subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log))

    def kill_one(self) -> None:
        victim = self.running.pop(self._chance.randrange(len(self.running)))
        assert victim.poll() is None, "it had ended by itself:\n" + self.logs()
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        self.killed += 1

    def finish(self) -> None:
        self._stop.touch()
        for process in self.running:
            assert process.wait(PATIENCE) == 0, self.logs()

    def journal(self, sign: str) -> set[str]:
        """Return what the publishers know to be committed (`+`) or rolled back (`-`)."""
        names: set[str] = set()
        for number in range(1, self._started + 1):
            path = self._directory / f"p{number}"
            for line in path.read_text().splitlines() if path.exists() else ():
                if line[0] == sign:
                    names.update(line[2:].split())
        return names

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self._directory.glob("*.log")))

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


def out_of_order(events: Sequence[Event]) -> list[Event]:
    """Return the events of a topic and key whose version is not the next."""
    versions: dict[tuple[str, str], int] = defaultdict(int)
    wrong = []
    for event in events:
        if event.key is not None:
            versions[event.topic, event.key] += 1
            if event.version != versions[event.topic, event.key]:
                wrong.append(event)
    return wrong


@pytest.fixture
def publishers(url: str, tmp_path: Path, chance: random.Random) -> Iterator[Publishers]:
    publishers = Publishers(url, tmp_path, chance)
    yield publishers
    publishers.close()


def test_nothing_is_lost_doubled_or_out_of_order(url: str, pg: PgEverything, publishers: Publishers) -> None:
    def appended() -> int:
        return int(fetch(url, "select count(*) from pgeverything.events")[0][0])

    with bystander(url):
        readings = [Reading(by_horizon(pg)), Reading(by_read(pg, "*.*")), Reading(by_read(pg, "topic.3"))]
        try:
            for _ in range(PROCESSES):
                publishers.start()
            for kill in range(1, 6):
                goal = EVENTS * kill // 6
                eventually(lambda goal=goal: appended() >= goal, publishers.logs, within=120)
                publishers.kill_one()
                publishers.start()
            eventually(lambda: appended() >= EVENTS, publishers.logs, within=120)
            publishers.finish()
            # Killed publishers end when their servers notice. Nothing else holds a reader back, nor does the bystander.
            eventually(lambda: not pg.events.stalled_by(), "the last publisher to end")
        finally:
            for reading in readings:
                reading.stop()
        for reading in readings:
            reading.poll()

    rows = fetch(
        url, "select e.position, e.data #>> '{}' from pgeverything.events e where e.position > 0 order by e.position"
    )
    log = [(int(position), str(name)) for position, name in rows]
    everything, every_topic, third = ([(event.position, event.data) for event in reading.seen] for reading in readings)
    assert len(log) >= EVENTS
    assert everything == log
    assert every_topic == log
    assert third == [(event.position, event.data) for event in readings[0].seen if event.topic == "topic.3"]
    assert out_of_order(readings[0].seen) == []

    names = {name for _, name in log}
    assert publishers.killed == 5
    assert len(names) == len(log)
    assert publishers.journal("+") - names == set()
    assert publishers.journal("-") & names == set()
    assert all(reading.polls > 50 for reading in readings), "the readers hardly ran"
