"""What waiting costs, and that a broken connection costs nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterable
from typing import Any

import psycopg
import pytest

from pgeverything import AsyncMessage, Message, PgEverything
from pgeverything.engine.carriers import AsyncPoolCarrier, OwnPoolCarrier
from pgeverything.engine.plan import Query
from pgeverything.pubsub import Subscriber
from tests import pgbouncer
from tests.waiting import PATIENCE, eventually, until

from .consuming import data


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What statements are run by blocking callers, who have to poll, as behind a pooler."""
    asked: list[str] = []
    execute = OwnPoolCarrier.execute

    def counted(carrier: OwnPoolCarrier, query: Query[Any]) -> Any:
        asked.append(f"{query.statement.module}.{query.statement.name}")
        return execute(carrier, query)

    monkeypatch.setattr(OwnPoolCarrier, "execute", counted)
    monkeypatch.setattr("pgeverything.engine.hints.Ears.channel", None)
    return asked


def iterate(subscribers: Iterable[Subscriber]) -> list[Any]:
    """Iterate them in threads, until all have waited long enough; return what they were given."""
    seen: list[Any] = []

    def listen(subscriber: Subscriber) -> None:
        for message in subscriber:
            seen.append(message.data)
            message.ack()

    threads = [threading.Thread(target=listen, args=[each]) for each in subscribers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def test_many_broadcasts_of_a_process_look_together(pg: PgEverything, asked: list[str]) -> None:
    subscribers = [pg.pubsub.subscribe("t", timeout="4s") for _ in range(20)]
    iterate(subscribers[:1])
    alone = asked.count("events.horizon")
    asked.clear()
    iterate(subscribers[1:])

    assert asked.count("events.horizon") < 10 * alone  # 19, if each looked for itself


def test_many_subscriptions_of_a_process_look_together(pg: PgEverything, asked: list[str]) -> None:
    """And a broadcast with them; and their leases are renewed together."""
    with contextlib.ExitStack() as stack:
        durable = [
            stack.enter_context(pg.pubsub.subscribe("t", name=f"s{number}", lease="3s", timeout="4s"))
            for number in range(20)
        ]
        iterate(durable[:1])
        claims = asked.count("pubsub.claim")
        asked.clear()
        iterate([*durable[1:], pg.pubsub.subscribe("t", timeout="4s")])

    assert asked.count("pubsub.claim") < 10 * claims  # 20, if each looked for itself
    assert asked.count("events.horizon") == 1  # where the broadcast begins
    assert asked.count("pubsub.beat") < 20  # 100, if each renewed its own


@pytest.mark.parametrize("broadcast", [False, True], ids=["durable", "and-a-broadcast"])
def test_who_looks_together_overlooks_nothing(pg: PgEverything, asked: list[str], broadcast: bool) -> None:
    """Each subscription is given something to do in another way, when all have waited for a while."""
    first = pg.events.append_many("old", [1, 2])[0]
    with contextlib.ExitStack() as stack:

        def waiting(name: str, pattern: str, **options: Any) -> Subscriber:
            return stack.enter_context(pg.pubsub.subscribe(pattern, name=name, timeout="6s", **options))

        subscribers = [
            waiting("published", "new"),
            waiting("moved", "old"),
            waiting("resumed", "old", start=first.position),
            waiting("redriven", "old", start="earliest", max_deliveries=1),
            *(waiting(f"nothing {number}", "none") for number in range(5)),
            *([pg.pubsub.subscribe("new", timeout="6s")] if broadcast else []),
        ]
        pg.pubsub.pause("resumed")
        for message in (next(subscribers[3]), next(subscribers[3])):
            message.nack()
        dead = [each.id for each in pg.dead_letters.list(subscription="redriven")]
        asked.clear()

        def give() -> None:
            eventually(lambda: asked.count("pubsub.claim") >= 13, "each to have looked, and somebody for all")
            pg.pubsub.publish("new", 3)
            pg.pubsub.seek("moved", first.position)
            pg.pubsub.resume("resumed")
            pg.dead_letters.redrive(ids=dead)

        giving = threading.Thread(target=give)
        giving.start()
        seen = iterate(subscribers)
        giving.join()

    assert sorted(seen) == [1, 2, 2, 2, 3, *([3] if broadcast else [])]


@pgbouncer.needs_hints
async def test_an_idle_worker_asks_seldom(
    pg: PgEverything, db: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten subscriptions, with the hint: its polls are far apart after a few seconds."""
    asked: list[tuple[float, str]] = []
    execute = AsyncPoolCarrier.execute

    async def counted(carrier: AsyncPoolCarrier, query: Query[Any]) -> Any:
        asked.append((time.monotonic(), f"{query.statement.module}.{query.statement.name}"))
        return await execute(carrier, query)

    for number in range(10):

        @pg.subscriber("t", name=f"s{number}")
        async def handle(message: AsyncMessage) -> None: ...

    monkeypatch.setattr(AsyncPoolCarrier, "execute", counted)
    worker = pg.worker()
    serving = asyncio.create_task(worker.serve())
    await until(lambda: db.execute("select from pgeverything.event_sleepers").fetchall())
    await asyncio.sleep(5.0)  # what is looked at here is that little happens
    worker.stop()
    await serving

    of_messages = [name for _, name in asked if name in ("pubsub.claim", "pubsub.beat", "events.sleep")]
    assert len(of_messages) < 15, of_messages
    late = [name for at, name in asked if at > asked[-1][0] - 2.0 and name == "pubsub.claim"]
    assert len(late) <= 1


def cut(db: psycopg.Connection[Any]) -> None:
    """End every other session of this database."""
    db.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )


def test_a_broadcast_survives_the_loss_of_its_connections(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    subscriber = pg.pubsub.subscribe("t", timeout="20s")
    seen: list[Any] = []

    def listen() -> None:
        for message in subscriber:
            seen.append(message.data)
            if message.data == "last":
                break

    thread = threading.Thread(target=listen)
    thread.start()
    for number in range(20):
        db.execute("select pgeverything.publish('t', %s::text::jsonb)", [str(number)])
        if number % 5 == 0:
            cut(db)
    db.execute("select pgeverything.publish('t', '\"last\"')")
    thread.join(PATIENCE)
    assert seen == [*range(20), "last"]


def test_a_member_survives_the_loss_of_its_connections(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    pg.events.append_many("t", range(50), key=["a", "b"] * 25)
    done: list[int] = []
    with pg.pubsub.subscribe("t", name="s", start="earliest", timeout="6s") as subscriber:
        for message in subscriber:
            if message.data % 7 == 0:
                cut(db)
            message.ack()
            done.append(message.data)

    assert sorted(set(done)) == list(range(50))
    for parity in (0, 1):
        own = [number for number in dict.fromkeys(done) if number % 2 == parity]
        assert own == sorted(own)
    assert db.execute("select count(*) from pgeverything.deliveries").fetchone() == (0,)


def test_a_worker_survives_the_loss_of_its_connections(pg: PgEverything, db: psycopg.Connection[Any]) -> None:
    db.execute("create table if not exists public.counted (n bigint); delete from public.counted")
    cuts = iter(range(5))

    @pg.subscriber("t", name="s", start="earliest", transactional=True)
    def handle(message: Message, tx: Any) -> None:
        tx.connection.execute("insert into public.counted values (%s)", [message.data])
        if message.data % 20 == 0 and next(cuts, None) is not None:
            cut(db)

    pg.events.append_many("t", range(100), key=["a", "b", "c", "d"] * 25)
    while db.execute("select count(*) from public.counted").fetchone() != (100,):
        pg.worker(lease="4s").run(until_idle=True)
    assert [n for (n,) in db.execute("select n from public.counted order by 1").fetchall()] == list(range(100))
    assert data(pg.dead_letters.list()) == []
