"""Checked by mypy, never run: what the public names promise. An unused ignore is an error, so each one is a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from datetime import datetime
from typing import Any, assert_type

import psycopg
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from pgeverything import AsyncPgEverything, Event, EventLog, Job, JobContext, JobQueue, PgEverything
from pgeverything.app import AsyncBound, Bound
from pgeverything.dead_letters import DeadDelivery, DeadGroup
from pgeverything.doctor import Check, Health
from pgeverything.events import OpenPublisher, Topic
from pgeverything.jobs import Queue, State
from pgeverything.tasks import AsyncTask, Task


def blocking(pg: PgEverything) -> None:
    assert_type(pg.jobs, JobQueue)
    assert_type(pg.jobs.enqueue("mail", {"to": 1}, delay="5m", headers={"a": "b"}), Job)
    assert_type(pg.jobs.enqueue_many("mail", [{"to": 1}, None]), list[int])
    assert_type(pg.jobs.get(1), Job)
    assert_type(pg.jobs.list(queue="q", state="ready", limit=5, before=9), list[Job])
    assert_type(pg.jobs.counts("q"), dict[State, int])
    assert_type(pg.jobs.failures(1), list[Mapping[str, Any]])
    assert_type(pg.jobs.cancel(1, "why"), bool)
    assert_type(pg.jobs.wait(1, timeout=2.5), Job)
    assert_type(pg.jobs.why(1), str)
    assert_type(pg.jobs.queues(), list[Queue])
    pg.jobs.configure("q", max_depth=None, on_full="wait", concurrency=3, per_key=2)
    assert_type(pg.dead_letters.list(task="mail"), list[Job | DeadDelivery])
    assert_type(pg.dead_letters.groups(), list[DeadGroup])
    assert_type(pg.dead_letters.redrive([1], rate=5), int)
    assert_type(pg.dead_letters.discard(everything=True), int)
    assert_type(pg.doctor(), Health)
    assert_type(pg.doctor()["schema"], Check)

    pg.jobs.enqueue(7)  # type: ignore[arg-type]
    pg.jobs.enqueue("mail", [1])  # type: ignore[arg-type]
    pg.jobs.enqueue("mail", prio=1)  # type: ignore[call-arg]
    pg.jobs.enqueue("mail", on_duplicate="ignore")  # type: ignore[arg-type]
    pg.jobs.list(state="failed")  # type: ignore[arg-type]
    pg.jobs.list("q")  # type: ignore[call-arg]
    pg.jobs.configure("q", on_full="block")  # type: ignore[arg-type]


def awaited(pg: AsyncPgEverything) -> None:
    _ = assert_type(pg.jobs.enqueue("mail", {"to": 1}), Coroutine[Any, Any, Job])
    _ = assert_type(pg.jobs.enqueue_many("mail", [{}]), Coroutine[Any, Any, list[int]])
    _ = assert_type(pg.jobs.list(queue="q"), Coroutine[Any, Any, list[Job]])
    _ = assert_type(pg.jobs.wait(1), Coroutine[Any, Any, Job])
    _ = assert_type(pg.jobs.counts(), Coroutine[Any, Any, dict[State, int]])
    _ = assert_type(pg.dead_letters.groups(), Coroutine[Any, Any, list[DeadGroup]])
    _ = assert_type(pg.doctor(), Coroutine[Any, Any, Health])
    _ = pg.jobs.enqueue("mail", prio=1)  # type: ignore[call-arg]


def bound(pg: PgEverything, connection: Connection, session: Session, mine: psycopg.Connection[Any]) -> None:
    for held in (connection, session, mine):
        assert_type(pg.on(held), Bound)
    tx = pg.on(session)
    assert_type(tx.jobs.enqueue("mail"), Job)
    assert_type(tx.dead_letters.count(), int)
    tx.jobs.wait(1)  # type: ignore[attr-defined]
    with pg.transaction() as own:
        assert_type(own, Bound)
    pg.on("connection")  # type: ignore[arg-type]


async def abound(
    pg: AsyncPgEverything, connection: AsyncConnection, session: AsyncSession, mine: psycopg.AsyncConnection[Any]
) -> None:
    for held in (connection, session, mine):
        assert_type(pg.on(held), AsyncBound)
    tx = pg.on(session)
    assert_type(await tx.jobs.enqueue("mail"), Job)
    tx.jobs.wait(1)  # type: ignore[attr-defined]
    async with pg.transaction() as own:
        assert_type(own, AsyncBound)


def events(pg: PgEverything, when: datetime) -> None:
    assert_type(pg.events, EventLog)
    assert_type(pg.events.append("t", {"any": "thing"}, type="x", key="k", expected_version=0), Event)
    assert_type(pg.events.append_many("t", [1, 2], key=["a", None], type=["x", "y"]), list[Event])
    assert_type(pg.events.read("t.*", key="k", type="x", after=when, until=9, limit=5), Iterator[Event])
    assert_type(pg.events.head(), int)
    assert_type(pg.events.version("t", "k"), int)
    assert_type(pg.events.topics("t.>"), list[Topic])
    assert_type(pg.events.stalled_by(), list[OpenPublisher])
    assert_type(pg.events.drop_before(when), int)
    pg.events.retain("90d")
    pg.events.append("t")  # type: ignore[call-arg]
    pg.events.append("t", 1, key=7)  # type: ignore[arg-type]
    pg.events.append_many("t", 7)  # type: ignore[arg-type]
    pg.events.read(after="yesterday")  # type: ignore[arg-type]
    with pg.transaction() as tx:
        assert_type(tx.events.append("t", 1), Event)
        assert_type(tx.events.read(include_own=True), Iterator[Event])
        tx.events.drop_before(1)  # type: ignore[attr-defined]


async def async_events(pg: AsyncPgEverything) -> None:
    assert_type(await pg.events.append("t", 1), Event)
    _ = assert_type(pg.events.append_many("t", [1]), Coroutine[Any, Any, list[Event]])
    assert_type(pg.events.read("t"), AsyncIterator[Event])
    async for event in pg.events.read("t"):
        assert_type(event, Event)
    async with pg.transaction() as tx:
        assert_type(await tx.events.head(), int)


def targets(engine: Engine, async_engine: AsyncEngine) -> None:
    PgEverything(engine)
    AsyncPgEverything(async_engine)
    JobQueue("postgresql://h/d", schema="cell")
    PgEverything(async_engine)  # type: ignore[arg-type]
    AsyncPgEverything(engine)  # type: ignore[arg-type]


pg, apg = PgEverything(), AsyncPgEverything()


@pg.task(queue="mail", timeout="2m")
def send(user: int, *, greeting: str = "hello") -> str:
    return greeting * user


@pg.task()
async def fetch(context: JobContext, url: str) -> bytes:
    return url.encode()


@apg.task()
async def resize(picture: str, width: int) -> None: ...


@apg.task()
def report(context: JobContext) -> int:
    return context.attempt


def tasks(session: Session) -> None:
    assert_type(send.enqueue(7), Job)
    assert_type(send.enqueue(user=7, greeting="hi"), Job)
    assert_type(send.enqueue_many([(7,), (8,)]), list[int])
    assert_type(send.options(delay="10m", unique_key="u").enqueue(7), Job)
    assert_type(send.on(session).enqueue(7), Job)
    assert_type(send(7), str)
    send.enqueue("7")  # type: ignore[arg-type]
    send.enqueue()  # type: ignore[call-arg]
    send.enqueue(7, "hi")  # type: ignore[call-arg]
    send.enqueue(7, greetings="hi")  # type: ignore[call-arg]
    send.options(prio=1)  # type: ignore[call-arg]
    send.options(priority="high")  # type: ignore[arg-type]
    send.options(delay="1m").enqueue("7")  # type: ignore[arg-type]
    send.on(session).enqueue("7")  # type: ignore[arg-type]


def tasks_with_a_context() -> None:
    """The context is the worker's to give, so it is no parameter of enqueue()."""
    assert_type(fetch.enqueue("http://h"), Job)
    assert_type(fetch.enqueue(url="http://h"), Job)
    fetch.enqueue(7)  # type: ignore[arg-type]
    fetch.enqueue("http://h", "more")  # type: ignore[call-arg]


async def async_tasks(session: AsyncSession) -> None:
    _ = assert_type(resize.enqueue("a", 7), Coroutine[Any, Any, Job])
    assert_type(await resize.enqueue("a", width=7), Job)
    assert_type(await resize.on(session).options(priority=1).enqueue("a", 7), Job)
    assert_type(await resize.enqueue_many([("a", 7)]), list[int])
    assert_type(await report.enqueue(), Job)
    _ = assert_type(resize("a", 7), Coroutine[Any, Any, None])
    await resize.enqueue("a")  # type: ignore[call-arg]
    await resize.enqueue("a", "7")  # type: ignore[arg-type]
    await report.enqueue(1)  # type: ignore[call-arg]


def kinds(task: Task[[int], str], atask: AsyncTask[[int], str]) -> None:
    assert_type(task.enqueue(1), Job)
    _ = assert_type(atask.enqueue(1), Coroutine[Any, Any, Job])
    assert_type(task.name, str)


def wrong_decorations() -> None:
    pg.task("mail")  # type: ignore[call-arg]
    pg.task(retry=3)  # type: ignore[arg-type]
