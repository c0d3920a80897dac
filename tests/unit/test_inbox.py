"""The messages in the hands of a worker: lanes one after the other, and how much more to claim."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from pgeverything.pubsub.values import Held
from pgeverything.worker.inbox import Inbox

tokens = count(1)
S = 1


def held(position: int, lane: int | None = None, subscription: int = S) -> Held:
    event: Any = None
    return Held(subscription, position, next(tokens), lane, 1, event)


def started(inbox: Inbox) -> list[int]:
    """Start everything that is ready."""

    async def start() -> list[Held]:
        found = []
        while not inbox._ready.empty():
            found.append(await inbox.next())
        return found

    return [each.position for each in asyncio.run(start())]


def test_without_lanes_everything_is_ready() -> None:
    inbox = Inbox(10, {S: 100})
    inbox.take(held(n) for n in range(3))
    assert started(inbox) == [0, 1, 2]


def test_a_lane_goes_on_when_its_first_is_done() -> None:
    inbox = Inbox(10, {S: 100})
    first, second, third = held(1, 7), held(2, 7), held(3, 7)
    inbox.take([first, second, held(4, 8), third])
    assert started(inbox) == [1, 4]
    inbox.pass_on(first)
    assert started(inbox) == [2]
    inbox.pass_on(first)  # which it is no longer
    assert started(inbox) == []
    inbox.pass_on(second)
    inbox.pass_on(third)
    assert started(inbox) == [3]
    inbox.take([held(5, 7)])
    assert started(inbox) == [5]


def test_lanes_of_two_subscriptions_are_two() -> None:
    inbox = Inbox(10, {S: 100, 2: 100})
    inbox.take([held(1, 7), held(1, 7, 2)])
    assert started(inbox) == [1, 1]


def test_a_lane_that_is_dropped_takes_what_is_behind() -> None:
    inbox = Inbox(10, {S: 100})
    first, second = held(1, 7), held(2, 7)
    inbox.take([first, second])
    assert started(inbox) == [1]
    inbox.drop_lane(first)
    assert second.lost
    assert not first.lost
    assert list(inbox.held.values()) == [first]
    again = held(1, 7)
    inbox.take([again])
    assert started(inbox) == [1]
    inbox.drop_lane(first)  # is not of the lane that there is now
    inbox.pass_on(first)
    inbox.take([held(2, 7)])
    assert started(inbox) == []
    inbox.pass_on(again)
    assert started(inbox) == [2]


def test_what_has_not_started_is_taken_back_out() -> None:
    inbox = Inbox(10, {S: 100})
    running = held(1, 7)
    inbox.take([running])
    assert started(inbox) == [1]
    inbox.take([held(2, 7), held(3, 7), held(4), held(5, 8), held(6, 8)])
    assert sorted(each.position for each in inbox.unstarted()) == [
        2,
        4,
        5,
    ]  # the others go with the first of their lane
    assert list(inbox.held.values()) == [running]
    inbox.pass_on(running)
    assert started(inbox) == []


def test_a_lost_lease_leaves_only_what_is_running() -> None:
    inbox = Inbox(10, {S: 100})
    running, ended = held(1, 7), held(2)
    inbox.take([running, ended, held(3, 7)])
    assert started(inbox) == [1, 2]
    inbox.take([held(4, 9), held(5)])
    assert inbox.lose() == [running, ended]
    assert running.lost
    assert started(inbox) == []


def test_it_wants_what_the_handlers_can_take_and_some_ahead() -> None:
    inbox = Inbox(4, {S: 100, 2: 100})
    assert inbox.wanted() == {S: 2, 2: 2}
    inbox.take([held(n) for n in range(4)])
    assert inbox.wanted() == {}
    started(inbox)
    assert inbox.wanted() == {}
    for _ in range(4):
        inbox.ran(0.001)  # short work: a tenth of a second ahead
    assert sum(inbox.wanted().values()) >= 400 or inbox.wanted() == {S: 96, 2: 100}


def test_it_wants_no_more_than_may_be_in_flight() -> None:
    inbox = Inbox(10, {S: 3})
    taken = [held(n) for n in range(2)]
    inbox.take(taken)
    assert inbox.wanted() == {S: 1}
    inbox.take([held(9)])
    assert inbox.wanted() == {}
    inbox.drop(taken[0])
    assert inbox.wanted() == {S: 1}
