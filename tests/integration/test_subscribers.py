"""Handlers of messages in a worker: what they get, what becomes of their message, how the worker ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import (
    AsyncMessage,
    AsyncPgEverything,
    Bound,
    Cancel,
    InvalidArgument,
    Message,
    PgEverything,
    Reject,
    Retry,
    Snooze,
    SubscriptionError,
    TaskError,
)
from pgeverything.app import AsyncBound
from tests import pgbouncer
from tests.waiting import PATIENCE

if TYPE_CHECKING:
    import psycopg

    Database = psycopg.Connection[Any]

AT_ONCE = Retry(first="10ms", most="10ms")


def one(pg: PgEverything, name: str) -> Any:
    [found] = [each for each in pg.pubsub.subscriptions() if each.name == name]
    return found


def run(pg: Any) -> None:
    """Work until nothing is left, retries included."""
    pg.worker().run(until_idle=True)
    while any(each.retrying for each in pg.pubsub.subscriptions()):
        pg.worker().run(until_idle=True)


def test_handlers_of_either_kind_get_their_messages(pg: PgEverything) -> None:
    seen: dict[str, list[Any]] = {"thread": [], "loop": []}
    threads = set()

    @pg.subscriber("orders.>", name="thread", start="earliest")
    def in_thread(message: Message) -> None:
        threads.add(threading.current_thread() is threading.main_thread())
        seen["thread"].append((message.topic, message.key, message.data, message.delivery))

    @pg.subscriber("orders.*", name="loop", start="earliest")
    async def on_loop(message: AsyncMessage) -> None:
        await asyncio.sleep(0)
        seen["loop"].append((message.topic, message.key, message.data, message.delivery))

    pg.pubsub.publish("orders.eu", 1, key="k")
    pg.pubsub.publish("others", 2)
    pg.pubsub.publish("orders.us", 3)
    run(pg)

    assert sorted(seen["thread"]) == sorted(seen["loop"]) == [("orders.eu", "k", 1, 1), ("orders.us", None, 3, 1)]
    assert threads == {False}
    assert one(pg, "thread").members == 0


def test_the_functions_name_is_the_subscriptions_and_calling_it_calls_it(pg: PgEverything) -> None:
    @pg.subscriber("t")
    def projection(message: Message) -> str:
        return message.topic

    run(pg)
    pg.pubsub.publish("t", 1)
    [event] = pg.events.read()
    message = Message(*(getattr(event, name) for name in event.__dataclass_fields__), 1, None, lambda *_: None)  # type: ignore[attr-defined]
    assert one(pg, "projection").pattern == "t"
    assert projection(message) == "t"


def test_an_async_application_has_handlers_too(url: str, db: Database) -> None:
    seen: list[Any] = []

    async def work() -> None:
        async with AsyncPgEverything(url) as pg:

            @pg.subscriber("t", name="s", start="earliest", transactional=True)
            async def handle(message: AsyncMessage, tx: AsyncBound) -> None:
                seen.append((await (await tx.connection.execute("select 1")).fetchone(), message.data))

            await pg.pubsub.publish("t", 5)
            await pg.worker().serve(until_idle=True)

    asyncio.run(work())
    assert seen == [((1,), 5)]


def test_a_handler_that_raises_gets_the_message_again(pg: PgEverything) -> None:
    seen: list[tuple[int, int]] = []

    @pg.subscriber("t", name="s", start="earliest", retry=AT_ONCE)
    def handle(message: Message) -> None:
        seen.append((message.data, message.delivery))
        if message.data == 0 and message.delivery < 3:
            raise ValueError("not yet")

    pg.events.append_many("t", range(3), key="k")
    run(pg)
    assert seen == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1)]


def test_too_many_failures_are_death(pg: PgEverything, db: Database) -> None:
    @pg.subscriber("t", name="s", start="earliest", retry=AT_ONCE, max_deliveries=2)
    async def handle(message: AsyncMessage) -> None:
        if message.data == 0:
            raise ValueError("never")

    pg.events.append_many("t", range(3), key="k")
    run(pg)
    assert (one(pg, "s").dead, one(pg, "s").waiting) == (1, 0)
    row = db.execute("select reason, error ->> 'type', fingerprint is not null from pgeverything.deliveries").fetchone()
    assert row == ("failed at delivery 2", "ValueError", True)


def test_what_a_handler_may_raise_and_say(pg: PgEverything, db: Database) -> None:
    seen: list[tuple[str, int]] = []

    @pg.subscriber("t", name="s", start="earliest", retry=Retry(exceptions={KeyError: None}))
    def handle(message: Message) -> None:
        seen.append((message.data, message.delivery))
        if message.delivery > 1:
            return
        match message.data:
            case "snooze":
                raise Snooze(0)
            case "reject":
                raise Reject("bad")
            case "cancel":
                raise Cancel("nothing to do")
            case "hopeless":
                raise KeyError(1)
            case "nack":
                message.nack(0)
            case "ack":
                message.ack()

    said = ["snooze", "reject", "cancel", "hopeless", "nack", "ack"]
    for each in said:
        pg.pubsub.publish("t", each)
    run(pg)
    assert sorted(seen) == sorted([(each, 1) for each in said] + [("snooze", 2), ("nack", 2)])
    reasons = db.execute("select reason, failures from pgeverything.deliveries order by 1").fetchall()
    assert reasons == [("given up by its retry policy", 1), ("rejected: bad", 1)]


@pytest.mark.parametrize("kind", ["thread", "loop"])
def test_a_transactional_handlers_writes_and_its_acknowledgement_are_one(
    pg: PgEverything, db: Database, kind: str
) -> None:
    db.execute("create table if not exists public.totals (key text primary key, n bigint); delete from public.totals")
    add = "insert into public.totals values (%s, 1) on conflict (key) do update set n = totals.n + 1"
    options: dict[str, Any] = {"name": "s", "start": "earliest", "transactional": True, "retry": AT_ONCE}

    if kind == "thread":

        @pg.subscriber("t", **options)
        def count(message: Message, tx: Bound) -> None:
            tx.connection.execute(add, [message.key])
            tx.jobs.enqueue("done", {"n": message.data})
            if message.delivery == 1:
                raise RuntimeError("after its writes")
            if message.delivery == 2:
                message.nack(0)
    else:

        @pg.subscriber("t", **options)
        async def count_async(message: AsyncMessage, tx: AsyncBound) -> None:
            await tx.connection.execute(add, [message.key])
            await tx.jobs.enqueue("done", {"n": message.data})
            if message.delivery == 1:
                raise RuntimeError("after its writes")
            if message.delivery == 2:
                await message.nack(0)

    pg.events.append_many("t", range(10), key=["a", "b"] * 5)
    run(pg)
    assert db.execute("select key, n from public.totals order by 1").fetchall() == [("a", 5), ("b", 5)]
    assert sorted(job.args["n"] for job in pg.jobs.list()) == list(range(10))


def test_a_transactional_handler_need_not_take_its_transaction(pg: PgEverything) -> None:
    seen = []

    @pg.subscriber("t", name="s", start="earliest", transactional=True)
    def handle(message: Message) -> None:
        seen.append(message.data)

    pg.pubsub.publish("t", 1)
    run(pg)
    assert seen == [1]


def test_a_handler_may_acknowledge_in_a_transaction_of_its_own(pg: PgEverything) -> None:
    errors = []

    @pg.subscriber("t", name="own", start="earliest")
    def own(message: Message) -> None:
        with pg.transaction() as tx:
            tx.pubsub.ack(message)

    @pg.subscriber("t", name="twice", start="earliest", transactional=True)
    def twice(message: Message, tx: Bound) -> None:
        try:
            tx.pubsub.ack(message)
        except SubscriptionError as error:
            errors.append(str(error))

    pg.pubsub.publish("t", 1)
    run(pg)
    assert one(pg, "own").in_flight == one(pg, "twice").in_flight == 0
    assert "by itself" in errors[0]


def test_messages_and_jobs_are_done_before_it_is_idle(pg: PgEverything) -> None:
    """A message enqueues a job, which publishes a message, and so on."""

    @pg.task()
    def job(n: int) -> None:
        pg.pubsub.publish("t", n)

    @pg.subscriber("t", name="s", start="earliest", transactional=True)
    def handle(message: Message, tx: Bound) -> None:
        if message.data:
            job.on(tx).enqueue(message.data - 1)

    pg.pubsub.publish("t", 5)
    pg.worker().run(until_idle=True)
    assert [event.data for event in pg.events.read()] == [5, 4, 3, 2, 1, 0]
    assert pg.jobs.counts()["succeeded"] == 5


def test_keys_are_handled_in_order_and_side_by_side(pg: PgEverything) -> None:
    running: dict[str, int] = {}
    seen: dict[str, list[int]] = {"a": [], "b": [], "c": []}
    together = []

    @pg.subscriber("t", name="s", start="earliest")
    async def handle(message: AsyncMessage) -> None:
        assert message.key is not None
        running[message.key] = running.get(message.key, 0) + 1
        together.append(dict(running))
        await asyncio.sleep(0.001)
        running[message.key] -= 1
        seen[message.key].append(message.data)

    pg.events.append_many("t", range(90), key=["a", "b", "c"] * 30)
    run(pg)
    assert all(numbers == sorted(numbers) and len(numbers) == 30 for numbers in seen.values())
    assert max(max(each.values()) for each in together) == 1
    assert max(sum(each.values()) for each in together) == 3


def test_sigterm_drains(pg: PgEverything, db: Database) -> None:
    """What runs is finished and acknowledged; what was claimed ahead goes back untouched."""
    finished: list[int] = []

    @pg.subscriber("t", name="s", start="earliest")
    async def handle(message: AsyncMessage) -> None:
        if message.data == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.05)
        finished.append(message.data)

    pg.events.append_many("t", range(50))
    pg.worker(concurrency=2).run()
    assert 0 in finished
    assert len(finished) < 50
    assert (one(pg, "s").in_flight, one(pg, "s").members) == (0, 0)
    assert db.execute("select count(*) from pgeverything.deliveries where failures + crashes > 0").fetchone() == (0,)

    run(pg)
    assert sorted(finished) == list(range(50))


def test_a_drain_that_takes_too_long_interrupts(pg: PgEverything) -> None:
    deliveries = []

    @pg.subscriber("t", name="s", start="earliest")
    async def handle(message: AsyncMessage) -> None:
        deliveries.append(message.delivery)
        if len(deliveries) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)

    pg.pubsub.publish("t", 1)
    pg.worker(drain="100ms").run()
    assert (one(pg, "s").in_flight, one(pg, "s").retrying) == (0, 1)
    run(pg)
    assert deliveries == [1, 1]


async def test_cancelling_the_worker_ends_it_whatever_its_handlers_make_of_that(pg: PgEverything) -> None:
    began = asyncio.Event()

    @pg.subscriber("t", name="s", start="earliest")
    async def stubborn(message: AsyncMessage) -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)

    await asyncio.to_thread(pg.pubsub.publish, "t", 1)
    serving = asyncio.create_task(pg.worker().serve())
    await asyncio.wait_for(began.wait(), PATIENCE)
    serving.cancel()
    ended, _ = await asyncio.wait([serving], timeout=PATIENCE)
    assert ended
    assert (await asyncio.to_thread(one, pg, "s")).in_flight == 1  # to be rescued


@pgbouncer.needs_hints
async def test_an_idle_worker_is_woken_by_a_hint(pg: PgEverything, db: Database) -> None:
    seen = asyncio.Event()

    @pg.subscriber("t", name="s")
    async def handle(message: AsyncMessage) -> None:
        seen.set()

    worker = pg.worker(poll="10m")
    serving = asyncio.create_task(worker.serve())
    asleep = "select from pgeverything.event_sleepers s join pgeverything.members m using (id)"
    async with asyncio.timeout(PATIENCE):
        while not await asyncio.to_thread(lambda: db.execute(asleep).fetchall()):
            pass
        await asyncio.sleep(1.0)  # its pauses have grown
        await asyncio.to_thread(pg.pubsub.publish, "t", 1)
        await seen.wait()
        worker.stop()
        await serving
    assert db.execute("select from pgeverything.event_sleepers").fetchall() == []


def test_a_second_handler_of_a_subscription_is_refused(pg: PgEverything) -> None:
    @pg.subscriber("t", name="s")
    def first(message: Message) -> None: ...

    with pytest.raises(SubscriptionError, match="two handlers"):

        @pg.subscriber("t", name="s")
        def second(message: Message) -> None: ...


def test_what_is_no_handler_is_refused(pg: PgEverything) -> None:
    with pytest.raises(TaskError, match="message"):
        pg.subscriber("t", name="none")(lambda: None)  # type: ignore[arg-type,misc]
    with pytest.raises(TaskError, match="transactional=True"):
        pg.subscriber("t", name="two")(lambda message, tx: None)
    with pytest.raises(TaskError, match="message"):
        pg.subscriber("t", name="three", transactional=True)(lambda a, b, c: None)  # type: ignore[arg-type,misc]
    for options in ({"on_dead": "x"}, {"max_deliveries": 0}, {"start": "x"}, {"retry": 1}, {"max_in_flight": 0}):
        with pytest.raises(InvalidArgument):
            pg.subscriber("t", name="s", **options)(lambda message: None)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument):
        pg.subscriber("..", name="s")(lambda message: None)


def test_a_worker_does_not_start_with_another_pattern(pg: PgEverything, db: Database) -> None:
    pg.pubsub.subscribe("t", name="s").close()

    @pg.subscriber("u", name="s")
    def handle(message: Message) -> None: ...

    ready: list[bool] = []
    with pytest.raises(SubscriptionError, match="'t'"):
        pg.worker().run(until_idle=True, ready=lambda: ready.append(True))
    assert ready == []
    rows = db.execute("select (select count(*) from pgeverything.workers), (select count(*) from pgeverything.members)")
    assert rows.fetchone() == (0, 0)


def test_the_codes_settings_are_the_subscriptions(pg: PgEverything) -> None:
    pg.pubsub.subscribe("t", name="s", max_deliveries=9, on_dead="stop").close()

    @pg.subscriber("t", name="s", max_deliveries=3, ordered=False)
    def handle(message: Message) -> None: ...

    run(pg)
    assert (one(pg, "s").max_deliveries, one(pg, "s").on_dead, one(pg, "s").ordered) == (3, "skip", False)
