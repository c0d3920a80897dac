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


class EventError(PgEverythingError):
    """The event log cannot do what was asked of it."""


class WrongVersion(EventError):
    """``expected_version`` is not the version that this topic and key have: somebody appended in between.

    The transaction stays usable. Read the newer events, decide again, and append with the version you then know.

    Attributes:
        expected: the version that was asked for.
        actual: the version there is.
    """

    def __init__(self, message: str, expected: int, actual: int) -> None:
        super().__init__(message)
        self.expected = expected
        self.actual = actual


class RetentionGap(EventError):
    """Retention has dropped events that the reader has not seen: positions ``lost_from`` to ``lost_to``.

    Attributes:
        lost_from: the first position that may have held one.
        lost_to: the last. Reading with ``after=lost_to`` goes on with what is left.
    """

    def __init__(self, message: str, lost_from: int, lost_to: int) -> None:
        super().__init__(message)
        self.lost_from = lost_from
        self.lost_to = lost_to


class UnsafeRead(EventError):
    """The log cannot be read here without losing events: in an isolation above READ COMMITTED, or on a standby."""


class SubscriptionError(EventError):
    """A subscription cannot do what was asked of it."""


class SubscriptionNotFound(SubscriptionError, LookupError):
    """There is no subscription of that name."""


class MessageLost(SubscriptionError):
    """This member does not hold the message any more: its lease ran out, or somebody moved the subscription.

    The acknowledgement was refused, and inside a transaction nothing is committed.
    """


class ScheduleNotFound(PgEverythingError, LookupError):
    """There is no schedule of that name."""


class CacheError(PgEverythingError):
    """The cache cannot do what was asked of it."""


class ComputeFailed(CacheError):
    """Computing this value failed a moment ago, and ``errors=`` says that it is not to be tried again yet."""


class AuditError(PgEverythingError):
    """The audit trail cannot do what was asked of it."""


class EntryNotFound(AuditError, LookupError):
    """There is no entry of that id in the trail, or retention has dropped it."""


class AuditGap(AuditError):
    """The trail does not reach back without a gap to the time that was asked for. The message says why."""


class CannotRevert(AuditError):
    """The change cannot be undone: the row has moved on, or the trail lacks the values. The message says which."""


class WaitTimeout(PgEverythingError, TimeoutError):
    """What was waited for did not happen within ``timeout``."""


class LockError(PgEverythingError):
    """A lock cannot do what was asked of it."""


class LockNotAcquired(LockError, TimeoutError):
    """Somebody else has the lock, and had it for as long as was waited. The message says who."""


class LeaseLost(LockError):
    """The lease is not ours any more: it ran out, somebody broke the lock, or it was released."""
