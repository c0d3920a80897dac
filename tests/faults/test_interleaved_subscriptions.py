"""Members, publishers and releases of an application that cross each other in chosen orders. Nothing sleeps."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from pgeverything import PgEverything
from pgeverything.pubsub.values import OnDead

from .sessions import Sessions
from .test_interleaved_deliveries import Member, members, positions, publish, seek

# Where a subscription begins --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["create", "seek"])
def test_a_start_at_a_time_does_not_pass_an_open_publisher(pg: PgEverything, sessions: Sessions, how: str) -> None:
    publisher, other = sessions.open(), sessions.open()
    before = pg.pubsub.publish("t", "before")
    publisher.begin()
    early = publisher.tx.pubsub.publish("t", "open")
    late = pg.pubsub.publish("t", "late")

    topics: dict[str, Any] = {"topic": "t", "low": None, "high": None, "regex": None}
    settings = {"ordered": True, "max_deliveries": 3, "on_dead": "skip"}
    start: dict[str, Any] = {"start": None, "at": before.recorded_at + timedelta(microseconds=1)}
    [(id_, *_)] = other.pubsub("create", name="s", pattern="t", **topics, **settings, **start)
    if how == "seek":
        other.pubsub("seek", name="s", **start)
    publisher.commit()

    member = other.pubsub("register", name="m", subscriptions=[id_], lease=30.0)[0][0]
    rows = other.pubsub("claim", member=member, subscriptions=[id_], most=[10])
    assert [row[3] for row in rows if row[3] is not None] == [early.position, late.position]


# Acknowledgements -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("against", ["seek", "delete"])
def test_acknowledgements_and_what_takes_everything_do_not_deadlock(
    pg: PgEverything, sessions: Sessions, against: str
) -> None:
    one, two, three = members(sessions, 3)
    publish(pg, *[None] * 3)
    first, second, third = one.claim()
    one.session.begin()
    assert one.acknowledge([second]) == 1
    if against == "seek":
        taking = two.session.waiting(seek, two, 0)  # has the first, waits for the second
    else:
        taking = two.session.waiting(two.session.pubsub, "delete", name="s")
    acknowledging = three.session.waiting(three.acknowledge, [third, first])
    one.session.commit()

    taking.result()
    assert acknowledging.result() == 0


@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("how", ["rescue", "leave", "orphans", "nack"])
def test_nobody_waits_for_an_acknowledgement_that_is_open(
    pg: PgEverything, sessions: Sessions, how: str, end: str
) -> None:
    """It may be open in the very thread that would wait; the second of a key was acknowledged before the first."""
    one, two = members(sessions)
    events = publish(pg, "a", "a", None)
    first, second, other = one.claim()
    one.session.begin()
    assert one.acknowledge([second, other]) == 2
    same = Member(two.session, one.subscription, one.id)
    if how == "rescue":
        same.silence()
        two.rescue()
    elif how == "leave":
        two.session.pubsub("leave", member=one.id)
    elif how == "orphans":
        two.session.pubsub("orphans", member=one.id, subscriptions=[], positions=[], tokens=[])
    else:
        same.put_back(first)
    getattr(one.session, end)()

    assert positions(two.claim()) == events[:1]
    assert same.acknowledge([second, other]) == (0 if end == "commit" else 2)


# Two releases of an application -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("old", "new"), [("skip", "hold"), ("hold", "skip")])
def test_what_becomes_of_a_dead_messages_followers_is_what_the_database_says(
    pg: PgEverything, old: OnDead, new: OnDead
) -> None:
    """Another release has changed `on_dead` since this member began."""
    publish(pg, None, None, None, "a", "a")  # it takes one, two more, and then those of the key together
    with pg.pubsub.subscribe("t", name="s", on_dead=old, start="earliest", max_deliveries=1, timeout=0) as subscriber:
        pg.pubsub.subscribe("t", name="s", on_dead=new).close()
        for _ in range(3):
            next(subscriber).ack()
        next(subscriber).nack()
        assert [message.data for message in subscriber] == ([] if new == "hold" else ["a"])
