"""Every error this library raises on purpose, one tree under :class:`PgEverythingError`."""

from __future__ import annotations


class PgEverythingError(Exception):
    """The root of the tree: ``except PgEverythingError`` catches all of them and nothing else."""


class InvalidArgument(PgEverythingError, ValueError):
    """An argument was refused before any SQL was sent. The message names the argument and the fix."""


class ConfigurationError(PgEverythingError):
    """No database could be found or chosen, or an option contradicts another."""


class LocalServerError(PgEverythingError):
    """The private local server could not be initialised, started or stopped."""


class SchemaError(PgEverythingError):
    """The database schema and this library do not fit together."""


class NotMigrated(SchemaError):
    """The schema does not exist in this database, or is older than this library."""


class SchemaTooNew(SchemaError):
    """The schema was migrated by a newer release of this library."""


class TaskError(PgEverythingError):
    """Something is wrong with a task, its registration or its arguments."""


class UnknownTask(TaskError, LookupError):
    """No task of that name is registered in this process."""


class InvalidTaskArguments(TaskError, TypeError):
    """The arguments do not fit the task's own signature, or are not JSON."""


class JobError(PgEverythingError):
    """The job cannot do what was asked of it."""


class JobNotFound(JobError, LookupError):
    """There is no job of that id, or retention has dropped it."""


class JobStateError(JobError):
    """The job is in a state that does not allow the operation."""


class DuplicateJob(JobError):
    """``on_duplicate="raise"`` and an unfinished job with this ``unique_key`` exists.

    Attributes:
        job_id: the id of the job that has the key.
    """

    def __init__(self, message: str, job_id: int) -> None:
        super().__init__(message)
        self.job_id = job_id


class QueueFull(JobError):
    """The queue is at its ``max_depth`` and says ``on_full="raise"``, or waiting for room took too long."""


class JobLost(JobError):
    """This worker no longer owns the job: it was rescued, cancelled or finished elsewhere. Its result is refused."""


class JobFailed(JobError):
    """``wait(...)`` was asked for a result and the job ended dead or cancelled."""


class WaitTimeout(PgEverythingError, TimeoutError):
    """What was waited for did not happen within ``timeout``."""
