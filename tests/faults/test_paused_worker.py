"""A worker is frozen with SIGSTOP, its jobs are rescued, and it comes back: its results are refused, and it goes on."""

from __future__ import annotations

import signal
import subprocess

from pgeverything import PgEverything
from tests.waiting import eventually

from .accounts import fetch, left_over, rescues, wait_until_done
from .fleet import Fleet
from .history import read_journal, unexplained_doubles


def freeze_and_rescue(url: str, pg: PgEverything, fleet: Fleet, task: str) -> subprocess.Popen[bytes]:
    """Let a worker begin three jobs, freeze it, let another one do them; return the frozen one."""
    pg.jobs.enqueue_many(task, [{"number": number} for number in range(3)])
    frozen = fleet.start(lease="2s")
    eventually(lambda: len(read_journal(fleet.journal)) == 3, lambda: f"three jobs to begin\n{fleet.logs()}")
    frozen.send_signal(signal.SIGSTOP)
    fleet.start(lease="2s")
    eventually(lambda: len(rescues(url)) == 3, lambda: f"the jobs to be rescued\n{fleet.logs()}")
    return frozen


def goes_on_alone(url: str, pg: PgEverything, fleet: Fleet, thawed: subprocess.Popen[bytes]) -> None:
    """Stop the other worker and see this one work under a number of its own."""
    fleet.processes[1].terminate()
    assert fleet.processes[1].wait(60) == 0
    pg.jobs.enqueue_many("journaled", [{"number": number} for number in range(100, 105)])
    wait_until_done(fleet, within=40)
    late = [effect for effect in read_journal(fleet.journal) if effect.number >= 100]
    assert {effect.pid for effect in late} == {thawed.pid}
    taken = {worker for workers in rescues(url).values() for worker in workers}
    assert not taken & {effect.worker for effect in late}, "it works on under the number that was declared dead"
    fleet.drain()
    assert left_over(url) == {}
    assert fetch(url, "select state, count(*) from pgeverything.finished group by state") == [("succeeded", 8)]


def test_late_results_are_refused(url: str, pg: PgEverything, fleet: Fleet) -> None:
    frozen = freeze_and_rescue(url, pg, fleet, "gated")
    fleet.gate.touch()
    wait_until_done(fleet, within=40)
    winners = fetch(url, "select id, worker from pgeverything.finished order by id")
    frozen.send_signal(signal.SIGCONT)
    # Its handlers see the open gate as it wakes: they have their effect, or are told before that to let go.
    goes_on_alone(url, pg, fleet, frozen)
    journal = read_journal(fleet.journal)
    assert unexplained_doubles(journal, rescues(url)) == {}
    assert fetch(url, "select id, worker from pgeverything.finished where id <= 3 order by id") == winners
    robbed = {effect.worker for effect in journal if effect.pid == frozen.pid and effect.number < 3}
    assert not robbed & {worker for _, worker in winners}


def test_an_open_transaction_of_a_frozen_worker_comes_to_nothing(url: str, pg: PgEverything, fleet: Fleet) -> None:
    """It has inserted and not committed when it is frozen; another worker does the jobs meanwhile."""
    frozen = freeze_and_rescue(url, pg, fleet, "gated_exact")
    fleet.gate.touch()
    wait_until_done(fleet, within=40)
    frozen.send_signal(signal.SIGCONT)
    eventually(
        lambda: (
            not fetch(
                url,
                "select pid from pg_stat_activity"
                " where datname = current_database() and state like 'idle in transaction%%'",
            )
        ),
        "its transactions to end",
    )
    goes_on_alone(url, pg, fleet, frozen)
    assert fetch(url, "select number, count(*) from effects group by number order by number") == [
        (0, 1),
        (1, 1),
        (2, 1),
    ]


def test_a_frozen_worker_that_lost_nothing_goes_on(url: str, pg: PgEverything, fleet: Fleet) -> None:
    """Nobody was there to rescue its jobs: it wakes up, distrusts its lease, and ends them all the same."""
    pg.jobs.enqueue_many("gated", [{"number": number} for number in range(3)])
    worker = fleet.start(lease="2s")
    eventually(lambda: len(read_journal(fleet.journal)) == 3, lambda: f"three jobs to begin\n{fleet.logs()}")
    worker.send_signal(signal.SIGSTOP)
    eventually(
        lambda: (
            fetch(url, "select count(*) from pgeverything.workers where heartbeat_at + lease < clock_timestamp()")
            == [(1,)]
        ),
        "its lease to run out",
    )
    worker.send_signal(signal.SIGCONT)
    fleet.gate.touch()
    wait_until_done(fleet, within=40)
    fleet.drain()
    assert left_over(url) == {}
    assert fetch(url, "select state, count(*) from pgeverything.finished group by state") == [("succeeded", 3)]
