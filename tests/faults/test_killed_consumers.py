"""Consumers are killed with SIGKILL and replaced, or the server is: every event is handled, keys keep their order."""

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from pgeverything import PgEverything, local
from tests import server
from tests.waiting import eventually

from .accounts import fetch
from .conftest import prepare
from .fleet import Fleet
from .history import Step, disorder, lost, read_journal
from .sessions import Sessions
from .test_interleaved_deliveries import Member, members
from .test_killed_workers import kill_while
from .test_restarted_server import restart

EVENTS = int(os.environ.get("FAULTS_EVENTS", "3000"))
KEYS = 20
NAMES = ("ordered", "exact", "exact-in-thread", "loose")


@pytest.fixture
def consumers(fleet: Fleet) -> Fleet:
    fleet.program = "tests.faults.consumers"
    return fleet


def publish(pg: PgEverything, begin: int, end: int) -> None:
    """Publish numbers, each under one of the keys or none, in two topics."""
    for topic in ("orders.eu", "orders.us"):
        numbers = [n for n in range(begin, end) if n % 2 == (topic == "orders.us")]
        keys = [f"key-{n % KEYS}" if n % KEYS else None for n in numbers]
        pg.events.append_many(topic, numbers, key=keys)


def undone(url: str) -> int:
    """How many events are left to be handled, by the subscription that is furthest behind; all when one is missing."""
    with PgEverything(url) as pg:
        names = {subscription.name for subscription in pg.pubsub.subscriptions()}
        return max(pg.pubsub.lag(name).events if name in names else EVENTS for name in NAMES)


def check(url: str, pg: PgEverything, fleet: Fleet) -> None:
    """Check what was written: nothing lost, keys in order, effects of transactions exactly once."""
    numbers = range(EVENTS)
    steps = [Step(*row) for row in fetch(url, "select key, number, event, pid from history order by seq")]
    assert lost(numbers, (step.number for step in steps if step.event == "end")) == []
    assert disorder(step for step in steps if step.key is not None) == []
    for handler in (1, 2):
        effects = Counter(n for (n,) in fetch(url, f"select number from effects where job = {handler}"))
        assert lost(numbers, effects) == []
        assert {number: count for number, count in effects.items() if count > 1} == {}
    assert lost(numbers, (effect.number for effect in read_journal(fleet.journal))) == []
    for subscription in pg.pubsub.subscriptions():
        assert (subscription.in_flight, subscription.retrying, subscription.waiting) == (0, 0, 0), subscription
        assert subscription.dead == 0, subscription
    assert fetch(url, "select count(*) from pgeverything.deliveries") == [(0,)]


def test_consumers_survive_a_kill_every_second(
    url: str, pg: PgEverything, consumers: Fleet, chance: random.Random
) -> None:
    options = {"lease": "3s", "concurrency": 8}
    publish(pg, 0, EVENTS // 2)
    for _ in range(3):
        consumers.start(**options)
    publish(pg, EVENTS // 2, EVENTS)

    kills = kill_while(lambda: undone(url) > EVENTS // 20, consumers, chance, **options)
    eventually(lambda: undone(url) == 0, lambda: f"the rest to be handled\n{consumers.logs()}", within=120)
    consumers.drain()

    journal = read_journal(consumers.journal)
    print(f"{kills} kills, {len(journal) - EVENTS} doubles")
    assert kills > 0
    check(url, pg, consumers)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_consumers_survive_a_restart_of_the_server(
    home: Path, new_fleet: Callable[[str], Fleet], how: signal.Signals
) -> None:
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    fleet = new_fleet(url)
    fleet.program = "tests.faults.consumers"
    with PgEverything(url) as pg:
        publish(pg, 0, EVENTS)
        for _ in range(2):
            fleet.start(concurrency=8, lease="15s")
        eventually(lambda: undone(url) < EVENTS * 3 // 4, lambda: f"work to begin\n{fleet.logs()}")
        restart(home, how)
        assert undone(url) > 0, "everything was done before the restart: this run has shown nothing"
        eventually(lambda: undone(url) == 0, lambda: f"the rest to be handled\n{fleet.logs()}", within=120)
        assert all(process.poll() is None for process in fleet.processes), fleet.logs()
        fleet.drain()

        check(url, pg, fleet)


@pytest.mark.parametrize("acknowledged", [True, False], ids=["acknowledged", "not-yet"])
def test_a_crash_before_a_claim_is_durable_hands_it_out_again(home: Path, acknowledged: bool) -> None:
    """And takes nothing back that was acknowledged: that is written later, and waits for the disk."""
    url = server.create_database(local.ensure(home).url)
    prepare(url)
    with PgEverything(url) as pg, Sessions(url) as sessions:
        [member] = members(sessions, 1)
        pg.events.append_many("t", range(3))
        [(writer,)] = member.session.sql("select pid from pg_stat_activity where backend_type = 'walwriter'")
        os.kill(writer, signal.SIGSTOP)  # it would write the claim soon
        held = member.claim()
        assert len(held) == 3
        if acknowledged:
            assert member.acknowledge(held[:2]) == 2
        os.kill(writer, signal.SIGKILL)  # for the server a crash: it throws away what is not on disk
        with pytest.raises(psycopg.OperationalError):
            member.session.sql("select pg_sleep(60)")

    def back() -> bool:
        with contextlib.suppress(psycopg.OperationalError):
            return fetch(url, "select 1") == [(1,)]
        return False

    eventually(back, "the server to recover")
    with Sessions(url) as sessions:
        again = Member(sessions.open(), member.subscription, member.id)
        assert again.acknowledge(held) == (1 if acknowledged else 0)
        assert [position for position, _ in again.claim()] == ([] if acknowledged else [p for p, _ in held])


def test_a_consumer_that_is_frozen_for_longer_than_its_lease(url: str, pg: PgEverything, consumers: Fleet) -> None:
    """The other one takes over what it held; what it says when it wakes up is refused."""
    publish(pg, 0, EVENTS)
    frozen = consumers.start(lease="2s", concurrency=8)
    eventually(lambda: undone(url) < EVENTS * 9 // 10, lambda: f"it to begin\n{consumers.logs()}")
    frozen.send_signal(signal.SIGSTOP)
    consumers.start(lease="2s", concurrency=8)
    eventually(
        lambda: (
            fetch(url, "select count(*) from pgeverything.members")[0][0] == 1
            and not fetch(url, "select from pgeverything.members m where m.lost or m.heartbeat_at + m.lease < now()")
        ),
        lambda: f"its lease to end\n{consumers.logs()}",
    )
    frozen.send_signal(signal.SIGCONT)
    eventually(lambda: undone(url) == 0, lambda: f"the rest to be handled\n{consumers.logs()}", within=120)
    consumers.drain()

    check(url, pg, consumers)
