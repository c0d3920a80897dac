"""Runs one claimed job: `async def` handlers on the event loop, `def` handlers in threads."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ..engine import codec
from ..failures import Failure
from ..jobs.values import Job
from ..tasks import Definition, Registry
from .calls import in_thread, on_loop, ran
from .claimed import Claimed
from .context import JobContext
from .outcome import Ended, Failed, Outcome, raised, returned
from .transactions import Transactions

log = logging.getLogger("pgeverything.worker")


class Executor:
    """Turns a claimed job into its outcome. Never raises what a handler raises."""

    def __init__(self, tasks: Registry, transactions: Transactions, threads: int) -> None:
        self._tasks, self._transactions = tasks, transactions
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pgeverything")

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
            return _interrupted(claimed, error, definition)
        except (KeyboardInterrupt, GeneratorExit):  # said to the process, not by the handler
            raise
        except BaseException as error:  # SystemExit, a panic of an extension: a failure, not the end of the worker
            if claimed.completed:
                log.exception("job %s (%s) raised after its transaction had completed it", claimed.job, claimed.task)
                return None
            return raised(claimed, error, definition.retry)
        finally:
            claimed.runner = None
            _forget_interrupts(claimed)
        return None if claimed.completed else returned(claimed, result)

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
        except TimeoutError as error:
            if limit.expired():
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
        done, _ = await asyncio.wait({future}, timeout=timeout)
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


def _interrupted(claimed: Claimed, error: asyncio.CancelledError, definition: Definition) -> Outcome | None:
    """Tell why a handler was cancelled; the end of the worker itself goes on upwards."""
    runner = asyncio.current_task()
    asked = claimed.interrupts > 0
    if runner is None or runner.cancelling() > claimed.interrupts:
        raise error
    if claimed.completed or claimed.lost:
        return None
    if not asked:  # something else that the handler awaited was cancelled, and it let the error through
        return raised(claimed, error, definition.retry)
    if claimed.cancelled:
        return Ended(claimed, "cancelled")
    return Failed(claimed, 0.0, counts=False)  # back into line: the attempt was not the job's fault


def _forget_interrupts(claimed: Claimed) -> None:
    """Take back what was asked of this job's handler: the runner goes on to other jobs, which it must not touch."""
    runner = asyncio.current_task()
    while claimed.interrupts and runner is not None:
        claimed.interrupts -= 1
        runner.uncancel()


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
