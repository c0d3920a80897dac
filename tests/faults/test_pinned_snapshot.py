"""A session holds an old snapshot while thousands of jobs pass: vacuum can remove nothing, and nothing goes wrong."""

from __future__ import annotations

import os
from collections import Counter

from pgeverything import PgEverything

from .accounts import fetch, left_over, wait_until_done
from .fleet import Fleet
from .history import lost, read_journal
from .sessions import Sessions

JOBS = int(os.environ.get("FAULTS_JOBS", "20000"))


def test_jobs_pass_beside_a_pinned_snapshot(url: str, pg: PgEverything, fleet: Fleet, sessions: Sessions) -> None:
    """Also late ones of a lower place, which a claim behind its cursor does not see."""
    pinned, late = sessions.open(), sessions.open()
    pinned.begin("repeatable read")
    assert pinned.sql("select count(*) from pgeverything.jobs") == [(0,)]
    late.begin()
    late.tx.jobs.enqueue_many("noted", [{"number": number} for number in range(100)])
    pg.jobs.enqueue_many("noted", [{"number": number} for number in range(100, JOBS // 2)])
    for _ in range(2):
        fleet.start(lease="15s", concurrency=20)
    pg.jobs.enqueue_many("noted", [{"number": number} for number in range(JOBS // 2, JOBS)], priority=1)
    pg.jobs.enqueue_many("noted", [{"number": number} for number in range(JOBS, JOBS + 100)], ordering_key="k")
    late.commit()
    wait_until_done(fleet)
    fleet.drain()

    runs = Counter(effect.number for effect in read_journal(fleet.journal))
    assert lost(range(JOBS + 100), runs) == []
    assert {number: count for number, count in runs.items() if count > 1} == {}
    assert pinned.sql("select count(*) from pgeverything.finished") == [(0,)]  # it was pinned all the time
    pinned.commit()
    assert fetch(url, "select count(*) from pgeverything.finished where state = 'succeeded'") == [(JOBS + 100,)]
    assert left_over(url) == {}
