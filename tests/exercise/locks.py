"""Locks of every kind: alone, shared, a semaphore, with and without a line."""

from __future__ import annotations

from typing import Any

from .session import Session


def exercise(session: Session) -> None:
    calls = iter(range(1, 1000))

    def acquire(name: str, line: str = "none", ticket: int | None = None, **more: Any) -> tuple[Any, ...]:
        asked: dict[str, Any] = {"ttl": 30.0, "slots": 1, "shared": False, "owner": "o", "note": None}
        asked |= {"min_hold": None, "patience": 0.0}
        call = {"name": name, "holder": next(calls), "line": line, "channel": "c", "ticket": ticket}
        return session.run("locks.acquire", **asked | call | more)[0]

    def release(name: str, lease: tuple[Any, ...]) -> None:
        session.run("locks.release", name=name, slot=lease[1], token=lease[2])

    for _ in range(2):
        alone = acquire("alone")
        acquire("alone")
        ticket = acquire("alone", "join")[4]
        acquire("alone", "join", ticket)
        session.run("locks.renew", names=["alone"], slots=[alone[1]], tokens=[alone[2]], ttls=[30.0])
        session.run("locks.guard", name="alone", slot=alone[1], token=alone[2])
        session.run("locks.get", name="alone")
        release("alone", alone)
        acquire("alone", "leave")
        release("alone", acquire("alone", "join", ticket))
        gave_up = acquire("alone")
        acquire("alone", "leave", acquire("alone", "join")[4])
        session.run("locks.break", name="alone")
        release("alone", gave_up)

        readers = [acquire("shared", shared=True) for _ in range(3)]
        ticket = acquire("shared", "join")[4]
        acquire("shared", "join", shared=True)
        for reader in readers:
            release("shared", reader)
        release("shared", acquire("shared", "join", ticket))
        for _ in range(3):
            acquire("three", slots=3)
        acquire("three", "join", slots=3)
        session.run("locks.withdraw", name="three", holder=next(calls) - 1)
        session.run("locks.break", name="three")
        session.run("locks.list", prefix="s", limit=10)
        session.run("locks.sweep", keep=86400.0, pages=1000)
    for name in ("alone", "shared", "three"):
        session.run("locks.break", name=name)
