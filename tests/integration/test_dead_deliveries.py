"""Dead messages among the dead letters: listed, grouped, redriven, discarded, and what they hold up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pgeverything import DeadDelivery, InvalidArgument, Job, JobNotFound, PgEverything, Retry

from .consuming import QUIET, consume, data, one

if TYPE_CHECKING:
    import psycopg

    from pgeverything import Message

    from .carriers import Face

    Database = psycopg.Connection[Any]


def kill(pg: PgEverything, count: int = 3, *, name: str = "s", **options: Any) -> list[int]:
    """Let the first `count` of twice as many messages die; returns their ids."""
    pg.events.append_many("t", range(2 * count), key=[f"k{n % count}" for n in range(2 * count)])
    options = {"start": "earliest", "max_deliveries": 1, "timeout": QUIET} | options
    for message in pg.pubsub.subscribe("t", name=name, **options):
        message.nack() if message.data < count else message.ack()
    return [letter.id for letter in reversed(pg.dead_letters.list(subscription=name))]


def test_they_are_listed_beside_the_jobs(on: Face, pg: PgEverything) -> None:
    @pg.task(retry=Retry.never())
    def fails() -> None:
        raise ValueError("no")

    first = kill(pg, 2)
    job = fails.enqueue()
    pg.worker().run(until_idle=True)
    second = kill(pg, 1, name="other")

    letters = on.dead_letters.list()
    assert [letter.id for letter in letters][:2] == [second[-1], job.id] or len(letters) > 4
    assert {letter.id for letter in letters} >= {*first, job.id, *second}
    assert [type(letter) for letter in on.dead_letters.list(task="fails")] == [Job]
    deliveries = on.dead_letters.list(subscription="s")
    assert [type(letter) for letter in deliveries] == [DeadDelivery] * 2
    newest = deliveries[0]
    assert (newest.subscription, newest.event.data, newest.event.key) == ("s", 1, "k1")
    assert (newest.deliveries, newest.reason, newest.position) == (1, "failed at delivery 1", newest.event.position)
    assert on.dead_letters.get(newest.id) == newest
    assert on.dead_letters.get(job.id).task == "fails"
    assert on.dead_letters.count() == len(letters)
    assert on.dead_letters.count(subscription="s") == 2
    assert {group.subscription or group.task for group in on.dead_letters.groups()} == {"s", "other", "fails"}
    assert [group.count for group in on.dead_letters.groups(subscription="s")] == [2]
    with pytest.raises(JobNotFound):
        on.dead_letters.get(10**9)


def test_a_handlers_error_is_kept(pg: PgEverything) -> None:
    @pg.subscriber("t", name="s", start="earliest", max_deliveries=1)
    def handle(message: Message) -> None:
        raise ValueError("no such order")

    pg.pubsub.publish("t", 1)
    pg.worker().run(until_idle=True)
    [letter] = pg.dead_letters.list()
    assert letter.error is not None
    assert (letter.error["type"], letter.error["message"]) == ("ValueError", "no such order")
    assert "handle" in letter.error["traceback"]
    [group] = pg.dead_letters.groups()
    assert (group.fingerprint, group.error_message) == (letter.fingerprint, "no such order")
    assert pg.dead_letters.count(fingerprint=letter.fingerprint) == 1


def test_a_redrive_delivers_them_again(on: Face, pg: PgEverything) -> None:
    ids = kill(pg)
    assert on.dead_letters.redrive(ids[:1]) == 1
    on.commit()
    assert on.dead_letters.redrive(subscription="s", dry_run=True) == 2
    assert on.dead_letters.redrive(everything=True, limit=1) == 1
    on.commit()
    assert (one(pg).dead, one(pg).retrying) == (1, 2)

    messages = list(pg.pubsub.subscribe("t", name="s", timeout=QUIET))
    assert sorted((message.data, message.delivery) for message in messages) == [(0, 1), (1, 1)]


def test_a_redrive_leaves_alone_what_dies_meanwhile(pg: PgEverything, db: Database) -> None:
    """Or it would not end where they die as fast as they are redriven."""
    kill(pg)

    def die(_: int) -> None:
        db.execute(
            """update pgeverything.deliveries
               set dead_id = nextval('pgeverything.job_seq'), died_at = clock_timestamp(), due_at = null
               where dead_id is null"""
        )
        redriven.append(pg.dead_letters.list(subscription="s")[0].redriven)

    redriven: list[int] = []
    assert pg.dead_letters.redrive(subscription="s", progress=die, limit=10) == 3
    assert redriven == [1]


def test_a_redrive_at_a_rate_spreads_them(pg: PgEverything, db: Database) -> None:
    kill(pg)
    assert pg.dead_letters.redrive(subscription="s", rate=0.01) == 3
    spread = db.execute("select extract(epoch from max(due_at) - min(due_at)) from pgeverything.deliveries").fetchone()
    assert spread is not None
    assert float(spread[0]) == pytest.approx(200, abs=5)


@pytest.mark.parametrize("end", ["redrive", "discard"])
def test_what_a_dead_message_holds_follows_its_redrive_or_its_end(pg: PgEverything, end: str) -> None:
    kill(pg, on_dead="hold")
    assert (one(pg).dead, one(pg).waiting) == (3, 3)

    assert getattr(pg.dead_letters, end)(subscription="s") == 3
    messages = []
    for message in pg.pubsub.subscribe("t", name="s", timeout=QUIET):
        messages.append(message)
        message.ack()
    for key in ("k0", "k1", "k2"):
        number = int(key[1])
        expected = [number, number + 3] if end == "redrive" else [number + 3]
        assert [message.data for message in messages if message.key == key] == expected
    assert (one(pg).dead, one(pg).waiting, pg.dead_letters.count()) == (0, 0, 0)


def test_a_stopped_subscription_goes_on_in_order_when_it_is_redriven_first(pg: PgEverything) -> None:
    pg.events.append_many("t", range(4), key="k")
    options: dict[str, Any] = {"name": "s", "timeout": QUIET}
    first = pg.pubsub.subscribe("t", start="earliest", max_deliveries=1, on_dead="stop", **options)
    next(first).nack()
    assert list(first) == []
    assert one(pg).stopped is not None

    assert pg.dead_letters.redrive(subscription="s") == 1
    pg.pubsub.resume("s")
    messages = []
    for message in pg.pubsub.subscribe("t", **options):
        messages.append(message.data)
        message.ack()
    assert messages == [0, 1, 2, 3]


def test_a_discarded_one_is_forgotten(on: Face, pg: PgEverything) -> None:
    ids = kill(pg)
    assert on.dead_letters.discard(ids[:1], dry_run=True) == 1
    assert on.dead_letters.discard(ids[:1]) == 1
    assert on.dead_letters.discard(subscription="s", limit=1) == 1
    on.commit()
    assert [letter.id for letter in pg.dead_letters.list()] == ids[2:]
    assert list(pg.pubsub.subscribe("t", name="s", timeout=QUIET)) == []


def test_one_whose_event_is_gone_is_still_listed(pg: PgEverything, db: Database) -> None:
    kill(pg, 1)
    db.execute("delete from pgeverything.events")
    [letter] = pg.dead_letters.list()
    assert isinstance(letter, DeadDelivery)
    assert letter.event is None


def test_bad_input_is_refused(pg: PgEverything) -> None:
    for call in (
        lambda: pg.dead_letters.list(subscription="s", queue="q"),
        lambda: pg.dead_letters.redrive(subscription="s", to_queue="q"),
        lambda: pg.dead_letters.count(subscription=""),
        pg.dead_letters.discard,
    ):
        with pytest.raises(InvalidArgument):
            call()


def test_a_job_of_that_name_is_not_touched(pg: PgEverything) -> None:
    kill(pg, 1)
    assert pg.dead_letters.redrive(queue="default", task="s") == 0
    assert data(consume_none(pg)) == []


def consume_none(pg: PgEverything) -> list[Any]:
    from .carriers import Face

    return consume(Face(pg, None, lambda value: value), "t", name="s")
