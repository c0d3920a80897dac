"""A member whose threads claim and put back at the same moment does one after the other."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import Any

import psycopg
import pytest

from pgeverything import MessageLost
from pgeverything.engine.plan import Plan, Query, Rows, Sleep, Watch, Watching
from pgeverything.pubsub.manage import Known
from pgeverything.pubsub.member import Claim, Member
from pgeverything.pubsub.outlook import Outlook
from pgeverything.pubsub.sources import Durable
from pgeverything.pubsub.values import Held
from pgeverything.retry import Retry

KNOWN = Known(1, "s")


def member() -> Durable:
    source = Durable("t", "s", {}, {}, Outlook(), retry=Retry(), max_in_flight=10, lease=30.0, timeout=None)
    source._known, source.member = KNOWN, Member([KNOWN], 30.0)
    return source


def held(position: int) -> Held:
    event: Any = None
    return Held(1, position, 7, 5, 1, event)


def test_a_nack_waits_for_a_claim() -> None:
    """The claim would still give us what comes after the message in its lane."""
    source, first, second = member(), held(1), held(2)
    source._take([first])
    claiming = source._claim({1: 10})
    assert isinstance(next(claiming), Query)
    nacking = source.settle(first, False, 0)
    assert isinstance(next(nacking), Sleep)
    source._take([second])  # which the claim has brought
    claiming.close()

    assert isinstance(nacking.send(None), Query)
    with contextlib.suppress(StopIteration):
        nacking.send("again")
    assert second.lost
    assert source._hand == {}


def test_a_claim_waits_for_a_nack() -> None:
    source, first = member(), held(1)
    source._take([first])
    nacking = source.settle(first, False, 0)
    assert isinstance(next(nacking), Query)
    claiming = source._claim({1: 10})
    assert isinstance(next(claiming), Sleep)
    with contextlib.suppress(StopIteration):
        nacking.send("again")

    assert isinstance(claiming.send(None), Query)


def test_an_interrupted_claim_is_suspected() -> None:
    """Ctrl-C, or a cancelled task: it may have gone through without its answer reaching us."""
    source = member()
    claiming = source._claim({1: 10})
    assert isinstance(next(claiming), Query)
    claiming.close()

    assert source._suspected_at is not None


def test_who_waits_for_room_waits_no_longer_than_it_said() -> None:
    source = member()
    source._timeout, source.member._renewed = 0.0, time.monotonic()  # type: ignore[union-attr]
    source._take([held(position) for position in range(10)])
    assert answers(source._more(), limit=3) is False


def test_who_waits_for_another_ones_claim_waits_no_longer_than_it_said() -> None:
    source = member()
    source._timeout, source.member._renewed = 0.0, time.monotonic()  # type: ignore[union-attr]
    assert answers(source._more(), [(1, "busy", None, None, 0)], limit=6) is False


def test_who_finds_another_one_claiming_tries_again_soon_and_then_less_and_less_often() -> None:
    """That one may hold the subscription in a transaction that stays open."""
    source = member()
    assert source.member is not None
    source._timeout, source.member._renewed = None, time.monotonic()
    plan, sleeps, answer = source._more(), [], None
    while len(sleeps) < 100:
        step = plan.send(answer)  # type: ignore[arg-type]
        if isinstance(step, Sleep):
            sleeps.append(step.seconds)
        rows: Rows = [(1, "busy", None, None, 0)]
        answer = step.read(rows) if isinstance(step, Query) else Watching(threading.Event(), lambda: None)
    plan.close()

    assert sleeps[0] < 0.01
    assert min(sleeps[-10:]) > 0.05


@pytest.mark.parametrize("trusted", [True, False])
def test_an_acknowledgement_that_was_repeated_and_finds_nothing_has_been_done_where_the_lease_held(
    trusted: bool,
) -> None:
    source, first = member(), held(1)
    source._take([first])
    assert source.member is not None
    source.member._renewed = time.monotonic() if trusted else float("-inf")
    settling = source.settle(first, True, None)
    assert isinstance(next(settling), Query)
    assert isinstance(settling.throw(psycopg.OperationalError("the connection is lost")), Query)
    with pytest.raises(StopIteration if trusted else MessageLost):
        settling.send([([], 0)])


@pytest.mark.parametrize("state", ["idle", "paused", "stopped"])
def test_what_one_has_seen_the_others_need_not_ask_for_a_while(state: str) -> None:
    outlook, claim = Outlook(), Claim()
    claim.states, claim.due = {1: state, 2: state}, {1: 60.0}
    outlook.saw(claim, 100.0)

    assert 59 < (outlook.quiet(1, since=100.0) or 0) <= 60
    assert outlook.quiet(2, since=100.0) == float("inf")
    assert outlook.quiet(1, since=100.1) is None  # it may have changed since
    assert outlook.quiet(3, since=100.0) is None


@pytest.mark.parametrize("state", ["more", "busy", "gap", "gone", "lost"])
def test_where_there_may_be_something_each_asks_itself(state: str) -> None:
    outlook, claim = Outlook(), Claim()
    claim.states = {1: "idle"}
    outlook.saw(claim, 100.0)
    claim.states = {1: state}
    outlook.saw(claim, 101.0)

    assert outlook.quiet(1, since=0.0) is None


def test_what_is_due_by_now_is_not_waited_for() -> None:
    outlook, claim = Outlook(), Claim()
    claim.states, claim.due = {1: "idle"}, {1: -0.001}
    outlook.saw(claim, 100.0)

    assert outlook.quiet(1, since=0.0) is None


def answers(plan: Plan[Any], rows: Rows = (), *, limit: int) -> Any:
    """Run a plan to its end, which it comes to within so many steps."""
    try:
        step = next(plan)
        for _ in range(limit):
            if isinstance(step, Query):
                step = plan.send(step.read(rows))
            elif isinstance(step, Watch):
                step = plan.send(Watching(threading.Event(), lambda: None))
            else:
                step = plan.send(False)
    except StopIteration as stop:
        return stop.value
    plan.close()
    return "it has not ended"
