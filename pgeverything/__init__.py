"""Job queue, event log, pub/sub, locks, cache, cron, audit trail and dead letters on the Postgres you already run."""

from .app import AsyncPgEverything, PgEverything
from .dead_letters import AsyncDeadLetters, DeadLetters
from .errors import (
    ConfigurationError,
    DuplicateJob,
    InvalidArgument,
    InvalidTaskArguments,
    JobError,
    JobFailed,
    JobLost,
    JobNotFound,
    JobStateError,
    LocalServerError,
    NotMigrated,
    PgEverythingError,
    QueueFull,
    SchemaError,
    SchemaTooNew,
    TaskError,
    UnknownTask,
    WaitTimeout,
)
from .jobs import AsyncJobQueue, Job, JobQueue
from .retry import Retry
from .signals import Cancel, Reject, Snooze
from .worker.context import JobContext

__all__ = [
    "AsyncDeadLetters",
    "AsyncJobQueue",
    "AsyncPgEverything",
    "Cancel",
    "ConfigurationError",
    "DeadLetters",
    "DuplicateJob",
    "InvalidArgument",
    "InvalidTaskArguments",
    "Job",
    "JobContext",
    "JobError",
    "JobFailed",
    "JobLost",
    "JobNotFound",
    "JobQueue",
    "JobStateError",
    "LocalServerError",
    "NotMigrated",
    "PgEverything",
    "PgEverythingError",
    "QueueFull",
    "Reject",
    "Retry",
    "SchemaError",
    "SchemaTooNew",
    "Snooze",
    "TaskError",
    "UnknownTask",
    "WaitTimeout",
]

__version__ = "0.1.0"
