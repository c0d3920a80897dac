"""Workers are killed with SIGKILL again and again, and replaced: nothing is lost, nothing is done twice for nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Callable

from pgeverything import PgEverything
from pgeverything.errors import JobStateError
from tests.waiting import eventually

from .accounts import fetch, left_over, remaining, rescues, wait_until_done
from .fleet import Fleet
from .history import Step, disorder, lost, read_journal, unexplained_doubles

JOBS = int(os.environ.get("FAULTS_JOBS", "20000"))
ORDERED = int(os.environ.get("FAULTS_ORDERED", "400"))


def kill_while(busy: Callable[[], bool], fleet: Fleet, chance: random.Random, **options: object) -> int:
    """Kill a worker about every second and start another one, for as long as there is something to do."""
    kills = 0
    while busy():
        time.sleep(chance.uniform(0.5, 1.5))  # the fault itself: a kill at no particular moment
        fleet.check()
        fleet.kill(chance.choice([process for process in fleet.processes if process.poll() is None]))
        fleet.start(**options)
        kills += 1
    return kills


def test_twenty_thousand_jobs_survive_a_kill_every_second(
    url: str, pg: PgEverything, fleet: Fleet, chance: random.Random
) -> None:
    """Each finished at least once; a second effect only where a kill fell between effect and acknowledgement."""
    tasks = ["journaled", "journaled", "exact", "exact_in_thread"]
    numbers = {task: [n for n in range(JOBS) if tasks[n % 4] == task] for task in tasks}
    for task, mine in numbers.items():
        pg.jobs.enqueue_many(task, [{"number": number} for number in mine])
    # Six seconds, so that a busy machine does not make a living worker fall silent, too.
    options = {"lease": "6s", "concurrency": 20}
    for _ in range(3):
        fleet.start(**options)

    kills = kill_while(lambda: remaining(url) > JOBS // 20, fleet, chance, **options)
    wait_until_done(fleet)
    fleet.drain()

    journal = [effect for effect in read_journal(fleet.journal) if effect.kind == "effect"]
    taken = rescues(url)
    print(f"{kills} kills, {len(taken)} jobs rescued, {len(journal) - len(numbers['journaled'])} doubles")
    assert lost(numbers["journaled"], (effect.number for effect in journal)) == []
    assert unexplained_doubles(journal, taken) == {}
    workers_of_killed = {effect.worker for effect in read_journal(fleet.journal) if effect.pid in fleet.killed}
    workers_alive = {effect.worker for effect in read_journal(fleet.journal)} - workers_of_killed
    assert not workers_alive & set(itertools.chain.from_iterable(taken.values())), "a living worker was robbed"

    effects = Counter(number for (number,) in fetch(url, "select number from effects"))
    transactional = numbers["exact"] + numbers["exact_in_thread"]
    assert lost(transactional, effects) == []
    assert {number: count for number, count in effects.items() if count > 1} == {}

    ends = Counter(state for (state,) in fetch(url, "select state from pgeverything.finished"))
    assert ends == {"succeeded": JOBS}, pg.dead_letters.groups()
    assert left_over(url) == {}
    assert len(taken) > 0, "no kill hit a worker that held jobs: this run has shown nothing"


def steps(url: str) -> list[Step]:
    return [Step(*row) for row in fetch(url, "select key, number, event, pid from history order by seq")]


def test_eight_processes_keep_the_order_of_one_key(url: str, pg: PgEverything, fleet: Fleet) -> None:
    for _ in range(8):
        fleet.start(concurrency=4, lease="10s")
    eventually(lambda: fetch(url, "select count(*) from pgeverything.workers") == [(8,)], fleet.logs)
    # Half of them one by one, while the workers run: there the line is empty, full, and empty again.
    for number in range(ORDERED // 2):
        pg.jobs.enqueue("ordered", {"key": "k", "number": number}, ordering_key="k")
    pg.jobs.enqueue_many("ordered", [{"key": "k", "number": n} for n in range(ORDERED // 2, ORDERED)], ordering_key="k")
    wait_until_done(fleet)
    fleet.drain()

    history = steps(url)
    assert disorder(history) == []
    assert [step.number for step in history if step.event == "end"] == list(range(ORDERED))
    assert len({step.pid for step in history}) > 1, "one process did it all: this run has shown nothing"
    assert left_over(url) == {}


def test_twenty_keys_keep_their_order_while_workers_are_killed(
    url: str, pg: PgEverything, fleet: Fleet, chance: random.Random
) -> None:
    """A job whose worker died begins again before any later one of its key."""
    keys = [f"key-{index}" for index in range(20)]
    each = ORDERED // 10
    options = {"lease": "3s", "concurrency": 4}
    for number in range(each):
        with pg.transaction() as tx:
            for key in keys:
                tx.jobs.enqueue("ordered", {"key": key, "number": number}, ordering_key=key)
    for _ in range(8):
        fleet.start(**options)
    kill_while(lambda: remaining(url) > each, fleet, chance, **options)
    wait_until_done(fleet)
    fleet.drain()

    history = steps(url)
    assert disorder(history) == []
    for key in keys:
        assert lost(range(each), (s.number for s in history if s.key == key and s.event == "end")) == [], key
    assert left_over(url) == {}


def test_poison_dies_and_takes_nobody_with_it(url: str, pg: PgEverything, fleet: Fleet) -> None:
    """A job that kills its process is dead after more than three crashes; the jobs beside it are done."""
    poison = pg.jobs.enqueue("poison")
    pg.jobs.enqueue_many("innocent", [{"number": number} for number in range(9)])

    while remaining(url):
        if remaining(url) == 1:  # nobody is left beside it: no need to wait until it is due
            with contextlib.suppress(JobStateError):
                pg.jobs.retry(poison.id)
        if not any(process.poll() is None for process in fleet.processes):
            fleet.killed.add(fleet.start(concurrency=10, lease="2s").pid)  # it is poison that kills it
        time.sleep(0.05)
    fleet.drain()

    job = pg.jobs.get(poison.id)
    assert (job.state, job.crashes, job.reason) == ("dead", 4, "crashed its worker 4 times")
    assert pg.dead_letters.count() == 1, pg.dead_letters.groups()
    assert lost(range(9), (e.number for e in read_journal(fleet.journal) if e.kind == "effect")) == []
    assert fetch(url, "select state, count(*) from pgeverything.finished group by state") == [("succeeded", 9)]
