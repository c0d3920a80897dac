"""The grants that `docs/how-to/roles.md` shows are enough, and are no more than they say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from pgeverything import (
    Bound,
    DuplicateJob,
    JobContext,
    Message,
    PgEverything,
    RetentionGap,
    Retry,
    SchemaError,
    WrongVersion,
)
from pgeverything.engine.plan import drive
from pgeverything.events import retention
from pgeverything.locks import plans as locks

DENIED = psycopg.errors.InsufficientPrivilege


def test_the_application_does_everything_but_migrate(app: PgEverything, roles: dict[str, str]) -> None:
    @app.task(retry=Retry(attempts=2, first="10ms", most="10ms"))
    def work(fail: bool) -> str:
        if fail:
            raise RuntimeError("as told")
        return "done"

    @app.task()
    def together(context: JobContext) -> None:
        with context.transaction() as tx:
            assert tx.connection.execute("select current_user").fetchone() == (roles["app"],)

    done = work.options(ordering_key="k").enqueue(False)
    unique = work.options(unique_key="u", delay="1h").enqueue(False)
    replaced = work.options(unique_key="u", on_duplicate="replace", delay="1h").enqueue(False)
    joined = together.enqueue()
    dead = work.enqueue(True)
    app.jobs.configure("default", concurrency=5, per_key=2)
    app.jobs.configure("small", max_depth=1, on_full="drop")
    work.options(queue="small").enqueue_many([(False,)])
    dropped = work.options(queue="small").enqueue(False)

    worker = app.worker(queues=["default", "small"])
    worker.run(until_idle=True)
    while app.jobs.get(dead.id).state == "scheduled":  # its second attempt was not due yet, so the worker was idle
        worker.run(until_idle=True)

    states = {job.id: job.state for job in app.jobs.list()}
    assert (states[done.id], states[joined.id], states[dead.id]) == ("succeeded", "succeeded", "dead")
    assert (states[unique.id], states[replaced.id]) == ("cancelled", "scheduled")
    assert dropped.state == "cancelled"
    assert app.dead_letters.groups()[0].count == 1
    assert app.dead_letters.redrive([dead.id]) == 1
    app.jobs.pause("default")
    app.jobs.resume("default")
    app.jobs.retry(replaced.id)
    assert app.jobs.cancel(replaced.id)
    assert app.jobs.why(dead.id)
    assert app.jobs.failures(dead.id)
    assert app.jobs.queues()
    assert app.migrate() == []


def test_the_application_looks_after_the_event_log(app: PgEverything, db: psycopg.Connection[object]) -> None:
    event = app.events.append("t", 1, key="k")
    app.events.retain("1d")
    db.execute("select setval('pgeverything.event_seq', 12000000)")
    last = app.events.append("t", 2)

    assert drive(app._database.carrier(), retention.tend()) is None
    assert app.events.drop_before(last.position) == 9_999_999
    assert [each.position for each in app.events.read()] == [last.position]
    with pytest.raises(RetentionGap):
        list(app.events.read(after=event.position))


def test_the_application_subscribes(app: PgEverything, roles: dict[str, str]) -> None:
    seen = []

    @app.subscriber("t", name="handled", start="earliest", transactional=True, max_deliveries=1, on_dead="hold")
    def handle(message: Message, tx: Bound) -> None:
        seen.append(tx.connection.execute("select current_user").fetchone())
        if message.data == 2:
            raise ValueError("as told")

    app.pubsub.subscribe("t", name="s", start="earliest").close()
    broadcast = app.pubsub.subscribe("t", timeout="300ms")
    app.events.append_many("t", [1, 2, 3], key="k")
    app.worker().run(until_idle=True)
    with app.pubsub.subscribe("t", name="s", timeout="300ms") as subscriber:
        next(subscriber).ack()
        next(subscriber).nack(0)

    assert seen == [(roles["app"],)] * 2
    assert [message.data for message in broadcast] == [1, 2, 3]
    assert app.dead_letters.redrive(subscription="handled") == 1
    assert app.pubsub.lag("handled").events == 2
    app.pubsub.pause("s")
    app.pubsub.resume("s")
    app.pubsub.seek("s", "earliest")
    assert app.pubsub.delete("s")


def test_a_producer_listens_and_takes_nothing(producer: PgEverything, app: PgEverything) -> None:
    app.pubsub.subscribe("t", name="s").close()
    broadcast = producer.pubsub.subscribe("t", timeout="300ms")
    producer.pubsub.publish("t", 1)

    assert [message.data for message in broadcast] == [1]
    assert producer.pubsub.lag("s").events == 1
    for call in (
        lambda: producer.pubsub.subscribe("t", name="s"),
        lambda: producer.pubsub.subscribe("t", name="new"),
        lambda: producer.pubsub.seek("s", "latest"),
        lambda: producer.pubsub.pause("s"),
        lambda: producer.pubsub.delete("s"),
    ):
        with pytest.raises(DENIED):
            call()


def test_the_application_keeps_schedules(app: PgEverything, db: psycopg.Connection[object]) -> None:
    @app.cron(every="1h")
    @app.task()
    def work() -> None: ...

    app.scheduler.add("once", work, at=datetime.now(UTC) - timedelta(hours=1))  # whose row is kept for 30 days
    app.worker().run(until_idle=True)
    assert [tick.outcome for tick in app.scheduler.history("once")] == ["ran"]
    app.scheduler.pause("work")
    app.scheduler.resume("work")
    app.scheduler.run_now("work")
    assert app.scheduler.remove("once")
    with app.transaction() as tx:
        assert tx.connection.execute("select created from pgeverything.maintain_ticks(9, '30 days')").fetchone()


def test_the_application_locks(app: PgEverything, db: psycopg.Connection[object]) -> None:
    with app.locks.hold("a", wait="1s", renew=True) as lease, app.transaction() as tx:
        lease.renew()
        tx.locks.guard(lease)
    assert app.locks.acquire("a", slots=2, min_hold="1s")
    assert app.locks.list()[0].name == "a"
    assert app.locks.break_lock("a") == 1
    drive(app._database.carrier(), locks.sweep())


def test_the_application_caches(app: PgEverything, db: psycopg.Connection[object]) -> None:
    app.cache.configure(max_entries=1000)
    app.cache.set_many({"a": 1, "b": b"b"}, tags=["t"])
    assert app.cache.get_or_set("c", lambda: 2, tags=["t", "u"], stale="1m") == 2
    assert app.cache.near().get("c") == 2
    assert (app.cache.add("a", 2), app.cache.increment("n"), app.cache.touch("a")) == (False, 1, True)
    with app.transaction() as tx:
        tx.cache.invalidate("a", "c", tags=["u"])
    stats = app.cache.stats()
    assert (stats.entries, stats.fills, stats.max_entries) == (2, 1, 1000)
    assert app.cache.clear() == 2
    with pytest.raises(DENIED, match="owner of table cache"):
        app.cache.configure(logged=True)


def test_a_producer_neither_locks_nor_caches(producer: PgEverything, db: psycopg.Connection[object]) -> None:
    for call in (
        lambda: producer.locks.acquire("a"),
        lambda: producer.cache.set("k", 1),
        lambda: producer.cache.get_or_set("k", lambda: 1),
        lambda: producer.cache.invalidate("k"),
    ):
        with pytest.raises(DENIED):
            call()
    assert (producer.locks.list(), producer.cache.get("k")) == ([], None)


def test_a_producer_looks_at_schedules(producer: PgEverything, db: psycopg.Connection[object]) -> None:
    assert producer.scheduler.list() == []
    with pytest.raises(DENIED):
        producer.scheduler.add("s", "t", every="1h")


def test_the_application_keeps_partitions_without_owning_them(app: PgEverything) -> None:
    with app.transaction() as tx:
        made = tx.connection.execute("select * from pgeverything.maintain_partitions(10, '7 days')").fetchone()
        assert made == (6, 0)

    with app.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute("create table pgeverything.mine ()")


def test_the_application_does_not_write_migrations(app: PgEverything) -> None:
    with app.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute("delete from pgeverything.migrations")


def test_a_producer_publishes_and_reads(producer: PgEverything) -> None:
    events = producer.events
    first = events.append("orders.eu", 1, key="k", idempotency_key="i")
    assert events.append("orders.eu", 1, key="k", idempotency_key="i") == first
    many = events.append_many("orders.us", [1, 2], key=["k", None])
    with pytest.raises(WrongVersion):
        events.append("orders.eu", 2, key="k", expected_version=0, idempotency_key="j")
    with producer.transaction() as tx:
        by_function = tx.connection.execute("select pgeverything.publish('orders.eu', '2', key => 'k')").fetchone()
    assert by_function is not None

    assert [event.position for event in events.read("orders.*")] == [
        first.position,
        *(event.position for event in many),
        by_function[0],
    ]
    assert events.version("orders.eu", "k") == 2
    assert events.head() == by_function[0]
    assert [topic.events for topic in events.topics()] == [2, 2]
    assert events.stalled_by() == []


def test_a_role_that_may_not_see_how_far_the_log_is_is_told(
    producer: PgEverything, db: psycopg.Connection[object], roles: dict[str, str]
) -> None:
    sequence, role = "pgeverything.event_seq", roles["producer"]
    db.execute(f"revoke usage on sequence {sequence} from {role}".encode())
    try:
        with pytest.raises(SchemaError, match="permission denied"):
            producer.events.head()
    finally:
        db.execute(f"grant usage on sequence {sequence} to {role}".encode())


def test_a_producer_that_may_not_create_partitions_appends_all_the_same(
    producer: PgEverything, db: psycopg.Connection[object], caplog: pytest.LogCaptureFixture
) -> None:
    db.execute("select setval('pgeverything.event_seq', 100000)")

    assert producer.events.append("t", 1).position == 100_001
    assert producer.events.append_many("t", [1] * 100_000)[-1].position == 200_001
    assert caplog.records == []


def test_a_producer_adds_jobs_and_looks(producer: PgEverything) -> None:
    jobs = producer.jobs
    plain, later = jobs.enqueue("t", {"n": 1}), jobs.enqueue("t", delay="1h")
    in_line = jobs.enqueue("t", ordering_key="k")
    unique = jobs.enqueue("t", unique_key="u")
    assert jobs.enqueue("t", unique_key="u").id == unique.id
    with pytest.raises(DuplicateJob):
        jobs.enqueue("t", unique_key="u", on_duplicate="raise")
    many = jobs.enqueue_many("t", [{"n": 2}, {"n": 3}])
    with producer.transaction() as tx:
        by_function = tx.connection.execute("select id from pgeverything.enqueue('t')").fetchone()
    assert by_function is not None

    expected = [plain.id, later.id, in_line.id, unique.id, *many, by_function[0]]
    assert sorted(job.id for job in jobs.list()) == sorted(expected)
    assert jobs.counts()["ready"] == 5
    assert jobs.why(plain.id)


@pytest.mark.parametrize(
    "statement",
    [
        "delete from pgeverything.jobs",
        "update pgeverything.jobs set args = '{}'",
        "select pgeverything.cancel(1 + (select min(id) - 1 from pgeverything.jobs))",
        "select * from pgeverything.claim(1, '{default}', '{0}', '{0}', 1)",
        "select * from pgeverything.advance(1)",
        "select * from pgeverything.maintain_partitions(0, '-1 year')",
        "select * from pgeverything.maintain_ticks(0, '-1 year')",
        "update pgeverything.schedules set paused = true",
        "insert into pgeverything.queues (name, paused) values ('default', true)",
        "delete from pgeverything.events",
        "update pgeverything.events set data = '{}'",
        "select pgeverything.drop_events(1)",
        "select pgeverything.discard_events()",
        "select pgeverything.extend_events(9)",
        "update pgeverything.event_retention set keep = '1 day'",
    ],
)
def test_a_producer_changes_runs_and_ends_nothing(producer: PgEverything, statement: str) -> None:
    producer.jobs.enqueue("t")

    with producer.transaction() as tx, pytest.raises(DENIED):
        tx.connection.execute(statement)


def test_few_functions_have_their_owners_rights_and_they_are_not_everybodys(db: psycopg.Connection[object]) -> None:
    privileged = db.execute(
        "select proname, has_function_privilege('public', oid, 'execute'), proconfig::text from pg_proc"
        " where pronamespace = 'pgeverything'::regnamespace and prosecdef"
    ).fetchall()

    assert {row[:2] for row in privileged} == {
        ("maintain_partitions", False),
        ("extend_events", False),
        ("drop_events", False),
        ("discard_events", False),
        ("maintain_ticks", False),
        ("audit_row", False),
        ("audit_update", False),
        ("audit_bulk", False),
        ("audit_truncate", False),
        ("audit_record", False),
        ("audit_note", False),
        ("audit_seal", False),
        ("audit_erase", False),
        ("audit_partitions", False),
        ("audit_drop", False),
    }
    assert all('"search_path=pg_catalog, pg_temp"' in row[2] for row in privileged)
    assert db.execute("select has_function_privilege('public', p.oid, 'execute') from pg_proc p"
                      " where p.proname = 'audit_write'").fetchall() == [(False,)]  # fmt: skip


def test_every_function_says_where_it_looks(db: psycopg.Connection[object]) -> None:
    careless = db.execute(
        "select proname from pg_proc where pronamespace = 'pgeverything'::regnamespace"
        " and not coalesce('search_path=pg_catalog, pg_temp' = any (proconfig), false)"
    ).fetchall()

    assert careless == []
