"""Everything of the job queue that runs often, and every way to look at jobs."""

from __future__ import annotations

from .session import Session


def exercise(session: Session) -> None:
    run = session.run
    worker = run("worker.register", name="w", queues=["a"], concurrency=9, lease=3600.0)[0][0]
    run("worker.heartbeat", worker=worker, jobs=[1, 2], finished=1, failed=0, refused=0)
    enqueue = {
        **dict.fromkeys(
            ("delay", "run_at", "unique_key", "ordering_key", "max_attempts", "timeout", "expires", "headers")
        ),
        "task": "t",
        "args": "{}",
        "queue": "a",
        "priority": 0,
        "on_duplicate": "skip",
    }
    placed = {
        "ready": run("jobs.enqueue", **enqueue)[0][0],
        "scheduled": run("jobs.enqueue", **enqueue | {"delay": 3600.0})[0][0],
        "waiting": run("jobs.enqueue", **enqueue | {"queue": "c", "ordering_key": "long"})[0][0],
    }
    for on_duplicate in ("skip", "skip", "replace"):
        run("jobs.enqueue", **enqueue | {"unique_key": "k", "on_duplicate": on_duplicate})
    many = {name: value for name, value in enqueue.items() if name not in ("unique_key", "on_duplicate")}
    run("jobs.enqueue_many", **many | {"args": "[1, 2, 3]"})
    run("worker.advance", batch=1000)

    lanes = run("worker.lanes", queues=["a", "b", "c", "limited"])
    claimed = [
        (job[0], job[1])
        for _ in range(4)
        for job in run(
            "worker.claim",
            worker=worker,
            queues=[lane[0] for lane in lanes],
            priorities=[lane[1] for lane in lanes],
            after=[0] * len(lanes),
            limit=20,
            soon=True,
        )
    ]
    run("worker.harden", worker=worker)
    limited = run("worker.claim_limited", worker=worker, queues=["limited"], priorities=[-1], limit=20)
    give_up = {"delays": None, "used": 1, "reasons": "r", "fingerprints": "f", "errors": "{}"}
    for name, more in (
        ("finish", {"states": "succeeded", "results": "1", "reasons": None}),
        ("fail", give_up | {"delays": 60.0}),
        ("fail", give_up),
        ("give_back", {}),
    ):
        batch, claimed = claimed[:8], claimed[8:]
        run(
            f"worker.{name}",
            worker=worker,
            jobs=[job for job, _ in batch],
            tokens=[token for _, token in batch],
            **{key: [value] * len(batch) for key, value in more.items()},
        )
    if claimed:
        run("worker.finish_here", worker=worker, job=claimed[0][0], token=claimed[0][1])
        progress = {"jobs": [claimed[1][0]], "tokens": [claimed[1][1]], "progress": [0.5], "notes": ["half"]}
        run("worker.progress", worker=worker, **progress)
        placed["running"] = claimed[1][0]
    run("worker.advance", batch=1000)

    for state in (None, "scheduled", "waiting", "ready", "running", "dead"):
        run("jobs.list", queue=None, task=None, state=state, before=2**62, limit=50)
    for job in placed.values():
        for name in ("get", "state", "facts", "failures"):
            run(f"jobs.{name}", id=job)
    for state, job in placed.items():
        if state == "scheduled":
            run("jobs.hurry", id=job)
        run("jobs.cancel", id=job, reason="r")
    filters = {"queue": None, "task": None, "fingerprint": None}
    dead = run("dead_letters.list", **filters, limit=20)
    run("dead_letters.groups", queue=None, task=None, limit=20)
    [(now,)] = run("dead_letters.now")
    run("dead_letters.redrive", **filters, ids=None, to_queue=None, limit=9, start=0.0, gap=0.1, until=now)
    for row in dead[-1:]:
        run("dead_letters.redrive", **filters, ids=[row[0]], to_queue="b", limit=1, start=0.0, gap=0.0, until=now)
    run("dead_letters.discard", **filters, ids=None, limit=5)
    run("jobs.full", queue="a", wanted=1)
    run("worker.rescue", most=3, stray=30.0, apart=30.0)
    run("worker.settle_cancellations")
    run("worker.nudge_lines")
    run("worker.orphans", worker=worker, jobs=[1], age=5.0)
    for row in limited:
        run("jobs.cancel", id=row[0], reason="r")
    run("worker.hand_over", queues=["limited"])
    run("worker.leave", worker=worker)
