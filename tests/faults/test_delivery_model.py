"""Any order of publishing, claiming, acknowledging, failing, dying and seeking, against a model of what is promised."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from pgeverything import PgEverything

from .sessions import Sessions
from .test_interleaved_deliveries import Held, Member, members

KEYS = ("a", "a", "b", None)
WALKS, STEPS = int(os.environ.get("FAULTS_WALKS", "100")), 40


def step(chance: random.Random) -> tuple[Any, ...]:
    """Return a step that may be taken next."""
    who, at = chance.randrange(2), chance.randrange(10)
    kinds: dict[tuple[Any, ...], int] = {
        ("publish", tuple(chance.choices(KEYS, k=chance.randrange(1, 5)))): 6,
        ("claim", who, chance.randrange(1, 4)): 8,
        ("ack", who, at, chance.randrange(1, 4)): 5,
        ("fail", who, at): 3,
        ("reject", who, at): 1,
        ("late", at): 1,
        ("die", who): 1,
        ("redrive",): 1,
        ("seek", chance.randrange(6)): 1,
    }
    return chance.choices(list(kinds), list(kinds.values()))[0]


class Model:
    """What is promised of one ordered subscription; checks each claim against it."""

    def __init__(self) -> None:
        self.keys: dict[int, str | None] = {}  # by position
        self.done: set[int] = set()  # acknowledged, or skipped by a seek
        self.dead: set[int] = set()
        self.hands: list[dict[int, int]] = [{}, {}]  # position: token, of each member
        self.late: list[Held] = []  # what is nobody's any more
        self.free: set[int] = set()  # what has no place in the order of its key any more

    def handed(self, member: int, held: list[Held], on_dead: str) -> None:
        """Check what a claim has brought."""
        assert [position for position, _ in held] == sorted({position for position, _ in held})
        for position, token in held:
            assert position in self.keys
            assert position not in self.done, "it was acknowledged"
            assert position not in self.dead, "it is dead"
            assert all(position not in hand for hand in self.hands), "somebody has it"
            self.hands[member][position] = token
        for position, _ in held:
            key = self.keys[position]
            if key is None or position in self.free:
                continue
            for other in self.keys:
                if self.keys[other] == key and other < position and other not in self.free:
                    passed = (
                        other in self.done or other in self.hands[member] or (other in self.dead and on_dead == "skip")
                    )
                    assert passed, f"{position} came before {other}"

    def lose(self, member: int, positions: list[int]) -> None:
        for position in positions:
            self.late.append((position, self.hands[member].pop(position)))

    def behind(self, member: int, position: int) -> list[int]:
        """What of the same key the member holds that comes after it."""
        key = self.keys[position]
        if key is None or position in self.free:
            return []
        hand = self.hands[member].keys() - self.free
        return [other for other in hand if self.keys[other] == key and other > position]


class Walk:
    """Takes steps in the database and in the model."""

    def __init__(self, pg: PgEverything, sessions: Sessions, on_dead: str) -> None:
        self.pg, self.on_dead, self.model = pg, on_dead, Model()
        self.members = members(sessions, on_dead=on_dead)

    def publish(self, keys: Sequence[str | None]) -> None:
        events = self.pg.events.append_many("t", [0] * len(keys), key=list(keys))
        self.model.keys |= {event.position: event.key for event in events}

    def claim(self, member: int, most: int) -> None:
        held = self.members[member].claim(most)
        assert len(held) <= most
        self.model.handed(member, held, self.on_dead)

    def _some(self, member: int, at: int, count: int = 1) -> list[Held]:
        hand = sorted(self.model.hands[member].items())
        return [hand[(at + n) % len(hand)] for n in range(min(count, len(hand)))]

    def ack(self, member: int, at: int, count: int) -> None:
        held = self._some(member, at, count)
        assert self.members[member].acknowledge(held) == len(held)
        for position, _ in held:
            del self.model.hands[member][position]
            self.model.done.add(position)

    def fail(self, member: int, at: int) -> None:
        self._back(member, at, None)

    def reject(self, member: int, at: int) -> None:
        self._back(member, at, "rejected")

    def _back(self, member: int, at: int, reason: str | None) -> None:
        for position, token in self._some(member, at):
            answer = self.members[member].put_back((position, token), reason=reason)
            dead = "held" if self.on_dead == "hold" else "dead"
            assert answer in ((dead,) if reason else ("again", dead))
            if answer == dead:
                self.model.dead.add(position)
            if answer != "dead":
                self.model.lose(member, self.model.behind(member, position))
            self.model.lose(member, [position])

    def late(self, at: int) -> None:
        """Somebody says something of a message that is not his any more."""
        if self.model.late:
            held = self.model.late[at % len(self.model.late)]
            assert self.members[0].acknowledge([held]) == 0
            assert self.members[0].put_back(held) is None

    def die(self, member: int) -> None:
        self.members[member].silence()
        self.members[1 - member].rescue()
        self.model.lose(member, list(self.model.hands[member]))
        session, subscription = self.members[member].session, self.members[member].subscription
        id_ = session.pubsub("register", name="m", subscriptions=[subscription], lease=0.001)[0][0]
        session.sql("update pgeverything.members set lease = '1 hour' where id = %s", id_)
        self.members[member] = Member(session, subscription, id_)
        crashed = session.sql("select position from pgeverything.deliveries where dead_id is not null")
        self.model.dead |= {position for (position,) in crashed}

    def redrive(self) -> None:
        self.pg.dead_letters.redrive(everything=True)
        if self.on_dead == "skip":  # what came after them did not wait
            self.model.free |= self.model.dead
        self.model.dead.clear()

    def seek(self, back: int) -> None:
        positions = sorted(self.model.keys)
        to = positions[-back] if back and len(positions) >= back else 0
        self.pg.pubsub.seek("s", to)
        for member in (0, 1):
            self.model.lose(member, list(self.model.hands[member]))
        self.model.done = {position for position in positions if position <= to}
        self.model.dead = {position for position in self.model.dead if position <= to}
        self.model.done -= self.model.dead
        self.model.free = {position for position in self.model.free if position <= to} | self.model.dead

    def finish(self) -> None:
        """Handle all that is left: nothing is lost."""
        for member in (0, 1):
            for position, token in list(self.model.hands[member].items()):
                self.ack(member, sorted(self.model.hands[member]).index(position), 1)
                assert token
        self.redrive()
        self.members[0].session.sql("update pgeverything.deliveries set due_at = now() where due_at > now()")
        for _ in range(200):
            self.claim(0, 4)
            self.ack(0, 0, 4)
            if self.model.done == set(self.model.keys):
                break
        assert self.model.done == set(self.model.keys), "something was lost"
        assert self.members[0].session.sql("select * from pgeverything.deliveries") == []


@pytest.mark.parametrize("on_dead", ["skip", "hold"])
def test_any_order_keeps_what_is_promised(
    pg: PgEverything, sessions: Sessions, chance: random.Random, on_dead: str
) -> None:
    session = sessions.open()
    for number in range(WALKS):
        pg.pubsub.delete("s")
        session.sql("delete from pgeverything.events; delete from pgeverything.members")
        walk = Walk(pg, sessions, on_dead)
        taken = []
        try:
            for _ in range(STEPS):
                taken.append(step(chance))
                name, *how = taken[-1]
                getattr(walk, name)(*how)
            walk.finish()
        except AssertionError as error:
            raise AssertionError(f"walk {number}: {taken}") from error
        finally:
            for member in walk.members:
                member.session.close()
