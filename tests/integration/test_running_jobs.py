"""Workers and running jobs: a worker in a thread, a replacement for a running job, a paused queue."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from pgeverything import JobContext, PgEverything
from tests.waiting import PATIENCE


@pytest.fixture
def pg(new_database: Callable[[], str]) -> Iterator[PgEverything]:
    with PgEverything(new_database()) as pg:
        pg.migrate()
        yield pg


def test_a_worker_runs_in_a_thread(pg: PgEverything) -> None:
    ran_in: list[str] = []

    @pg.task()
    def note() -> None:
        ran_in.append(threading.current_thread().name)

    note.enqueue()
    thread = threading.Thread(target=lambda: pg.worker().run(until_idle=True))
    thread.start()
    thread.join(PATIENCE)
    assert len(ran_in) == 1


def test_replacing_a_running_job_leaves_it_alone(pg: PgEverything) -> None:
    began, may_end = threading.Event(), threading.Event()
    asked_to_stop: list[bool] = []

    @pg.task()
    def report(context: JobContext, number: int) -> int:
        if number == 1:
            began.set()
            may_end.wait(PATIENCE)
            asked_to_stop.append(context.cancelled)
        return number

    first = report.options(unique_key="daily").enqueue(1)
    # A fleet of one, so that the cancel, if there were one, has arrived before the second job can be run.
    thread = threading.Thread(target=lambda: pg.worker(concurrency=2).run(until_idle=True))
    thread.start()
    try:
        assert began.wait(PATIENCE)
        second = report.options(unique_key="daily", on_duplicate="replace").enqueue(2)
        assert pg.jobs.wait(second.id, PATIENCE).result == 2
    finally:
        may_end.set()
        thread.join(PATIENCE)
    assert asked_to_stop == [False]
    done = pg.jobs.get(first.id)
    assert (done.state, done.result, done.unique_key) == ("succeeded", 1, None)


def test_a_worker_that_ends_when_idle_does_not_wait_for_a_paused_queue(pg: PgEverything) -> None:
    ran: list[int] = []

    @pg.task(queue="paused")
    def note(number: int) -> None:
        ran.append(number)

    note.enqueue(1)
    note.options(ordering_key="k").enqueue(2)
    pg.jobs.pause("paused")
    pg.worker().run(until_idle=True)
    assert ran == []
    pg.jobs.resume("paused")
    pg.worker().run(until_idle=True)
    assert sorted(ran) == [1, 2]
