"""A subscription that is deleted, and perhaps created again, while a worker handles its messages."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import AsyncMessage, Message, PgEverything, SubscriptionNotFound
from pgeverything.engine.carriers import AsyncPoolCarrier
from pgeverything.engine.plan import Query
from tests import pgbouncer
from tests.waiting import PATIENCE, until

from .consuming import one

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]

GONE = "subscription 's' was deleted"


@contextlib.asynccontextmanager
async def working(pg: PgEverything, **options: Any) -> AsyncIterator[None]:
    """Have a worker work, which must not end by itself."""
    ready = asyncio.Event()
    worker = pg.worker(**({"poll": "50ms"} | options))
    serving = asyncio.create_task(worker.serve(ready=ready.set))
    try:
        await asyncio.wait_for(ready.wait(), PATIENCE)
        yield
    finally:
        worker.stop()
        await asyncio.wait_for(serving, PATIENCE)


def create(pg: PgEverything, pattern: str = "t", **options: Any) -> None:
    pg.pubsub.subscribe(pattern, name="s", **options).close()


@pytest.fixture
def seen(pg: PgEverything) -> list[Any]:
    """What the handlers of `s` and `other` have seen."""
    seen: list[Any] = []

    @pg.subscriber("t", name="s", start="earliest", max_deliveries=7)
    def handle(message: Message) -> None:
        seen.append(message.data)

    @pg.subscriber("u", name="other", start="earliest")
    async def handle_other(message: AsyncMessage) -> None:
        seen.append(message.data)

    return seen


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for what was deleted at every claim."""
    monkeypatch.setattr("pgeverything.worker.consumer._LOOK", 0.0)


async def published(pg: PgEverything, seen: list[Any], topic: str, data: Any) -> None:
    """Publish something and wait until a handler has seen it."""
    await asyncio.to_thread(pg.pubsub.publish, topic, data)
    await until(lambda: data in seen, f"{data!r} among {seen}")


def names(pg: PgEverything) -> list[str]:
    return [each.name for each in pg.pubsub.subscriptions()]


@pytest.mark.usefixtures("often")
async def test_it_is_taken_up_when_it_is_created_again(
    pg: PgEverything, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with working(pg):
        for life in range(3):
            await published(pg, seen, "t", f"before {life}")
            caplog.clear()
            await asyncio.to_thread(pg.pubsub.delete, "s")
            await asyncio.to_thread(pg.pubsub.publish, "t", f"between {life}")
            await until(lambda: GONE in caplog.text)
            await published(pg, seen, "u", f"other {life}")  # which goes on
            assert await asyncio.to_thread(names, pg) == ["other"]  # it creates nothing itself
            await asyncio.to_thread(create, pg, start="latest", max_deliveries=2)
            await until(lambda: one(pg).members == 1)
            await published(pg, seen, "t", f"after {life}")
            assert (await asyncio.to_thread(one, pg)).max_deliveries == 7  # the code's, as when it starts
            assert caplog.text.count(GONE) == 1
    assert [each for each in seen if each.startswith("between")] == []
    assert [each for each in await asyncio.to_thread(pg.pubsub.subscriptions) if each.members or each.in_flight] == []


@pytest.mark.usefixtures("often")
async def test_one_of_another_pattern_is_not_taken_up(
    pg: PgEverything, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    async with working(pg):
        await published(pg, seen, "t", "before")
        await asyncio.to_thread(pg.pubsub.delete, "s")
        await asyncio.to_thread(create, pg, "t.>", max_deliveries=2)
        await until(lambda: "'t.>', not for 't'" in caplog.text)
        await published(pg, seen, "u", "other")
        assert (await asyncio.to_thread(one, pg)).max_deliveries == 2
        assert caplog.text.count("'t.>', not for 't'") == 1

        await asyncio.to_thread(pg.pubsub.delete, "s")
        await asyncio.to_thread(create, pg)
        await until(lambda: one(pg).members == 1)
        await published(pg, seen, "t", "after")


@pytest.mark.usefixtures("often")
async def test_what_was_in_hand_when_it_was_deleted_is_nobodys(pg: PgEverything) -> None:
    begun, may_end = threading.Event(), threading.Event()
    ended: list[Any] = []

    @pg.subscriber("t", name="s", start="earliest")
    def handle(message: Message) -> None:
        if message.data == "old":
            begun.set()
            may_end.wait(PATIENCE)
        ended.append((message.data, message.delivery))

    async with working(pg, concurrency=2):
        await asyncio.to_thread(pg.events.append_many, "t", ["old", "behind it"], key="k")
        await until(begun.is_set)
        await asyncio.to_thread(pg.pubsub.delete, "s")
        await asyncio.to_thread(create, pg, start="latest")
        await asyncio.to_thread(pg.pubsub.publish, "t", "new", key="k")
        await until(lambda: ("new", 1) in ended)
        may_end.set()
        await until(lambda: ("old", 1) in ended)
        await until(lambda: one(pg).in_flight == 0)
    assert sorted(ended) == [("new", 1), ("old", 1)]


async def test_looking_for_it_costs_little(pg: PgEverything, seen: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    execute = AsyncPoolCarrier.execute

    async def counted(carrier: AsyncPoolCarrier, query: Query[Any]) -> Any:
        asked.append(query.statement.name)
        return await execute(carrier, query)

    monkeypatch.setattr(AsyncPoolCarrier, "execute", counted)
    monkeypatch.setattr("pgeverything.worker.consumer._LOOK", 3600.0)
    async with working(pg):
        await published(pg, seen, "t", "before")
        await asyncio.to_thread(pg.pubsub.delete, "s")
        asked.clear()
        for number in range(9):
            await published(pg, seen, "u", number)
        await until(lambda: asked.count("claim") >= 9)
    assert asked.count("create") == 1


@pgbouncer.needs_hints
@pytest.mark.usefixtures("often")
async def test_its_creation_wakes_a_worker_that_sleeps(
    pg: PgEverything, db: Database, seen: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would not look again by itself for an hour."""
    naps: list[float] = []

    def hour(*_args: Any, **_options: Any) -> float:
        naps.append(3600.0)
        return 3600.0

    monkeypatch.setattr("pgeverything.pubsub.pace.Pace.pause", hour)
    async with working(pg, poll="1h"):
        await published(pg, seen, "t", "before")
        await asyncio.to_thread(pg.pubsub.delete, "s")
        asleep = "select from pgeverything.event_sleepers s join pgeverything.members m using (id)"
        await until(lambda: naps and db.execute(asleep).fetchall())
        await asyncio.to_thread(create, pg)
        await until(lambda: one(pg).members == 1)
        await published(pg, seen, "t", "after")


def test_who_iterates_it_is_told(pg: PgEverything) -> None:
    with pg.pubsub.subscribe("t", name="s", timeout=PATIENCE) as messages:
        pg.pubsub.delete("s")
        create(pg)
        with pytest.raises(SubscriptionNotFound, match=GONE):
            next(iter(messages))


def test_a_worker_that_ends_when_idle_does_not_wait_for_it(pg: PgEverything, seen: list[Any]) -> None:
    forget: Callable[[], bool] = lambda: pg.pubsub.delete("s")  # noqa: E731
    pg.pubsub.publish("u", 1)
    pg.worker().run(until_idle=True, ready=forget)
    assert seen == [1]
    assert names(pg) == ["other"]
