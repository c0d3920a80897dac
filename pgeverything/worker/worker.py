"""One worker process: puts its parts together, works until it is told to stop, and loses nothing when it ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

import psycopg

from ..durations import Duration, seconds
from ..engine.carriers import AsyncPoolCarrier, AsyncPsycopgCarrier
from ..engine.listen import Listener
from ..engine.plan import Plan, Query, adrive, nothing
from ..engine.pool import new_async_pool
from ..engine.statements import statements
from ..errors import ConfigurationError, InvalidArgument
from ..jobs.values import check_name, check_whole
from ..maintenance import Sweeper
from ..pubsub.handlers import Handlers
from ..scheduler.code import Code
from ..tasks import Registry
from .consumer import Consumer
from .crew import Crew
from .execute import Executor
from .fetch import DATABASE_ERRORS, Fetcher
from .handle import Handling
from .hands import Hands
from .keeper import Keeper
from .lease import SHORTEST, Lease
from .stopping import until_signalled
from .ticker import Ticker
from .transactions import Transactions

SQL = statements("worker")


class Worker:
    """Runs jobs. Made by ``pg.worker(...)``.

    Args:
        tasks: what it can run.
        connect: returns where to connect to, as a libpq string.
        schema: the schema that holds our tables.
        verify: a plan that raises when the schema does not fit this library.
        bind: makes the bound facade of a handler's psycopg connection.
        abind: the same for an async one.
        code: the schedules that the application's code defines.
        handlers: what handles messages.
        queues: the queues it serves; by default those its tasks and its schedules name.
        concurrency: how many handlers run at once in this process.
        drain: how long running handlers may go on after a stop was asked for, before they are interrupted.
        poll: the longest sleep of an idle worker; by default 30 s where LISTEN works and 1 s where not.
        listen: whether to use LISTEN at all.
        retention: how long finished jobs are kept; dropped by whole days.
        lease: how long after its last heartbeat others take its jobs, at least 2 s; it sends three in that time.
        name: what it is called in lists; by default host:pid.
    """

    def __init__(
        self,
        tasks: Registry,
        connect: Callable[[], str],
        schema: str,
        verify: Callable[[str], Plan[None]],
        bind: Callable[[psycopg.Connection[Any]], Any],
        abind: Callable[[psycopg.AsyncConnection[Any]], Any],
        *,
        code: Code,
        handlers: Handlers,
        queues: Sequence[str] | None = None,
        concurrency: int = 10,
        drain: Duration = "30s",
        poll: Duration | None = None,
        listen: bool = True,
        retention: Duration = "7d",
        lease: Duration = "30s",
        name: str | None = None,
    ) -> None:
        if isinstance(queues, str):
            raise InvalidArgument(f"queues={queues!r} must be a list: queues=[{queues!r}]")
        if queues is not None and not queues:
            raise InvalidArgument("queues=[] serves nothing: name a queue, or leave it out for those of the tasks")
        for queue in queues or ():
            check_name(queue, "queues")
        if name is not None:
            check_name(name, "name")
        check_whole(concurrency, "concurrency", 1, 10_000)
        self._tasks, self._connect, self._schema, self._verify = tasks, connect, schema, verify
        self._bind, self._abind, self._code, self._handlers = bind, abind, code, handlers
        self._queues, self.concurrency, self._name = queues, concurrency, name
        self._drain = seconds(drain, "drain")
        self._poll = None if poll is None else seconds(poll, "poll", zero=False)
        self._listen = listen
        self._retention = seconds(retention, "retention", zero=False)
        self._lease_length = seconds(lease, "lease", zero=False)
        if self._lease_length < SHORTEST:
            raise InvalidArgument(f"lease={lease!r} must be at least {SHORTEST:g} s: a slow commit would lose it")

    @property
    def queues(self) -> list[str]:
        """The queues it serves."""
        if self._queues is not None:
            return list(self._queues)
        of_schedules = {definition.queue for definition in self._code.definitions.values()}
        return sorted({definition.options.queue for definition in self._tasks} | of_schedules) or ["default"]

    def run(self, until_idle: bool = False, ready: Callable[[], object] | None = None) -> None:
        """Work until SIGTERM or SIGINT, then drain; a second signal stops at once.

        Args:
            until_idle: return as soon as no job of its queues is ready, waiting, running or due; for scripts and tests.
                Schedules that are due when it starts enqueue their jobs first; those that are due later do not keep it.
            ready: called once, when the worker is registered and takes jobs; for whoever supervises this process.

        Raises:
            ConfigurationError: an event loop runs in this thread, as it does in a notebook: await `serve()` there.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            raise ConfigurationError("an event loop runs here already: `await worker.serve()` instead of worker.run()")
        asyncio.run(until_signalled(self.serve(until_idle, ready), self.stop))

    def stop(self) -> None:
        """Ask the worker to drain and end. Call it from the event loop it runs in."""
        self._stopping.set()

    async def serve(self, until_idle: bool = False, ready: Callable[[], object] | None = None) -> None:
        """Work inside a running event loop until `stop()`, or until idle.

        Cancelling this coroutine stops at once: running jobs are left for other workers to rescue.
        """
        self._stopping = asyncio.Event()
        conninfo = await asyncio.to_thread(self._connect)
        # Not through the pool, which would try for half a minute before it said that nobody answers.
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await adrive(AsyncPsycopgCarrier(connection, self._schema), self._verify(self._schema))
        lease = Lease(self.queues, self.concurrency, self._name, self._lease_length)
        transactions = Transactions(conninfo, self._schema, 2 * self.concurrency, self._bind, self._abind)
        executor = Executor(self._tasks, transactions, self.concurrency)
        async with new_async_pool(conninfo, "worker", least=2, most=4) as pool:
            self._carrier = AsyncPoolCarrier(pool, self._schema)
            listener = Listener(conninfo, self._schema, self._heard, self._notify)
            hands = Hands(self.concurrency)
            self._fetcher = Fetcher(
                self._carrier, lease, hands, self.queues, lambda: self._longest_sleep(listener), until_idle
            )
            handling = Handling(transactions, self.concurrency)
            self._consumer = self._consume(handling, lease.name, listener, until_idle)
            if self._consumer is not None:
                self._fetcher.beside = self._consumer.idle
                await self._consumer.begin()  # which may refuse: so before there is a worker
            await lease.begin(self._carrier)
            if ready is not None:
                ready()
            self._crew = Crew(self._carrier, lease, hands, self._fetcher, executor)
            keeper = Keeper(self._carrier, lease, hands, self._fetcher, self._crew.cancel)
            self._ticker = Ticker(self._carrier, self._code, lease, lambda: self._longest_doze(listener), self._ticked)
            sweeper = Sweeper(self._carrier, self._retention, self._lease_length)
            helping: tuple[Coroutine[Any, Any, None], ...] = (
                self._crew.acknowledger.run(),
                self._crew.write_progress(),
                keeper.beat(),
                keeper.watch(),
                sweeper.run(),
                self._ticker.run(),
            )
            if self._consumer is not None:
                consumer = self._consumer
                helping += (consumer.settle(), consumer.beat(), consumer.watch())
                helping += tuple(consumer.run() for _ in range(self.concurrency))
            try:
                await self._ticker.begin()
                await self._work(helping, listener)
                with contextlib.suppress(*DATABASE_ERRORS):
                    await lease.end(self._carrier)
                if self._consumer is not None:
                    await self._consumer.end()
            finally:
                executor.close()
                handling.close()
                await transactions.close()

    async def _work(self, helping: Iterable[Coroutine[Any, Any, None]], listener: Listener) -> None:
        """Work until it is over, then drain. A runner or a helper that ends is a defect, and ends the worker."""
        fetching = asyncio.create_task(self._fetcher.run())
        claiming = [asyncio.create_task(self._consumer.claim())] if self._consumer is not None else []
        stopping = asyncio.create_task(self._stopping.wait())
        runners = [asyncio.create_task(self._crew.run()) for _ in range(self.concurrency)]
        helpers = [asyncio.create_task(helper) for helper in helping]
        listening = [asyncio.create_task(listener.run())] if self._listen else []
        everything = [fetching, stopping, *claiming, *runners, *helpers, *listening]
        try:
            # Raise what ended it, and do not leave a worker that only looks alive.
            working = [fetching, stopping, *claiming, *runners, *helpers]
            done, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._fetcher.stop()
            if self._consumer is not None:
                self._consumer.stop()
            await asyncio.wait([fetching, *claiming])
            drained = [self._crew.drain(self._drain)]
            if self._consumer is not None:
                drained.append(self._consumer.drain(self._drain))
            await asyncio.gather(*drained)
        finally:
            self._crew.end()
            if self._consumer is not None:
                self._consumer.end_runners()
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    def _consume(self, handling: Handling, name: str, listener: Listener, until_idle: bool) -> Consumer | None:
        """Return what consumes subscriptions, where there are handlers for any."""
        if not len(self._handlers):
            return None
        return Consumer(
            self._carrier,
            list(self._handlers),
            handling,
            concurrency=self.concurrency,
            lease=self._lease_length,
            name=name,
            poll=self._poll,
            hinted=lambda: listener.works,
            until_idle=until_idle,
        )

    # Hints -----------------------------------------------------------------------------------------------------------

    def _heard(self, payload: str) -> None:
        kind, _, what = payload.partition(" ")
        if kind == "cancel" and what.isdecimal():
            self._crew.cancel(int(what))
        elif kind == "" or (kind == "queue" and what in self.queues):
            self._fetcher.wake()
        if payload in {"", "\tcron:"}:
            self._ticker.wake()
        if payload in {"", "\tevents:"} and self._consumer is not None:
            self._consumer.wake()

    def _ticked(self, queues: frozenset[str]) -> None:
        if not queues.isdisjoint(self.queues):
            self._fetcher.wake()

    async def _notify(self, payload: str) -> None:
        await self._carrier.execute(Query(SQL["notify"], {"payload": payload}, nothing))

    def _longest_sleep(self, listener: Listener) -> float:
        if self._poll is not None:
            return self._poll
        return 30.0 if listener.works else 1.0

    def _longest_doze(self, listener: Listener) -> float:
        """How long to go without a look at the schedules: they change seldom, and who adds one that is due says so."""
        return 60.0 if self._poll is None and listener.works else self._longest_sleep(listener)
