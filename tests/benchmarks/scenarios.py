"""What is measured. Each scenario takes one queue through one fresh database and returns named numbers."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
from board import Board
from worker_process import WorkerProcess, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from peers import Peer
    from server import Databases

_POLL_SECONDS = 0.02
_WARM_UP = 20
_WINDOWS = 6


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    jobs: int
    """Jobs of a bulk enqueue and of a drain."""
    singles: int
    """Jobs enqueued one by one."""
    pickups: int
    """Jobs whose start is timed."""
    finished: int
    """Finished jobs present in the drain of that name."""
    seconds: int
    """Length of the idle watch, and of each half of the pinned scenario."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One column of results."""

    label: str
    unit: str
    lower_is_better: bool = False


@dataclass(frozen=True, slots=True)
class Scenario:
    """A measurement by name."""

    run: Callable[[Databases, Peer, Size, int], dict[str, float]]
    metrics: dict[str, Metric]


def enqueue_one(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """One client, one call and one commit for each job."""
    with databases.fresh(peer) as url, peer.producer(url) as producer:
        producer.enqueue_each(0, _WARM_UP)
        begun = time.perf_counter()
        producer.enqueue_each(_WARM_UP, size.singles)
        seconds = time.perf_counter() - begun
        _expect_pending(peer, url, _WARM_UP + size.singles)
    return {"enqueue_one": size.singles / seconds}


def enqueue_many(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """One client, the bulk call."""
    with databases.fresh(peer) as url, peer.producer(url) as producer:
        producer.enqueue_many(0, _WARM_UP)
        begun = time.perf_counter()
        producer.enqueue_many(_WARM_UP, size.jobs)
        seconds = time.perf_counter() - begun
        _expect_pending(peer, url, _WARM_UP + size.jobs)
    return {"enqueue_many": size.jobs / seconds}


def drain_one(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """One worker process empties the queue."""
    return {"drain_1": _drain(databases, peer, size.jobs, workers=1)}


def drain_two(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """Two worker processes empty the queue."""
    return {"drain_2": _drain(databases, peer, size.jobs, workers=2)}


def drain_among_finished(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """One worker process empties the queue while the tables hold the finished jobs of the past."""
    return {"drain_finished": _drain(databases, peer, size.jobs, workers=1, finished=size.finished)}


def pickup(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """From just before the enqueue call to the first line of the handler, with an otherwise idle worker."""
    gaps = random.Random(round_number)  # the same gaps for every queue
    milliseconds = []
    with (
        databases.fresh(peer) as url,
        _board(_WARM_UP + size.pickups) as board,
        peer.producer(url) as producer,
        _idle_worker(peer, url, board) as worker,
    ):
        for job in range(_WARM_UP + size.pickups):
            time.sleep(gaps.uniform(0.020, 0.060))
            enqueued = time.monotonic_ns()
            producer.enqueue_each(job, 1)
            _wait(partial(board.started_at, job), [worker], seconds=60, poll=0.001)
            milliseconds.append((board.started_at(job) - enqueued) / 1e6)
        board.check_each_ran_once(_WARM_UP + size.pickups)
    ordered = sorted(milliseconds[_WARM_UP:])
    return {"pickup_p50": ordered[len(ordered) // 2], "pickup_p99": ordered[len(ordered) * 99 // 100]}


def idle(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """SQL statements per second of a worker that has nothing to do."""
    with databases.fresh(peer) as url, _board(_WARM_UP) as board, databases.statement_counter(url) as count:
        with peer.producer(url) as producer:
            producer.enqueue_many(0, _WARM_UP)
        with _idle_worker(peer, url, board) as worker:
            _wait_until_drained(peer, url, [worker])
            time.sleep(2)  # the first looks after the last job still belong to the work
            before = count()
            time.sleep(size.seconds)
            worker.check()
            statements = count() - before
        board.check_each_ran_once(_WARM_UP)
    return {"idle": statements / size.seconds}


def pinned(databases: Databases, peer: Peer, size: Size, round_number: int) -> dict[str, float]:
    """Jobs per second at the end of a minute of load, without and with a session that holds its snapshot."""
    order = (False, True) if round_number % 2 == 0 else (True, False)  # a drifting machine favours neither half
    loads = {pin: _windows(databases, peer, size.seconds, pin=pin) for pin in order}
    free, held = loads[False], loads[True]
    end_free, end_held = (statistics.mean(windows[-2:]) for windows in (free, held))
    numbers = {"load_free": end_free, "load_pinned": end_held, "load_kept": 100 * end_held / end_free}
    for which, windows in (("free", free), ("pinned", held)):
        numbers |= {f"load_{which}_window_{index}": rate for index, rate in enumerate(windows, start=1)}
    return numbers


SCENARIOS = {
    "enqueue-one": Scenario(enqueue_one, {"enqueue_one": Metric("enqueue one by one", "jobs/s")}),
    "enqueue-many": Scenario(enqueue_many, {"enqueue_many": Metric("enqueue in bulk", "jobs/s")}),
    "drain-1": Scenario(drain_one, {"drain_1": Metric("drain, 1 process", "jobs/s")}),
    "drain-2": Scenario(drain_two, {"drain_2": Metric("drain, 2 processes", "jobs/s")}),
    "pickup": Scenario(
        pickup,
        {
            "pickup_p50": Metric("pickup by an idle worker, p50", "ms", lower_is_better=True),
            "pickup_p99": Metric("pickup by an idle worker, p99", "ms", lower_is_better=True),
        },
    ),
    "idle": Scenario(idle, {"idle": Metric("one idle worker", "statements/s", lower_is_better=True)}),
    "finished": Scenario(drain_among_finished, {"drain_finished": Metric("drain among finished jobs", "jobs/s")}),
    "pinned": Scenario(
        pinned,
        {
            "load_free": Metric("enqueue and drain, last third", "jobs/s"),
            "load_pinned": Metric("the same, snapshot held", "jobs/s"),
            "load_kept": Metric("kept under a held snapshot", "%"),
        },
    ),
}


def _drain(databases: Databases, peer: Peer, jobs: int, *, workers: int, finished: int = 0) -> float:
    """Jobs per second from the signal to connected workers until no job waits or runs."""
    with databases.fresh(peer, finished) as url, _board(jobs) as board:
        with peer.producer(url) as producer:
            producer.enqueue_many(0, jobs)
        _expect_pending(peer, url, jobs)
        _settle(url)
        with start(peer, url, board, workers) as processes:
            begun = time.perf_counter()
            for process in processes:
                process.begin()
            _wait_until_drained(peer, url, processes)
            seconds = time.perf_counter() - begun
        board.check_each_ran_once(jobs)
        if (recorded := _number(url, peer.finished)) != finished + jobs:
            raise RuntimeError(f"{peer.name} recorded {recorded} finished jobs, {finished + jobs} were due")
    return jobs / seconds


def _windows(databases: Databases, peer: Peer, seconds: int, *, pin: bool) -> list[float]:
    """Jobs per second in each window of a load that keeps one worker busy.

    The producer, in this process, tops the backlog up to 2,000 jobs in bulk calls of 500, so that a slow
    worker is never buried and a fast one never waits.
    """
    step = seconds / _WINDOWS
    rates = []
    with (
        databases.fresh(peer) as url,
        psycopg.connect(url) as reader,
        _board(seconds * 200_000) as board,
        peer.producer(url) as producer,
    ):
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        if pin:
            reader.execute("SELECT 1")  # takes the snapshot that the open transaction keeps
        with start(peer, url, board) as processes:
            processes[0].begin()
            enqueued, begun = 0, time.monotonic()
            for window in range(1, _WINDOWS + 1):
                executed_before, window_begun = board.executed(), time.monotonic()
                while time.monotonic() < begun + window * step:
                    if enqueued - board.executed() <= 1_500:
                        producer.enqueue_many(enqueued, 500)
                        enqueued += 500
                    else:
                        time.sleep(0.002)
                processes[0].check()
                rates.append((board.executed() - executed_before) / (time.monotonic() - window_begun))
            reader.rollback()
            _wait_until_drained(peer, url, processes)
        board.check_each_ran_once(enqueued)
    return rates


@contextmanager
def _board(jobs: int) -> Iterator[Board]:
    with (
        tempfile.TemporaryDirectory(prefix="pgeverything-board-") as directory,
        Board.create(Path(directory) / "board", jobs=jobs) as board,
    ):
        yield board


@contextmanager
def _idle_worker(peer: Peer, url: str, board: Board) -> Iterator[WorkerProcess]:
    with start(peer, url, board) as (worker,):
        worker.begin()
        yield worker


def _settle(url: str) -> None:
    """Give all the same starting point: statistics, visibility map, no checkpoint still under way."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE)")
        connection.execute("CHECKPOINT")


def _number(url: str, statement: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement.encode()).fetchone()
    assert row is not None
    return int(row[0])


def _expect_pending(peer: Peer, url: str, jobs: int) -> None:
    if (pending := _number(url, peer.pending)) != jobs:
        raise RuntimeError(f"{peer.name} has {pending} pending jobs, {jobs} were enqueued")


def _wait_until_drained(peer: Peer, url: str, workers: list[WorkerProcess]) -> None:
    """Watch the queue's own tables: a job counts when it is acknowledged, not when its handler ran."""
    with psycopg.connect(url, autocommit=True) as connection:

        def drained() -> bool:
            row = connection.execute(peer.drained.encode()).fetchone()
            return row is not None and bool(row[0])

        _wait(drained, workers, seconds=1_800)


def _wait(
    condition: Callable[[], int],
    workers: list[WorkerProcess],
    *,
    seconds: float,
    poll: float = _POLL_SECONDS,
) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        for worker in workers:
            worker.check()
        if time.monotonic() > give_up:
            raise TimeoutError(f"nothing to see after {seconds:.0f} s")
        time.sleep(poll)
