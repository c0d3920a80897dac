"""What both kinds of application share: the schema, the tasks and the worker."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from ..durations import Duration
from ..engine.carriers import AsyncPsycopgCarrier, PsycopgCarrier
from ..errors import InvalidArgument, TaskError
from ..pubsub.handlers import Handlers
from ..pubsub.values import AsyncMessage, Message, OnDead, Start
from ..retry import Retry
from ..scheduler.code import Code, TaskLike, origin
from ..scheduler.definitions import define
from ..scheduler.values import Misfire, Overlap
from ..schema import migrate as migrations
from ..tasks import Registry
from ..worker.worker import Worker
from .bound import AsyncBound, Bound

T = TypeVar("T", bound=TaskLike)
H = TypeVar(
    "H",
    bound=Callable[[Message], object]
    | Callable[[Message, Bound], object]
    | Callable[[AsyncMessage], object]
    | Callable[[AsyncMessage, AsyncBound], object],
)


class Application:
    """A database, a schema, and the tasks that are registered here."""

    def __init__(self, database: Any) -> None:
        self._database = database
        self.schema: str = database.schema
        self.tasks = Registry()
        self.code = Code(origin(), self.tasks)
        self.handlers = Handlers()

    def worker(
        self,
        *,
        queues: Sequence[str] | None = None,
        concurrency: int = 10,
        drain: Duration = "30s",
        poll: Duration | None = None,
        listen: bool = True,
        retention: Duration = "7d",
        lease: Duration = "30s",
        name: str | None = None,
    ) -> Worker:
        """Return a worker for this application's tasks; call its `run()`, or await its `serve()`.

        Args:
            queues: the queues it serves; by default those that the tasks name.
            concurrency: how many handlers run at once in this process.
            drain: how long running handlers may go on after SIGTERM before they are interrupted.
            poll: the longest sleep of an idle worker; by default 30 s where LISTEN works and 1 s where it does not.
            listen: False for a connection through a transaction pooler, to spare the self-test.
            retention: how long finished jobs are kept; they are dropped by whole days.
            lease: how long after its last heartbeat the others take this worker's jobs, at least 2 s. A killed worker's
                jobs move on after it; handlers that hold the event loop or the GIL for a third of it put it at risk.
            name: what lists call it; by default host:pid.
        """
        return Worker(
            self.tasks,
            self._database.conninfo,
            self.schema,
            migrations.verify,
            lambda connection: Bound(PsycopgCarrier(connection, self.schema), connection, self.code),
            lambda connection: AsyncBound(AsyncPsycopgCarrier(connection, self.schema), connection, self.code),
            code=self.code,
            handlers=self.handlers,
            queues=queues,
            concurrency=concurrency,
            drain=drain,
            poll=poll,
            listen=listen,
            retention=retention,
            lease=lease,
            name=name,
        )

    def cron(
        self,
        cron: str | None = None,
        *,
        every: Duration | None = None,
        name: str | None = None,
        args: Mapping[str, Any] | None = None,
        seconds: bool = False,
        timezone: str = "UTC",
        misfire: Misfire = "once",
        grace: Duration | None = None,
        catch_up: int = 100,
        overlap: Overlap = "allow",
        jitter: Duration = 0,
        queue: str | None = None,
        priority: int | None = None,
        start_at: datetime | None = None,
        end_at: datetime | None = None,
        remaining: int | None = None,
    ) -> Callable[[T], T]:
        """Enqueue a task at set times: stands above `@pg.task()`, several times if need be.

        The schedule is in the database as soon as a worker with this code has started. It is changed when the code is,
        and disabled when no worker's code has it any more; see `pg.scheduler.add` for the arguments.

        Args:
            cron: a cron expression, or
            every: an interval.
            name: what the schedule is called; by default as the task.
            args: the handler's parameters by name, as JSON values, where it has any without a default.
            seconds: whether the expression has six fields, the first of which is the second.
            timezone: the zone of the clock that `cron` speaks of.
            misfire: what becomes of ticks that are too late: "once", "all" or "skip".
            grace: how late is too late.
            catch_up: how many overdue ticks one pass runs at most.
            overlap: what becomes of a tick while the last job has not ended: "allow", "skip" or "queue".
            jitter: spreads starts over so long a time.
            queue: the jobs' queue; by default the task's own.
            priority: the jobs' priority; by default the task's own.
            start_at: no ticks before.
            end_at: no ticks after.
            remaining: how many jobs to enqueue at most.

        Raises:
            InvalidArgument: an argument is refused.
            InvalidTaskArguments: the task does not take these arguments.
            TaskError: it stands on something that is not a task, or there is another schedule of that name.
        """
        if cron is not None and not isinstance(cron, str):  # `@pg.cron` with nothing said would define nothing
            raise InvalidArgument(f'@pg.cron({cron!r}) must say when: @pg.cron("0 7 * * *") or @pg.cron(every="5m")')

        def decorate(task: T) -> T:
            if not hasattr(task, "definition"):
                raise TaskError("@pg.cron(...) stands above @pg.task(), not below it and not on a plain function")
            task_name, text, options = self.code.job(task, args)
            self.code.define(
                define(
                    task_name if name is None else name,
                    task_name,
                    text,
                    queue=options.queue if queue is None else queue,
                    priority=options.priority if priority is None else priority,
                    cron=cron,
                    every=every,
                    seconds=seconds,
                    timezone=timezone,
                    misfire=misfire,
                    grace=grace,
                    catch_up=catch_up,
                    overlap=overlap,
                    jitter=jitter,
                    start_at=start_at,
                    end_at=end_at,
                    remaining=remaining,
                )
            )
            return task

        return decorate

    def subscriber(
        self,
        pattern: str,
        *,
        name: str | None = None,
        max_deliveries: int = 5,
        on_dead: OnDead = "skip",
        ordered: bool = True,
        transactional: bool = False,
        start: Start = "latest",
        retry: Retry | None = None,
        max_in_flight: int = 1000,
    ) -> Callable[[H], H]:
        """Have workers call a function with each message of a durable subscription.

        A `def` runs in a thread and gets a :class:`Message`, an `async def` on the event loop and gets an
        :class:`AsyncMessage`. When it returns, the message is acknowledged; when it raises, it is delivered again
        later. `message.nack(delay)` says that without raising. `raise Snooze(...)` puts it off without counting, `raise
        Reject(...)` makes it dead at once, `raise Cancel(...)` ends it.

        The subscription is created by the first worker that starts with this code. All workers share it.

        Args:
            pattern: a topic, or a pattern: `*` is one token, `>` the rest.
            name: of the subscription; by default the function's.
            max_deliveries: after how many failed deliveries a message is dead.
            on_dead: "skip" goes on after a dead message, "hold" holds back those of its key until it is redriven or
                discarded, "stop" stops the subscription until `pg.pubsub.resume`.
            ordered: whether messages of one topic and key are handled one after the other, in all workers together.
            transactional: whether the function runs in a transaction that acknowledges the message too: what it writes
                happens exactly once. It takes a second argument then, the bound facade: `.connection` for your own SQL,
                `.jobs`, `.events` and the rest as in `pg.transaction()`.
            start: where the subscription begins when it is created: "latest", "earliest", a position or a datetime.
            retry: how long to wait before the next delivery; by default from a second up to an hour, with jitter. It
                may give up earlier than `max_deliveries`, by exception.
            max_in_flight: how many messages one worker holds at once.

        Raises:
            InvalidArgument: an argument is refused.
            TaskError: the function does not take a message.
            SubscriptionError: another function handles the subscription.
        """

        def decorate(function: H) -> H:
            self.handlers.add(
                function,
                pattern,
                name=name,
                start=start,
                max_deliveries=max_deliveries,
                on_dead=on_dead,
                ordered=ordered,
                transactional=transactional,
                retry=retry,
                max_in_flight=max_in_flight,
            )
            return function

        return decorate
