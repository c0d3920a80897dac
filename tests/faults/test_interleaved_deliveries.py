"""Members of a subscription in chosen orders: claims, acknowledgements, rescues and seeks that cross each other.

Nothing sleeps; the server says who waits for whom.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from pgeverything import PgEverything

from .sessions import Session, Sessions

Held = tuple[int, int]  # position, token


@dataclass
class Member:
    """A member of one subscription, by the statements that members run."""

    session: Session
    subscription: int
    id: int

    def claim(self, most: int = 100) -> list[Held]:
        rows = self.session.pubsub("claim", member=self.id, subscriptions=[self.subscription], most=[most])
        self.state = next(row[1] for row in rows if row[3] is None)
        return [(row[3], row[4]) for row in rows if row[3] is not None]

    def acknowledge(self, held: list[Held]) -> int:
        """Acknowledge; return how many were accepted."""
        positions, tokens = [position for position, _ in held], [token for _, token in held]
        owners = [self.subscription] * len(held)
        rows = self.session.pubsub("acknowledge", subscriptions=owners, positions=positions, tokens=tokens)
        return len(rows[0][0])

    def put_back(self, held: Held, delay: float = 0.0, *, failed: int = 1, reason: str | None = None) -> str | None:
        position, token = held
        how = {"delay": delay, "failed": failed, "delivered": 1, "reason": reason, "fingerprint": None, "error": None}
        answer = self.session.pubsub(
            "put_back", subscription=self.subscription, position=position, token=token, **how
        )  # fmt: skip
        return answer[0][0]  # type: ignore[no-any-return]

    def silence(self) -> None:
        """Make its last heartbeat an old one."""
        self.session.sql(
            "update pgeverything.members set heartbeat_at = now() - interval '1 hour' where id = %s", self.id
        )

    def rescue(self) -> int:
        return int(self.session.pubsub("rescue")[0][0])


def members(sessions: Sessions, count: int = 2, on_dead: str = "skip") -> list[Member]:
    """Create the subscription and its members."""
    found = []
    for _ in range(count):
        session = sessions.open()
        topics: dict[str, Any] = {"topic": "t", "low": None, "high": None, "regex": None}
        settings = {"ordered": True, "max_deliveries": 3, "on_dead": on_dead, "start": "earliest", "at": None}
        id_ = session.pubsub("create", name="s", pattern="t", **topics, **settings)[0][0]
        member = session.pubsub("register", name="m", subscriptions=[id_], lease=30.0)[0][0]
        found.append(Member(session, id_, member))
    return found


def publish(pg: PgEverything, *keys: str | None) -> list[int]:
    return [pg.pubsub.publish("t", key, key=key).position for key in keys]


def positions(held: list[Held]) -> list[int]:
    return [position for position, _ in held]


# Claims -------------------------------------------------------------------------------------------------------------


def test_two_claims_at_once_take_different_messages(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, *[None] * 6)
    one.session.begin()
    first = one.claim(4)
    assert (two.claim(), two.state) == ([], "busy")  # and does not wait
    one.session.commit()

    assert positions(first) == events[:4]
    assert positions(two.claim()) == events[4:]


def test_a_claim_that_is_rolled_back_took_nothing(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", None)
    one.session.begin()
    held = one.claim()
    one.session.rollback()

    assert positions(two.claim()) == positions(held) == events
    assert one.acknowledge(held) == 0


def test_a_look_says_what_a_claim_would_find(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)

    def look() -> str:
        assert one.claim(0) == []
        return one.state

    assert look() == "idle"
    publish(pg, "k", "k")
    assert look() == "more"
    [first, second] = two.claim()
    assert look() == "idle"
    two.put_back(first, 3600.0)
    assert look() == "more"  # the second is behind the first: it may be free any moment
    one.session.sql("update pgeverything.deliveries set due_at = now() where due_at is not null")
    assert look() == "more"
    pg.pubsub.pause("s")
    assert look() == "paused"
    pg.pubsub.resume("s")
    assert [position for position, _ in one.claim()] == [first[0], second[0]]


def test_a_member_that_was_declared_dead_takes_nothing(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    publish(pg, None)
    one.silence()
    two.rescue()

    assert (one.claim(), one.state) == ([], "lost")
    assert one.session.pubsub("beat", members=[one.id, two.id]) == [([two.id], False)]
    assert len(two.claim()) == 1


def test_a_rescue_waits_for_a_claim_of_the_one_it_ends(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, None)
    one.silence()
    one.session.begin()
    one.claim()
    assert two.rescue() == 0  # it is busy: the next time
    one.session.commit()

    assert two.rescue() == 1
    assert positions(two.claim()) == events


def test_one_subscription_is_created_by_two_at_once(sessions: Sessions) -> None:
    first, second, _ = sessions.three()
    topics: dict[str, Any] = {"topic": "t", "low": None, "high": None, "regex": None}
    settings = {"ordered": True, "max_deliveries": 3, "on_dead": "skip", "start": "earliest", "at": None}
    first.begin()
    [made] = first.pubsub("create", name="s", pattern="t", **topics, **settings)
    waiting = second.waiting(second.pubsub, "create", name="s", pattern="t", **topics, **settings)
    first.commit()

    assert waiting.result() == [made]


# The order of a key -------------------------------------------------------------------------------------------------


def test_a_key_that_one_member_holds_is_not_given_to_another(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "b", "a", "b", "a")
    assert positions(one.claim(1)) == events[:1]

    assert positions(two.claim()) == [events[1], events[3]]
    more = publish(pg, "a", "c")
    assert positions(one.claim()) == more[1:]  # the rest of a is behind, and stays so until it is done


def test_what_is_behind_goes_to_whoever_claims_when_its_key_is_free(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "a", "a")
    held = one.claim(1)
    two.claim()
    assert one.acknowledge(held) == 1

    assert positions(two.claim()) == events[1:]


def test_a_message_that_failed_comes_before_those_behind_it(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "a", "b", "a")
    held = one.claim()
    assert one.put_back(held[0], 3600.0) == "again"
    assert one.acknowledge(held) == 1  # only b: what is behind the failed one was taken back
    assert two.claim() == []
    publish(pg, "a")
    assert two.claim() == []

    two.session.sql("update pgeverything.deliveries set due_at = now() where due_at is not null")
    assert positions(two.claim()) == [events[0], events[1], events[3], events[3] + 1]


def test_what_failed_out_of_turn_waits_for_what_is_before_it(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "a", "a")
    held = one.claim()
    assert one.put_back(held[1]) == "again"
    assert two.claim() == []
    assert one.acknowledge(held[:1]) == 1

    assert positions(two.claim()) == events[1:]


def test_a_claim_and_an_acknowledgement_that_do_not_see_each_other(pg: PgEverything, sessions: Sessions) -> None:
    """The claim puts a message behind one that is being acknowledged: the next claim finds that nothing holds it."""
    one, two = members(sessions)
    events = publish(pg, "a")
    held = one.claim()
    events += publish(pg, "a")
    two.session.begin()
    assert two.claim() == []
    assert one.acknowledge(held) == 1  # does not see what the claim has put behind it
    two.session.commit()

    assert positions(two.claim()) == events[1:]


def test_two_acknowledgements_of_a_key_that_do_not_see_each_other(pg: PgEverything, sessions: Sessions) -> None:
    one, two, third = members(sessions, 3)
    publish(pg, "a", "a")
    held = one.claim()
    events = publish(pg, "a")
    assert third.claim() == []
    two.id = one.id  # two connections of one member
    one.session.begin()
    two.session.begin()
    assert one.acknowledge(held[:1]) == two.acknowledge(held[1:]) == 1
    one.session.commit()
    two.session.commit()

    assert positions(third.claim()) == events


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_an_acknowledgement_in_an_open_transaction_holds_only_its_key(
    pg: PgEverything, sessions: Sessions, end: str
) -> None:
    one, two = members(sessions)
    publish(pg, "a")
    held = one.claim()
    one.session.begin()
    assert one.acknowledge(held) == 1
    others = publish(pg, "a", "b", None)
    assert positions(two.claim()) == others[1:]  # and does not wait
    assert two.claim() == []

    getattr(one.session, end)()
    assert positions(two.claim()) == (others[:1] if end == "commit" else [])
    assert one.acknowledge(held) == (0 if end == "commit" else 1)


# Death --------------------------------------------------------------------------------------------------------------


def test_a_late_acknowledgement_is_refused(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "a", None)
    held = one.claim()
    one.silence()
    assert two.rescue() == 2  # the one that was under way of each key; what is behind goes with it
    again = two.claim()
    assert positions(again) == [events[0], events[1], events[2]] or sorted(positions(again)) == events

    assert one.acknowledge(held) == 0
    assert one.put_back(held[0]) is None
    assert two.acknowledge(again) == 3
    assert two.claim() == []


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_rescue_of_a_member_whose_transaction_is_open(pg: PgEverything, sessions: Sessions, end: str) -> None:
    """What it has acknowledged there is nobody else's before that ends."""
    one, two = members(sessions)
    events = publish(pg, None, None)
    held = one.claim()
    one.silence()
    one.session.begin()
    assert one.acknowledge(held[:1]) == 1
    assert two.rescue() == 1
    assert positions(two.claim()) == events[1:]

    getattr(one.session, end)()
    assert two.rescue() == (0 if end == "commit" else 1)
    assert positions(two.claim()) == ([] if end == "commit" else events[:1])
    assert two.session.sql("select id from pgeverything.members") == [(two.id,)]


def test_a_message_that_takes_its_members_down_is_dead_and_its_neighbours_are_not(
    pg: PgEverything, sessions: Sessions
) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", "a", None)
    for crash in range(1, 5):
        member = two.session.pubsub("register", name="m", subscriptions=[two.subscription], lease=30.0)[0][0]
        victim = Member(one.session, one.subscription, member)
        two.session.sql("update pgeverything.deliveries set due_at = now() where due_at is not null")
        held = victim.claim()
        assert events[0] in positions(held)
        victim.acknowledge([each for each in held if each[0] == events[2]])
        victim.silence()
        two.rescue()
        rows = two.session.sql("select crashes from pgeverything.deliveries where position = %s", events[0])
        assert rows == [(crash,)]

    [(reason,)] = two.session.sql("select reason from pgeverything.deliveries where dead_id is not null")
    assert reason == "crashed its member 4 times"
    assert events[1] in positions(two.claim())


@pytest.mark.parametrize("on_dead", ["skip", "hold", "stop"])
def test_what_a_death_does_to_what_its_member_holds(pg: PgEverything, sessions: Sessions, on_dead: str) -> None:
    one, two = members(sessions, on_dead=on_dead)
    publish(pg, "a", "a", "b")
    held = one.claim()
    assert one.put_back(held[0], reason="rejected") == ("dead" if on_dead == "skip" else "held")

    assert one.acknowledge(held[1:]) == (2 if on_dead == "skip" else 1)
    assert two.claim() == []
    assert two.state == ("stopped" if on_dead == "stop" else "idle")


# Seek, delete -------------------------------------------------------------------------------------------------------


def seek(member: Member, to: int) -> Any:
    return member.session.pubsub("seek", name="s", start=str(to), at=None)


def test_a_seek_takes_everything_out_of_their_hands(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", None)
    held = one.claim()
    seek(two, 0)
    again = two.claim()

    assert one.acknowledge(held) == 0
    assert positions(again) == events
    assert two.acknowledge(again) == 2


@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_seek_waits_for_an_acknowledgement_that_is_open(pg: PgEverything, sessions: Sessions, end: str) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", None)
    held = one.claim()
    one.session.begin()
    one.acknowledge(held[:1])
    seeking = two.session.waiting(seek, two, 0)
    getattr(one.session, end)()
    seeking.result()

    assert positions(two.claim()) == events
    assert one.acknowledge(held) == 0


def test_a_claim_and_a_seek_one_after_the_other(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    events = publish(pg, "a", None)
    one.session.begin()
    held = one.claim()
    seeking = two.session.waiting(seek, two, 0)
    one.session.commit()
    seeking.result()

    assert one.acknowledge(held) == 0
    assert positions(two.claim()) == events


def test_a_stop_and_a_seek_do_not_deadlock(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions, on_dead="stop")
    publish(pg, "a")
    held = one.claim()
    one.session.begin()
    assert one.put_back(held[0], reason="rejected") == "held"
    seeking = two.session.waiting(seek, two, 0)
    one.session.commit()
    seeking.result()

    assert len(two.claim()) == 1


def test_a_deletion_leaves_nothing_of_a_claim_it_waited_for(pg: PgEverything, sessions: Sessions) -> None:
    one, two = members(sessions)
    publish(pg, "a", None)
    one.session.begin()
    held = one.claim()
    deleting = two.session.waiting(two.session.pubsub, "delete", name="s")
    one.session.commit()
    assert deleting.result() == [(True,)]

    assert two.session.sql("select count(*) from pgeverything.deliveries") == [(0,)]
    assert one.acknowledge(held) == 0
    assert (one.claim(), one.state) == ([], "gone")


def test_an_open_publisher_holds_back_what_comes_after_it_and_is_not_passed(
    pg: PgEverything, sessions: Sessions
) -> None:
    one, two = members(sessions)
    two.session.begin()
    early = two.session.tx.pubsub.publish("t", 1)
    late = publish(pg, None)
    assert one.claim() == []
    two.session.commit()

    assert positions(one.claim()) == [early.position, *late]
