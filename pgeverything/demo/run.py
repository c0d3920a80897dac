"""The whole course of the demo."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Protocol

import psycopg

from ..app import PgEverything
from ..dead_letters import DeadGroup
from ..doctor.workers import WorkerStatus, workers
from ..engine.carriers import PsycopgCarrier
from ..engine.plan import drive
from ..errors import NotMigrated
from ..jobs.values import ENDED, Job
from ..schema import migrate as migrations
from . import files, report, schedule
from .fleet import DemoFailed, Fleet, fleet
from .tasks import PARSE, PARSED, PROBE, REPAIR, REPORT, SCHEMA, TABLES
from .totals import Projection

_PROBES = 100
_ASKED = 200  # jobs that are to build the report
_PATIENCE = 60.0  # seconds without any progress after which something is wrong
_LOOK = 0.1  # seconds between looks at how far it is


class Show(Protocol):
    """Who shows the demo's progress to the person."""

    def say(self, text: str) -> None:
        """Say that something happens."""
        ...

    def progress(self, ended: int, total: int, note: str) -> None:
        """Say how far it is."""
        ...


def run(url: str, most: int | None, show: Show) -> report.Report:
    """Run the demo.

    Args:
        url: the database; the schemas `pgeverything_demo` and `pgeverything_demo_tables` in it are dropped and made
            again.
        most: how many of the standard library's files at most; None for all.
        show: told of every step.

    Raises:
        DemoFailed: another demo is running there, or the workers do not get on.
    """
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="pgeverything-demo-") as temporary,
        psycopg.connect(url, autocommit=True) as connection,
        PgEverything(url, schema=SCHEMA) as pg,
    ):
        folder = Path(temporary)
        carrier = PsycopgCarrier(connection, SCHEMA)
        _new_schemas(carrier)
        pg.audit.track(f"{TABLES}.totals", require_actor=True)
        show.say(f"made the schemas {SCHEMA} and {TABLES}")
        chosen = _choose(most, folder, show)
        with fleet(url, folder) as running:
            show.say(f"started `{running.command}`")
            course, projection = _Course(pg, carrier, running, show), Projection(pg, running.check)
            pid, killed_at = course.parse(chosen)
            jobs = course.jobs()
            first = report.account(chosen, jobs)
            kill = report.kill(pid, killed_at, jobs, course.rescues(jobs), folder)
            groups = pg.dead_letters.groups()
            was, then = projection.settled(), course.clock()
            ticks = schedule.run(pg, show.say, running.check)
            latency = report.latency(course.probe())
            redrive = course.redrive(groups[0]) if groups else None
            after = course.jobs()
            show.say("comparing the totals with the log, and making them anew from it")
            totals = projection.totals()
            trail = projection.trail("test" if "test" in was else next(iter(was)), then, was)
            before = course.read()
            sums = course.sums()
            cached = course.read()
            largest = report.largest(pg.events.read(PARSED), files.library())
        return report.Report(
            account=first,
            speed=report.speed(jobs),
            kill=kill,
            latency=latency,
            ticks=ticks,
            groups=groups,
            redrive=redrive,
            after=report.account(chosen, after),
            totals=totals,
            trail=trail,
            sums=sums,
            before=before,
            cached=cached,
            largest=largest,
            seconds=time.monotonic() - began,
        )


def _new_schemas(carrier: PsycopgCarrier) -> None:
    try:
        alive = [each for each in drive(carrier, workers()) if each.alive]
    except NotMigrated:
        alive = []  # the usual case, or what an older release left
    if alive:
        raise DemoFailed(f"another demo runs in this database (worker {alive[0].name}): wait until it has ended")
    carrier.connection.execute(f"drop schema if exists {SCHEMA}, {TABLES} cascade")
    drive(carrier, migrations.migrate(SCHEMA))
    carrier.connection.execute(
        f"""
        create schema {TABLES};
        create table {TABLES}.totals (
          package text primary key, files bigint, lines bigint, functions bigint, classes bigint);
        create table {TABLES}.report (token bigint, lines bigint, functions bigint, classes bigint);
        """
    )


def _choose(most: int | None, folder: Path, show: Show) -> list[Path]:
    found = files.library_files()
    chosen = found if most is None else files.spread(found, most)
    show.say(f"found {len(found)} Python files in {files.library()}" + (f", taking {len(chosen)}" if most else ""))
    if most is None and files.ships_broken_files():
        return chosen
    broken = files.write_broken_files(folder)
    why = "this Python came without its test suite" if most is None else "a part of them may hold no broken one"
    show.say(f"{why}: added {len(broken)} broken files of our own")
    return chosen + broken


class _Course:
    """The steps while the workers run."""

    def __init__(self, pg: PgEverything, carrier: PsycopgCarrier, running: Fleet, show: Show) -> None:
        self._pg, self._carrier, self._fleet, self._show = pg, carrier, running, show

    def jobs(self) -> list[Job]:
        """Return all jobs that parse files."""
        found: list[Job] = []
        while page := self._pg.jobs.list(task="parse", limit=1000, before=found[-1].id if found else None):
            found += page
        return found

    def rescues(self, jobs: Sequence[Job]) -> list[datetime]:
        """Return when each rescued job came back into line."""
        rescued = [job.id for job in jobs if job.crashes]
        failures = [failure for each in rescued for failure in self._pg.jobs.failures(each)]
        return [failure["at"] for failure in failures if failure["error"]["type"] == "WorkerLost"]

    def workers(self) -> list[WorkerStatus]:
        """Return the registered workers."""
        return drive(self._carrier, workers())

    def parse(self, chosen: Sequence[Path]) -> tuple[int, datetime]:
        """Enqueue a job for each file, kill a worker half way, wait for the end; return whom and when."""
        began = time.monotonic()
        self._pg.jobs.enqueue_many(
            "parse", [{"path": str(path), "package": files.package(path)} for path in chosen], queue=PARSE
        )
        self._show.say(f"enqueued {len(chosen)} jobs in {time.monotonic() - began:.2f} s")
        self._until(len(chosen), lambda ended, _: ended >= len(chosen) // 2, "two workers")
        killed_at = self.clock()
        pid = self._fleet.kill(self.workers())
        self._show.say(f"half way: killed worker process {pid} with SIGKILL")
        self._until(len(chosen), lambda _, open_: open_ == 0, "one killed")
        return pid, killed_at

    def clock(self) -> datetime:
        """Return the time on the database's clock, which is what jobs are stamped with."""
        now: datetime
        ((now,),) = self._carrier.connection.execute("select clock_timestamp()").fetchall()
        return now

    def _until(self, total: int, enough: Callable[[int, int], bool], note: str) -> None:
        """Show progress until `enough(ended, open)`."""
        last, since = -1, time.monotonic()
        while True:
            counts = self._pg.jobs.counts()
            ended = counts["succeeded"] + counts["dead"]
            open_ = counts["ready"] + counts["running"] + counts["scheduled"] + counts["waiting"]
            self._show.progress(ended, total, f"{counts['running']} running, {counts['dead']} dead, {note}")
            if enough(ended, open_):
                return
            self._fleet.check()
            if ended != last:
                last, since = ended, time.monotonic()
            elif time.monotonic() - since > _PATIENCE:
                raise self._fleet.failed(f"nothing has moved for {_PATIENCE:g} s with {open_} job(s) left")
            time.sleep(_LOOK)

    def probe(self) -> list[Job]:
        """Enqueue one job after the other on workers that sleep."""
        deadline = time.monotonic() + _PATIENCE
        while not all(each.asleep for each in self.workers() if each.alive):
            if time.monotonic() > deadline:
                raise self._fleet.failed("the workers do not come to rest")
            time.sleep(_LOOK)
        self._show.say(f"measuring how soon idle workers start a job, {_PROBES} times")
        return [self._pg.jobs.wait(self._pg.jobs.enqueue("probe", queue=PROBE).id, "30s") for _ in range(_PROBES)]

    def redrive(self, group: DeadGroup) -> report.Redrive:
        """Give the largest group another chance, on the queue whose handler reads up to the first error."""
        ids = [job.id for job in self._pg.dead_letters.list(fingerprint=group.fingerprint, limit=1000)]
        moved = self._pg.dead_letters.redrive(fingerprint=group.fingerprint, to_queue=REPAIR)
        self._show.say(f"redrove {moved} dead letters to the queue {REPAIR!r}")
        while any(self._pg.jobs.get(each).state not in ENDED for each in ids):
            self._fleet.check()
            time.sleep(_LOOK)
        finished = sum(self._pg.jobs.get(each).state == "succeeded" for each in ids)
        return report.Redrive(group, moved, finished)

    def sums(self) -> report.Sums:
        """Ask both workers for the report many times at once; the lock lets one of them build it."""
        self._show.say(f"asking for the report {_ASKED} times at once")
        ids = self._pg.jobs.enqueue_many("build_report", [{}] * _ASKED, queue=REPORT)
        answers = [self._pg.jobs.wait(each, "30s").result for each in ids]
        built = sum(answer["built"] for answer in answers)
        rows = self._carrier.connection.execute(f"select * from {TABLES}.report").fetchall()  # noqa: S608
        if len(rows) != built:
            raise self._fleet.failed(f"{built} jobs built the report, and it is there {len(rows)} times")
        return report.Sums(_ASKED, len({answer["pid"] for answer in answers}), built, *rows[0])

    def read(self) -> report.Cached:
        """Have both workers read the report's first line many times at once, through the cache."""
        self._show.say(f"reading the report {_ASKED} times at once, through the cache")
        ids = self._pg.jobs.enqueue_many("read_report", [{}] * _ASKED, queue=REPORT)
        answers = [self._pg.jobs.wait(each, "30s").result for each in ids]
        return report.Cached(
            _ASKED, sum(answer["computed"] for answer in answers), frozenset(answer["lines"] for answer in answers)
        )
