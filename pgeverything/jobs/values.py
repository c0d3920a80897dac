"""What a job, a queue and an enqueue's options are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

from ..durations import Duration, seconds
from ..engine import codec
from ..errors import InvalidArgument

State: TypeAlias = Literal["scheduled", "waiting", "ready", "running", "succeeded", "cancelled", "dead"]
OnDuplicate: TypeAlias = Literal["skip", "raise", "replace"]
OnFull: TypeAlias = Literal["raise", "wait", "drop"]

STATES: tuple[State, ...] = get_args(State)
ENDED: frozenset[State] = frozenset({"succeeded", "cancelled", "dead"})
MOST_BIGINT = 2**63 - 1
_YEARS = (1000, 9000)  # Python's end at 1 and 9999: room for time zones, and for the century of `expires`


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was when it was read.

    `attempt` counts the attempts that were used or are under way, `crashes` the workers that were lost while they ran
    it. `args`, `result` and `error` are JSON values; `timeout` is in seconds. `reason` says why it was cancelled or is
    dead. `duplicate` is True when an enqueue found this job instead of adding one. `origin` is the queue it died in,
    when a redrive sent it to another.
    """

    id: int
    queue: str
    task: str
    state: State
    priority: int = 0
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unique_key: str | None = None
    ordering_key: str | None = None
    max_attempts: int | None = None
    timeout: float | None = None
    expires_at: datetime | None = None
    created_at: datetime | None = None
    run_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    attempt: int = 0
    crashes: int = 0
    redriven: int = 0
    origin: str | None = None
    worker: int | None = None
    progress: float | None = None
    note: str | None = None
    reason: str | None = None
    fingerprint: str | None = None
    error: Mapping[str, Any] | None = None
    result: Any = None
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue's settings and how many unfinished jobs it holds. None means no limit."""

    name: str
    paused: bool
    max_depth: int | None
    on_full: OnFull
    concurrency: int | None
    per_key: int
    ready: int
    waiting: int
    scheduled: int
    running: int
    dead: int
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOptions:
    """Everything about an enqueue but the task and its arguments. Checked when it is made."""

    queue: str = "default"
    priority: int = 0
    delay: Duration | None = None
    run_at: datetime | None = None
    unique_key: str | None = None
    on_duplicate: OnDuplicate = "skip"
    ordering_key: str | None = None
    max_attempts: int | None = None
    timeout: Duration | None = None
    expires: Duration | None = None
    headers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_name(self.queue, "queue")
        check_whole(self.priority, "priority", -(2**31), 2**31 - 1)
        if self.delay is not None and self.run_at is not None:
            raise InvalidArgument("delay= and run_at= both say when the job is due: give one of them")
        if self.run_at is not None and (not isinstance(self.run_at, datetime) or self.run_at.tzinfo is None):
            raise InvalidArgument("run_at must be a datetime with a time zone, for example datetime.now(UTC)")
        if self.run_at is not None and not _YEARS[0] <= self.run_at.year <= _YEARS[1]:
            raise InvalidArgument(f"run_at={self.run_at} must be in the years {_YEARS[0]} to {_YEARS[1]}")
        for name in ("unique_key", "ordering_key"):
            if (key := getattr(self, name)) is not None:
                check_name(key, name, most=1024)
        if self.on_duplicate not in get_args(OnDuplicate):
            raise InvalidArgument(f"on_duplicate={self.on_duplicate!r} must be 'skip', 'raise' or 'replace'")
        if self.on_duplicate != "skip" and self.unique_key is None:
            raise InvalidArgument("on_duplicate= needs a unique_key=")
        if self.max_attempts is not None:
            check_whole(self.max_attempts, "max_attempts", 1, 2**31 - 1)
        if self.headers is not None and not (
            isinstance(self.headers, Mapping)
            and all(isinstance(k, str) and isinstance(v, str) for k, v in self.headers.items())
        ):
            raise InvalidArgument("headers must map strings to strings")
        self.params()

    def params(self) -> dict[str, object]:
        """Return the options as statement parameters."""
        return {
            "queue": self.queue,
            "priority": self.priority,
            "delay": None if self.delay is None else seconds(self.delay, "delay"),
            "run_at": self.run_at,
            "ordering_key": self.ordering_key,
            "max_attempts": self.max_attempts,
            "timeout": None if self.timeout is None else seconds(self.timeout, "timeout", zero=False),
            "expires": None if self.expires is None else seconds(self.expires, "expires", zero=False),
            "headers": codec.encode(self.headers, "headers") if self.headers else None,
        }


def check_name(value: object, name: str, most: int = 200) -> None:
    """Refuse what cannot be a queue, task or key: not text, empty, with NUL, or longer than `most` bytes."""
    text = value.encode("utf-8", "replace") if isinstance(value, str) else b""  # a lone surrogate becomes "?"
    if not 0 < len(text) <= most or text.decode() != value or "\0" in value:
        raise InvalidArgument(f"{name}={value!r} must be text of 1 to {most} bytes without NUL")


def check_filter(value: object, name: str) -> None:
    """Refuse what can be no queue's or task's name; None means any."""
    if value is not None:
        check_name(value, name)


def check_whole(value: object, name: str, least: int, most: int) -> None:
    """Refuse what is not a whole number within the bounds."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidArgument(f"{name}={value!r} must be a whole number from {least} to {most}")
