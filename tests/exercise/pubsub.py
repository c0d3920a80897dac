"""A subscription's life: claims by two members, acknowledgements, failures, deaths, rescue, seek."""

from __future__ import annotations

from typing import Any

from .session import Session

EVERYTHING: dict[str, Any] = {"topic": None, "low": None, "high": None, "regex": None}
ONE = EVERYTHING | {"topic": "jobs.eu"}
SOME = EVERYTHING | {"low": "jobs.", "high": "jobs/", "regex": "^jobs[.][^.]+$"}


class _Subscriptions:
    """What members do, on a session."""

    def __init__(self, session: Session) -> None:
        self.run = session.run

    def create(self, name: str, topics: dict[str, Any], on_dead: str, start: str | None = "latest") -> int:
        settings = {"ordered": True, "max_deliveries": 2, "on_dead": on_dead}
        at = None if start else "2020-01-01 00:00:00+00"
        return int(self.run("pubsub.create", name=name, pattern=name, start=start, at=at, **settings, **topics)[0][0])

    def publish(self) -> None:
        plain = {"expected_version": None, "headers": None, "idempotency_key": None}
        for topic in ("jobs.eu", "jobs.us"):
            keys = [*"aaab", *(None,) * 4, *"ccde"]
            self.run("events.append_many", topic=topic, data=f"{list(range(12))}", types=["t"], keys=keys, **plain)

    def member(self, *subscriptions: int) -> int:
        return int(self.run("pubsub.register", name="m", subscriptions=list(subscriptions), lease=30.0)[0][0])

    def claim(self, who: int, subscription: int, most: int = 30) -> list[dict[str, Any]]:
        rows = self.run("pubsub.claim", member=who, subscriptions=[subscription], most=[most])
        found = [row for row in rows if row[3] is not None]
        return [{"subscription": row[0], "position": row[3], "token": row[4]} for row in found]

    def acknowledge(self, held: list[dict[str, Any]]) -> None:
        if held:
            self.run("pubsub.acknowledge", **{f"{name}s": [each[name] for each in held] for name in held[0]})

    def put_back(self, held: list[dict[str, Any]], **more: Any) -> None:
        how: dict[str, Any] = {
            "delay": 0.0,
            "failed": 1,
            "delivered": 1,
            "reason": None,
            "fingerprint": "f",
            "error": '{"type": "E"}',
        }
        for each in held:
            self.run("pubsub.put_back", **each, **how | more)


def exercise(session: Session) -> None:
    run, on = session.run, _Subscriptions(session)
    names = {"skip": SOME, "hold": ONE, "stop": EVERYTHING}
    ids = {on_dead: on.create(f"exercise-{on_dead}", topics, on_dead) for on_dead, topics in names.items()}
    for on_dead, topics in names.items():
        on.create(f"exercise-{on_dead}", topics, on_dead)
    on.create("exercise-time", ONE, "skip", None)
    on.publish()
    first, second = on.member(*ids.values()), on.member(*ids.values())
    run("pubsub.take_up", member=first, subscriptions=list(ids.values()))
    for on_dead, each in ids.items():
        held = on.claim(first, each, most=6)
        on.claim(second, each)
        on.acknowledge(held[1:2])
        on.put_back(held[:1], delay=3600.0)
        on.put_back(held[2:], failed=0)
        on.put_back(on.claim(second, each, most=8)[:1], reason=f"rejected by {on_dead}")
        on.acknowledge(on.claim(first, each))
    dead = {"ids": None, "subscription": None, "fingerprint": None}
    run("dead_letters.list_deliveries", **dead, limit=9)
    run("dead_letters.group_deliveries", subscription=None, limit=9)
    run("dead_letters.count_deliveries", **dead)
    [(now,)] = run("dead_letters.now")
    run("dead_letters.redrive_deliveries", **dead, limit=1, start=0.0, gap=0.1, until=now)
    run("dead_letters.discard_deliveries", **dead, limit=9)
    run("pubsub.resume", name="exercise-stop")
    for each in ids.values():
        on.claim(first, each, most=1)
    run("pubsub.beat", members=[first])
    run("pubsub.touch", subscription=ids["stop"], position=1)
    run("pubsub.orphans", member=first, subscriptions=[], positions=[], tokens=[])
    run("pubsub.open", subscriptions=list(ids.values()))
    run("pubsub.list", name=None)
    for each in ids.values():
        run("pubsub.backlog", subscription=each, upto=2**40)
        run("pubsub.gap", subscription=each)
    run("pubsub.leave", member=second)
    run("pubsub.rescue")
    run("pubsub.pause", name="exercise-hold")
    run("pubsub.resume", name="exercise-hold")
    run("pubsub.seek", name="exercise-skip", start="latest", at=None)
    for name in (*(f"exercise-{on_dead}" for on_dead in names), "exercise-time"):
        run("pubsub.delete", name=name)
    run("pubsub.leave", member=first)
