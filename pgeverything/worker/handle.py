"""Runs the handler of one message: `async def` on the event loop, `def` in a thread, in a transaction if asked."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ..durations import Duration, seconds
from ..engine.refusals import unreachable
from ..errors import MessageLost
from ..failures import Failure
from ..pubsub import transaction
from ..pubsub.handlers import Handler
from ..pubsub.subscriber import fields
from ..pubsub.values import AsyncMessage, Held, Message
from ..signals import Cancel, Reject, Snooze
from .calls import in_thread, ran, unasked
from .transactions import Transactions

log = logging.getLogger("pgeverything.worker")

_EVER = 2**31


@dataclass(frozen=True, slots=True)
class Back:
    """The message is to be put back.

    `reason` when it is dead at once, `failed` whether that counts as a failure, `begun` whether it does as a delivery.
    """

    delay: float
    failed: bool = True
    begun: bool = True
    reason: str | None = None
    failure: Failure | None = None


class Done:
    """The message is to be acknowledged."""


class Over:
    """Nothing is to be done: it was acknowledged in its transaction."""


class Gone:
    """It is not ours any more."""


Ending = Back | Done | Over | Gone


class _Nacked(Exception):
    """The handler said `nack`."""

    def __init__(self, delay: float | None) -> None:
        self.delay = delay


class _Verdict:
    """What a handler says of its message: counts when it returns."""

    def __init__(self) -> None:
        self.nacked: _Nacked | None = None

    def settle(self, done: bool, delay: Duration | None) -> None:
        self.nacked = None if done else _Nacked(None if delay is None else seconds(delay, "delay"))

    async def asettle(self, done: bool, delay: Duration | None) -> None:
        self.settle(done, delay)

    def check(self) -> None:
        if self.nacked is not None:
            raise self.nacked


class Handling:
    """Turns a message into how it ended. Never raises what a handler raises.

    Args:
        transactions: where transactional handlers get theirs.
        threads: how many `def` handlers may run at once.
    """

    def __init__(self, transactions: Transactions, threads: int) -> None:
        self._transactions = transactions
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pgeverything messages")
        self._running: dict[int, asyncio.Task[Any]] = {}
        self._interrupted: set[int] = set()

    async def run(self, handler: Handler, held: Held) -> Ending:
        """Handle a message."""
        held.ends_itself = handler.transactional
        try:
            if handler.is_async:
                await self._on_loop(handler, held)
            else:
                await in_thread(self._threads, self._in_thread, handler, held)
        except (KeyboardInterrupt, GeneratorExit):  # said to the process, not by the handler
            raise
        except BaseException as error:
            if isinstance(error, asyncio.CancelledError) and id(held) not in self._interrupted:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise  # the worker itself ends
            return self._raised(handler, held, error)
        finally:
            self._interrupted.discard(id(held))
        return Over() if handler.transactional else Done()

    async def _on_loop(self, handler: Handler, held: Held) -> None:
        task = asyncio.create_task(self._awaited(handler, held))
        self._running[id(held)] = task
        try:
            await task
        finally:
            del self._running[id(held)]

    async def _awaited(self, handler: Handler, held: Held) -> None:
        verdict = _Verdict()
        message = AsyncMessage(*fields(held.event), held.delivery, held, verdict.asettle)
        if not handler.transactional:
            ran(await handler.function(message), handler.name)
            verdict.check()
            return
        async with self._transactions.aending(lambda: transaction.end(held)) as tx:
            handling = handler.function(message, tx) if handler.takes_transaction else handler.function(message)
            ran(await handling, handler.name)
            verdict.check()

    def _in_thread(self, handler: Handler, held: Held) -> None:
        verdict = _Verdict()
        message = Message(*fields(held.event), held.delivery, held, verdict.settle)
        if not handler.transactional:
            ran(handler.function(message), handler.name)
            verdict.check()
            return
        with self._transactions.ending(lambda: transaction.end(held)) as tx:
            done = handler.function(message, tx) if handler.takes_transaction else handler.function(message)
            ran(done, handler.name)
            verdict.check()

    def _raised(self, handler: Handler, held: Held, error: BaseException) -> Ending:
        if isinstance(error, MessageLost) or held.lost:
            log.warning("message %s of %r was lost while it was handled: %s", held.position, handler.name, error)
            return Gone()
        if isinstance(error, _Nacked):
            delay = error.delay if error.delay is not None else self._delay(handler, held, error)
            return Back(delay or 0.0)
        if isinstance(error, Snooze):
            return Back(error.seconds, failed=False)
        if isinstance(error, Cancel):
            return Done()
        if isinstance(error, asyncio.CancelledError):
            if id(held) in self._interrupted:
                return Back(0.0, failed=False, begun=False)
            unasked(error)
        failure = Failure.of(error, handler.name)
        if isinstance(error, Reject):
            return Back(0.0, reason=f"rejected: {error.reason}", failure=failure)
        delay = self._delay(handler, held, error)
        if handler.transactional and isinstance(error, Exception) and unreachable(error):
            return Back(delay or 0.0, failed=False, failure=failure)  # its transaction was lost with the database
        log.info(
            "message %s of %r failed at delivery %s: %s: %s",
            held.position,
            handler.name,
            held.delivery,
            failure.type,
            failure.message,
        )
        return Back(delay or 0.0, reason=None if delay is not None else "given up by its retry policy", failure=failure)

    def _delay(self, handler: Handler, held: Held, error: BaseException) -> float | None:
        return handler.retry.next_delay(held.delivery, error, _EVER)

    def interrupt(self, held: Held) -> None:
        """Cancel a handler that is asynchronous; a thread cannot be stopped."""
        if (task := self._running.get(id(held))) is not None:
            self._interrupted.add(id(held))
            task.cancel()

    def close(self) -> None:
        """Take no more messages; threads that still run are left to end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
