"""What the demo measures, from the jobs themselves and from the journals of what was started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ..dead_letters import DeadGroup
from ..events import Event
from ..jobs.values import Job
from .schedule import Ticks
from .totals import Totals, Trail


@dataclass(frozen=True, slots=True)
class Account:
    """Where the files are: `found` must be `finished` + `dead`, each file exactly once."""

    found: int
    finished: int
    dead: int
    balanced: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast the jobs went that no kill held up. `seconds` is from the first start to the last end."""

    jobs: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Jobs a second."""
        return self.jobs / max(self.seconds, 1e-6)


@dataclass(frozen=True, slots=True)
class Kill:
    """What killing a worker process cost.

    `rescued` of its jobs were back in line after `back` seconds, at its end, and the last of them ran again after
    `again` seconds. `twice` of all jobs were started twice: the others in its hands had not begun.
    """

    pid: int
    rescued: int
    back: float
    again: float
    twice: int


@dataclass(frozen=True, slots=True)
class Latency:
    """From enqueue to start on idle workers, in seconds."""

    probes: int
    p50: float
    p99: float


@dataclass(frozen=True, slots=True)
class Redrive:
    """What became of one group of dead letters on the queue whose handler forgives."""

    group: DeadGroup
    moved: int
    finished: int


@dataclass(frozen=True, slots=True)
class Sums:
    """The report that `asked` jobs in `processes` processes were to build, and `built` times was; with its token."""

    asked: int
    processes: int
    built: int
    token: int
    lines: int
    functions: int
    classes: int


@dataclass(frozen=True, slots=True)
class Cached:
    """The number of lines that `asked` jobs read through the cache, and `computed` of them from the table."""

    asked: int
    computed: int
    lines: frozenset[int]


@dataclass(frozen=True, slots=True)
class Module:
    """A parsed file."""

    path: str
    lines: int
    functions: int
    classes: int


@dataclass(frozen=True, slots=True)
class Report:
    """All that the demo has to show.

    The second account is from after the redrive; what was cached is from before the report was built and from after.
    """

    account: Account
    speed: Speed
    kill: Kill
    latency: Latency
    ticks: Ticks
    groups: Sequence[DeadGroup]
    redrive: Redrive | None
    after: Account
    totals: Totals
    trail: Trail
    sums: Sums
    before: Cached
    cached: Cached
    largest: Sequence[Module]
    seconds: float

    @property
    def balanced(self) -> bool:
        """Whether nothing was lost or counted twice, the report built once, and nothing old read after that."""
        counted = self.totals.equal and self.totals.rebuilt and self.totals.events == self.after.finished
        once = self.sums.built == 1 and self.fresh
        return self.account.balanced and self.after.balanced and counted and self.trail.as_of and once

    @property
    def fresh(self) -> bool:
        """Whether each time one job computed what is cached, and all read what was true."""
        reads = (self.before, 0), (self.cached, self.sums.lines)
        return all(read.computed == 1 and read.lines == {lines} for read, lines in reads)


def account(files: Sequence[Path], jobs: Sequence[Job]) -> Account:
    """Compare the files with what became of their jobs."""
    ended = Counter(job.args["path"] for job in jobs if job.state in ("succeeded", "dead"))
    finished = sum(job.state == "succeeded" for job in jobs)
    dead = sum(job.state == "dead" for job in jobs)
    balanced = ended == Counter(map(str, files)) and finished + dead == len(files) == len(jobs)
    return Account(len(files), finished, dead, balanced)


def speed(jobs: Sequence[Job]) -> Speed:
    """Measure the jobs that were not rescued."""
    smooth = [job for job in jobs if not job.crashes]
    starts = [job.started_at for job in smooth if job.started_at is not None]
    ends = [job.finished_at for job in smooth if job.finished_at is not None]
    return Speed(len(smooth), (max(ends) - min(starts)).total_seconds() if starts and ends else 0.0)


def kill(pid: int, at: datetime, jobs: Sequence[Job], rescues: Sequence[datetime], folder: Path) -> Kill:
    """Measure what became of the jobs that the killed process held.

    Args:
        pid: the process.
        at: when it was killed.
        jobs: all jobs, each run to its end.
        rescues: when jobs came back into line.
        folder: the journals of what was started.
    """
    rescued = [job for job in jobs if job.crashes]
    # A dead job does not keep when it was started; its end is milliseconds later.
    again = [job.started_at or job.finished_at or at for job in rescued]
    twice = sum(times > 1 for times in Counter(_started(folder)).values())
    back, last = max(rescues, default=at) - at, max(again, default=at) - at
    return Kill(pid, len(rescued), back.total_seconds(), last.total_seconds(), twice)


def _started(folder: Path) -> Iterator[str]:
    for journal in folder.glob("*.started"):
        yield from journal.read_text().splitlines()


def latency(jobs: Sequence[Job]) -> Latency:
    """Measure the probes, on the database's clock."""
    delays = sorted(
        (job.started_at - job.created_at).total_seconds() for job in jobs if job.started_at and job.created_at
    )
    return Latency(len(delays), delays[len(delays) // 2], delays[int(len(delays) * 0.99)])


def largest(parsed: Iterable[Event], root: Path, most: int = 10) -> list[Module]:
    """Return the files with most lines."""
    modules = [Module(**event.data | {"path": _short(Path(event.data["path"]), root)}) for event in parsed]
    return sorted(modules, key=lambda module: -module.lines)[:most]


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path.name)
