"""Runs one claimed job: `async def` handlers on the event loop, `def` handlers in threads."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ..engine import codec
from ..failures import Failure
from ..jobs.values import Job
from ..tasks import Definition, Registry
from .calls import calm, in_thread, on_loop, ran, unasked
from .claimed import Claimed
from .context import JobContext
from .outcome import Ended, Failed, Outcome, raised, returned
from .transactions import Transactions

log = logging.getLogger("pgeverything.worker")

T = TypeVar("T")


class Executor:
    """Turns a claimed job into its outcome. Never raises what a handler raises."""

    def __init__(self, tasks: Registry, transactions: Transactions, threads: int) -> None:
        self._tasks, self._transactions = tasks, transactions
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pgeverything")
        # Whether the worker ends. What cancels a runner before that is a handler's business: an `async def` one runs in
        # the runner's own task, and may cancel that, even when it is over (a timer that it left behind).
        self.ending = False

    async def undisturbed(self, wait: Callable[[], Awaitable[T]]) -> T:
        """Wait for something until the worker ends, whatever else cancels the runner meanwhile."""
        while True:
            try:
                return await wait()
            except asyncio.CancelledError:
                if self.ending:
                    raise
                await calm()

    async def run(self, claimed: Claimed) -> Outcome | None:
        """Run the job to its outcome; None when the handler's own transaction has ended it already."""
        if claimed.cancelled:
            return Ended(claimed, "cancelled")
        if claimed.expired:
            return Failed(claimed, None, "expired before it started", counts=False)
        definition = self._tasks.get(claimed.task)
        if definition is None:
            return Failed(claimed, None, f"unknown task: no worker here has {claimed.task!r} registered", counts=False)
        arguments = definition.arguments
        context = None if arguments.context is None else JobContext(claimed, _job, self._transactions)
        try:
            args, kwargs = arguments.call_args(claimed.args, context)
        except Exception as error:  # also what a class of the caller's raises when one is made of JSON
            failure = Failure.of(error, claimed.task)
            return Failed(claimed, None, "its arguments do not fit the task any more", failure, counts=False)
        timeout = claimed.timeout if claimed.timeout is not None else definition.timeout
        try:
            if not definition.is_async:
                result = await self._in_thread(definition, args, kwargs, timeout, claimed)
            elif timeout is None:
                claimed.runner = asyncio.current_task()
                result = await on_loop(definition.function(*args, **kwargs))
            else:
                result = await self._within(timeout, definition, args, kwargs, claimed)
            ran(result, claimed.task)
        except asyncio.CancelledError as error:
            return self._interrupted(claimed, error, definition)
        except (KeyboardInterrupt, GeneratorExit):  # said to the process, not by the handler
            raise
        except BaseException as error:  # SystemExit, a panic of an extension: a failure, not the end of the worker
            if claimed.completed:
                log.exception("job %s (%s) raised after its transaction had completed it", claimed.job, claimed.task)
                return None
            return raised(claimed, error, definition.retry)
        finally:
            claimed.runner = None
            await calm()
        return None if claimed.completed else returned(claimed, result)

    def _interrupted(self, claimed: Claimed, error: asyncio.CancelledError, definition: Definition) -> Outcome | None:
        """Tell why a handler was cancelled; the end of the worker itself goes on upwards."""
        if self.ending:
            raise error
        if claimed.completed or claimed.lost:
            return None
        if not claimed.interrupts:  # it did that itself, or let through that something it awaited was cancelled
            return raised(claimed, unasked(error), definition.retry)
        if claimed.cancelled:
            return Ended(claimed, "cancelled")
        return Failed(claimed, 0.0, counts=False)  # back into line: the attempt was not the job's fault

    async def _within(
        self,
        timeout: float,
        definition: Definition,
        args: list[Any],
        kwargs: dict[str, Any],
        claimed: Claimed,
    ) -> Any:
        limit = asyncio.timeout(timeout)
        try:
            async with limit:
                claimed.runner = asyncio.current_task()
                return await on_loop(definition.function(*args, **kwargs))
        except (TimeoutError, asyncio.CancelledError) as error:  # the latter when it had cancelled itself before
            if limit.expired() and not claimed.interrupts and not self.ending:
                raise _timed_out(timeout) from error
            raise

    async def _in_thread(
        self,
        definition: Definition,
        args: list[Any],
        kwargs: dict[str, Any],
        timeout: float | None,
        claimed: Claimed,
    ) -> Any:
        future = in_thread(self._threads, definition.function, *args, **kwargs)
        done, _ = await self.undisturbed(lambda: asyncio.wait({future}, timeout=timeout))
        if not done:
            # A thread cannot be stopped. Its job fails now; its slot stays taken until the thread has ended, so that
            # handlers that hang show as missing capacity and not as more and more threads.
            claimed.interrupt()
            claimed.thread = future
            raise _timed_out(timeout or 0.0)
        return future.result()

    def close(self) -> None:
        """Take no more jobs; threads that still run are left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _timed_out(timeout: float) -> TimeoutError:
    return TimeoutError(f"the attempt took longer than its timeout of {timeout:g} s")


def _job(claimed: Claimed) -> Job:
    """Return the job as its handler sees it."""
    return Job(
        id=claimed.job,
        queue=claimed.queue,
        task=claimed.task,
        state="running",
        priority=claimed.priority,
        args=codec.decode(claimed.args),
        headers=codec.decode(claimed.headers) if claimed.headers else {},
        ordering_key=claimed.ordering_key,
        unique_key=claimed.unique_key,
        max_attempts=claimed.max_attempts,
        timeout=claimed.timeout,
        created_at=claimed.created_at,
        attempt=claimed.attempt,
        crashes=claimed.crashes,
        worker=claimed.worker,
    )
