"""What the workers did, and whether they were allowed to: pure functions over what was written down."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Effect:
    """A line of the journal. `number` is the test's own name for the job, `worker` the lease it was claimed under."""

    kind: str
    number: int
    job: int
    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class Step:
    """A row of the `history` table: a job of an ordering key begins or ends."""

    key: str
    number: int
    event: str
    pid: int


def read_journal(path: Path) -> list[Effect]:
    """Return the journal's lines, in the order in which they were written."""
    if not path.exists():
        return []
    fields = (line.split() for line in path.read_text().splitlines())
    return [Effect(kind, int(number), int(job), int(worker), int(pid)) for kind, number, job, worker, pid in fields]


def lost(expected: Iterable[int], effects: Iterable[int]) -> list[int]:
    """Return the numbers that had no effect."""
    return sorted(set(expected) - set(effects))


def unexplained_doubles(effects: Iterable[Effect], rescued: Mapping[int, Sequence[int]]) -> dict[int, list[Effect]]:
    """Return the jobs that had more effects than rescues explain.

    An effect that was not acknowledged is one by a worker from which the job was taken afterwards. Any other effect
    ends its job, so a job has at most one of those.

    Args:
        effects: what happened.
        rescued: for each job, the workers from which it was taken.
    """
    by_job: dict[int, list[Effect]] = defaultdict(list)
    for effect in effects:
        if effect.kind == "effect":
            by_job[effect.job].append(effect)
    return {
        job: found
        for job, found in by_job.items()
        if sum(effect.worker not in rescued.get(job, ()) for effect in found) > 1
        or any(count > 1 for count in Counter(effect.worker for effect in found).values())
    }


def disorder(steps: Iterable[Step]) -> list[str]:
    """Say where jobs of one key overlapped or left their order.

    A job may begin again when the one that had begun before it is the same: its worker died. Nothing else may come
    between a begin and its end, and numbers grow.
    """
    problems = []
    open_jobs: dict[str, Step] = {}
    ended: dict[str, int] = {}
    for step in steps:
        running = open_jobs.get(step.key)
        if step.event == "begin":
            if running is not None and running.number != step.number:
                problems.append(f"{step} began while {running} was running")
            # An end that was written and not acknowledged makes its job begin again, and no other.
            if step.number < ended.get(step.key, -1):
                problems.append(f"{step} began after {ended[step.key]} had ended")
            open_jobs[step.key] = step
        else:
            if running is None or running.number != step.number:
                problems.append(f"{step} ended while {running} was running")
            open_jobs.pop(step.key, None)
            ended[step.key] = step.number
    return problems
