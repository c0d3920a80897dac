"""Everything that the scheduler does, and every way to look at schedules."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from .session import Session

_SOON = timedelta(milliseconds=1)


def exercise(session: Session) -> None:
    run = session.run
    now: datetime = run("scheduler.clock")[0][0]
    yesterday, tomorrow = now - timedelta(days=1), now + timedelta(days=1)
    worker = run("worker.register", name="ticker", queues=["a"], concurrency=1, lease=3600.0)[0][0]
    for name, next_tick in (("exercise 1", now - _SOON), ("exercise 2", now - _SOON), ("exercise 3", yesterday)):
        run("scheduler.put", **definition(name), ticked_until=yesterday, next_tick=next_tick, next_run_at=next_tick)
    run("scheduler.find", names=["exercise 1", "exercise 2"])

    run("scheduler.next", without=["exercise 3"])
    due = [row[0] for row in run("scheduler.lock_due", most=100, without=["exercise 3"])]
    run("scheduler.fire", **decisions([(name, now, "ran") for name in due], next_tick=tomorrow))
    run("scheduler.fire", **decisions([("exercise 1", now + _SOON, "manual")], next_tick=tomorrow))
    run("scheduler.unfinished", name="exercise 1")
    skipped = {"since": yesterday, "count": 9, "outcome": "paused", "reason": None}
    run("scheduler.skip", name="exercise 2", tick=now + _SOON, **skipped)

    filters: dict[str, Any] = {"name": None, "task": None, "state": None, "after": None}
    run("scheduler.list", **filters, limit=100)
    run("scheduler.list", **filters | {"name": "exercise 1"}, limit=1)
    run("scheduler.list", **filters | {"task": "exercised", "state": "active", "after": "e"}, limit=100)
    run("scheduler.history", name="exercise 1", before=None, limit=100)
    run("scheduler.history", name="exercise 1", before=now, limit=100)
    run("scheduler.troubles", patience=30.0)

    run("scheduler.declare_code", worker=worker, origin="shop", names=["exercise 1"], digests=["d"])
    run("scheduler.compare_code", worker=worker + 1, origin="shop", names=["exercise 1", "exercise 9"])
    run("scheduler.other_rules")
    run("scheduler.of_rules", timezone="UTC", rules="", after="", limit=100)
    standing = {"paused": True, "disabled": False, "rules": "", "ticked_until": now, "next_tick": tomorrow}
    run("scheduler.stand", name="exercise 2", **standing, next_run_at=None)
    run("scheduler.forget_ended", keep=86400.0)
    run("scheduler.maintain", keep=86400.0)
    for name in ("exercise 1", "exercise 2", "exercise 3"):
        run("scheduler.remove", name=name)
    run("worker.leave", worker=worker)


def definition(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "task": "exercised",
        "args": "{}",
        "queue": "a",
        "priority": 0,
        "cron": "0 7 * * *",
        "seconds": False,
        "every": None,
        "at": None,
        "timezone": "UTC",
        "start_at": datetime(2026, 1, 1, tzinfo=UTC),
        "end_at": None,
        "misfire": "once",
        "grace": 5.0,
        "catch_up": 100,
        "overlap": "skip",
        "jitter": 0.0,
        "runs": 9,
        "remaining": 9,
        "digest": "d",
        "origin": "shop",
        "rules": "",
    }


def decisions(fates: list[tuple[str, datetime, str]], next_tick: datetime) -> dict[str, Any]:
    names = sorted({name for name, _, _ in fates})
    return {
        "tick_names": [name for name, _, _ in fates],
        "ticks": [tick for _, tick, _ in fates],
        "since": [None] * len(fates),
        "counts": [1] * len(fates),
        "outcomes": [outcome for _, _, outcome in fates],
        "reasons": [None] * len(fates),
        "names": names,
        "ticked_until": [max(tick for name, tick, _ in fates if name == each) for each in names],
        "next_ticks": [next_tick] * len(names),
        "next_run_at": [next_tick] * len(names),
        "remaining": [8] * len(names),
        "rules": ["" for _ in names],
        "without": [],
    }
