"""What dies says so to whoever has configured no logging: a warning, for jobs and for messages."""

from __future__ import annotations

import logging

import pytest

from pgeverything import Message, PgEverything, Reject, Retry


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_dead_jobs_are_warned_of(pg: PgEverything, caplog: pytest.LogCaptureFixture) -> None:
    @pg.task(queue="deaths", retry=Retry.fixed("1h", attempts=2))
    def broken(n: int) -> None:
        raise ValueError("no such customer")

    @pg.task(queue="deaths")
    def refused() -> None:
        raise Reject("hopeless")

    worker = pg.worker(queues=["deaths"], listen=False)
    again, hopeless = broken.enqueue(1), refused.enqueue()
    misfit = pg.jobs.enqueue("broken", {"m": 1}, queue="deaths")
    unknown = pg.jobs.enqueue("nobody_has_it", queue="deaths")
    worker.run(until_idle=True)
    told = warnings(caplog)
    assert len(told) == 3, told  # a failure that is tried again is none
    assert f"job {hopeless.id} (refused) is dead: rejected: hopeless" in "\n".join(told)
    assert f"job {misfit.id} (broken) is dead: its arguments do not fit the task" in "\n".join(told)
    assert f"job {unknown.id} (nobody_has_it) is dead: unknown task" in "\n".join(told)

    caplog.clear()
    pg.jobs.retry(again.id)
    worker.run(until_idle=True)
    (told_last,) = warnings(caplog)
    assert told_last == f"job {again.id} (broken) is dead: failed at attempt 2: ValueError: no such customer"


def test_dead_messages_are_warned_of(pg: PgEverything, caplog: pytest.LogCaptureFixture) -> None:
    @pg.subscriber("deaths.*", name="mourner", start="earliest", max_deliveries=1)
    def handle(message: Message) -> None:
        raise ValueError("no such topic")

    event = pg.events.append("deaths.one", {})
    pg.worker(listen=False).run(until_idle=True)
    assert warnings(caplog) == [
        f"message {event.position} of 'mourner' is dead: failed at delivery 1: ValueError: no such topic"
    ]
