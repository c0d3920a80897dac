"""One worker process: fetches, runs, acknowledges, keeps its lease, sweeps; and stops without losing anything."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from ..durations import Duration, seconds
from ..engine.carriers import AsyncPoolCarrier, AsyncPsycopgCarrier
from ..engine.listen import Listener
from ..engine.plan import Plan, Query, adrive, nothing
from ..engine.pool import new_async_pool
from ..engine.statements import statements
from ..errors import InvalidArgument
from ..jobs.values import check_name, check_whole
from ..maintenance import Sweeper
from ..tasks import Registry
from .acknowledge import Acknowledger
from .claimed import Claimed
from .execute import Executor
from .fetch import DATABASE_ERRORS, Fetcher
from .hands import Hands
from .lease import SHORTEST, Lease
from .outcome import Outcome
from .transactions import Transactions

log = logging.getLogger("pgeverything.worker")
SQL = statements("worker")

_SUSPICION = 15.0  # seconds for which a broken connection's last statement may still be at work in the server


class Worker:
    """Runs jobs. Made by ``pg.worker(...)``.

    Args:
        tasks: what it can run.
        connect: returns where to connect to, as a libpq string.
        schema: the schema that holds our tables.
        verify: a plan that raises when the schema does not fit this library.
        bind: makes the bound facade of a handler's psycopg connection.
        abind: the same for an async one.
        queues: the queues it serves; by default those its tasks name.
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
        self._bind, self._abind = bind, abind
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
        return sorted({definition.options.queue for definition in self._tasks}) or ["default"]

    def run(self, until_idle: bool = False, ready: Callable[[], object] | None = None) -> None:
        """Work until SIGTERM or SIGINT, then drain; a second signal stops at once.

        Args:
            until_idle: return as soon as no job of its queues is ready, waiting, running or due; for scripts and tests.
            ready: called once, when the worker is registered and takes jobs; for whoever supervises this process.
        """
        asyncio.run(self._run_with_signals(until_idle, ready))

    async def _run_with_signals(self, until_idle: bool, ready: Callable[[], object] | None) -> None:
        loop, serving = asyncio.get_running_loop(), asyncio.create_task(self.serve(until_idle, ready))

        def on_signal(number: int) -> None:
            if self._stopping.is_set():
                log.warning("second signal: stopping at once; what runs is rescued by other workers")
                signal.signal(number, signal.SIG_DFL)  # not sys.exit, which would wait for the handlers' threads
                signal.raise_signal(signal.Signals(number))
            else:
                log.info("%s: claiming nothing more, finishing what runs", signal.Signals(number).name)
                self.stop()

        before = {}
        if threading.current_thread() is threading.main_thread():  # nobody sends signals to another
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.getsignal(number)
                loop.add_signal_handler(number, on_signal, number)
        try:
            await serving
        finally:
            for number, handler in before.items():
                loop.remove_signal_handler(number)
                if handler is not None:  # None: not one of Python's
                    signal.signal(number, handler)  # the loop leaves the default behind, not the program's own

    def stop(self) -> None:
        """Ask the worker to drain and end. Call it from the event loop it runs in."""
        self._stopping.set()

    async def serve(self, until_idle: bool = False, ready: Callable[[], object] | None = None) -> None:
        """Work inside a running event loop until `stop()`, or until idle.

        Cancelling this coroutine stops at once: running jobs are left for other workers to rescue.
        """
        self._stopping = asyncio.Event()
        conninfo = await asyncio.to_thread(self._connect)
        self._hands = Hands(self.concurrency)
        self._lease = Lease(self.queues, self.concurrency, self._name, self._lease_length)
        transactions = Transactions(conninfo, self._schema, self.concurrency, self._bind, self._abind)
        self._executor = Executor(self._tasks, transactions, self.concurrency)
        # Not through the pool, which would try for half a minute before it said that nobody answers.
        async with await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection:
            await adrive(AsyncPsycopgCarrier(connection, self._schema), self._verify(self._schema))
        async with new_async_pool(conninfo, "worker", least=2, most=4) as pool:
            self._carrier = AsyncPoolCarrier(pool, self._schema)
            await self._lease.begin(self._carrier)
            if ready is not None:
                ready()
            self._acknowledger = Acknowledger(self._carrier, self._lease, self._settled)
            listener = Listener(conninfo, self._schema, self._heard, self._notify)
            self._fetcher = Fetcher(
                self._carrier,
                self._lease,
                self._hands,
                self.queues,
                lambda: self._longest_sleep(listener),
                until_idle,
            )
            try:
                await self._work(listener)
            finally:
                self._executor.close()
                await transactions.close()

    async def _work(self, listener: Listener) -> None:
        fetching = asyncio.create_task(self._fetcher.run())
        stopping = asyncio.create_task(self._stopping.wait())
        runners = [asyncio.create_task(self._runner()) for _ in range(self.concurrency)]
        sweeper = Sweeper(self._carrier, self._retention, self._lease_length)
        helping = (
            self._acknowledger.run(),
            self._beat(),
            self._watch_lease(),
            self._write_progress(),
            sweeper.run(),
        )
        helpers = [asyncio.create_task(helper) for helper in helping]
        listening = [asyncio.create_task(listener.run())] if self._listen else []
        everything = [fetching, stopping, *runners, *helpers, *listening]
        try:
            # A runner or a helper that ends is a defect: raise it, and do not leave a worker that only looks alive.
            done, _ = await asyncio.wait([fetching, stopping, *runners, *helpers], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            self._fetcher.stop()
            await asyncio.wait([fetching])
            await self._drain_hands()
            await self._leave()
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)

    # Running ---------------------------------------------------------------------------------------------------------

    async def _runner(self) -> None:
        """Run one job after the other: one of `concurrency` such loops."""
        while True:
            claimed = await self._hands.next()
            began = time.monotonic()
            if not self._lease.trusted:  # frozen for too long: the job is somebody else's by now, or soon
                claimed.lost = True
                self._fetcher.suspect()
                outcome = None
            else:
                outcome = await self._executor.run(claimed)
            if outcome is None:
                self._hands.drop(claimed)
                self._lease.finished += claimed.completed
                if claimed.completed and claimed.ordering_key is not None:
                    self._fetcher.wake()  # its turn is in a note, which the fetcher passes on
            else:
                self._acknowledger.put(outcome)
            if claimed.thread is not None:
                await asyncio.wait({claimed.thread})
            self._hands.ran(time.monotonic() - began)

    def _settled(self, outcomes: Sequence[Outcome], freed: bool) -> None:
        self._hands.settled(outcomes)
        if freed:
            self._fetcher.wake()

    async def _drain_hands(self) -> None:
        """Give back what has not started, and wait until what has is over and acknowledged.

        After `drain` seconds `async def` handlers are cancelled and their jobs given back; `def` handlers are told, but
        a thread cannot be stopped: waiting for it is better than a second run beside it.
        """
        if unstarted := self._hands.unstarted():
            await self._give_back(unstarted)
        deadline = time.monotonic() + self._drain
        while self._hands.running or self._hands.held:
            if time.monotonic() > deadline:
                deadline = float("inf")
                log.warning(
                    "%s job(s) outlasted the drain of %g s: interrupting them",
                    self._hands.running,
                    self._drain,
                )
                for claimed in list(self._hands.held.values()):
                    claimed.interrupted = True
                    claimed.interrupt()
            await asyncio.sleep(0.01)

    async def _give_back(self, jobs: Sequence[Claimed]) -> None:
        params = {
            "worker": self._lease.worker,
            "jobs": [j.job for j in jobs],
            "tokens": [j.token for j in jobs],
        }
        with contextlib.suppress(*DATABASE_ERRORS):  # else they are rescued
            await self._carrier.execute(Query(SQL["give_back"], params, nothing))

    async def _leave(self) -> None:
        with contextlib.suppress(*DATABASE_ERRORS):
            await self._lease.end(self._carrier)

    # Lease -----------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        """Renew the lease; when it is lost or cannot be renewed in time, let go of everything and begin a new one."""
        rest = self._lease.heartbeat
        while True:
            await asyncio.sleep(rest)
            rest = self._lease.heartbeat
            try:
                cancelled = await self._lease.renew(self._carrier, self._hands.held)
                if cancelled is None:
                    self._let_go("another worker declared this one dead")
                    await self._lease.begin(self._carrier)
                    self._fetcher.begin_anew()
                    continue
                for job in cancelled:
                    self._cancel(job)
                if self._fetcher.suspected_at is not None:
                    await self._put_back_orphans(self._fetcher.suspected_at)
            except DATABASE_ERRORS as error:
                log.warning("could not send a heartbeat: %s", error)
                rest = min(1.0, rest)

    async def _watch_lease(self) -> None:
        """Let go in time: a heartbeat may hang in a dead connection for longer than the lease lasts."""
        while True:
            if self._lease.trusted:
                await asyncio.sleep(self._lease.left)
            else:
                self._let_go("no heartbeat got through for too long")
                await asyncio.sleep(0.1)

    def _let_go(self, why: str) -> None:
        if held := [claimed for claimed in self._hands.held.values() if not claimed.lost]:
            log.error("%s: letting go of %s job(s)", why, len(held))
        self._hands.unstarted()
        for claimed in held:
            claimed.lost = True
            claimed.interrupt()
        if held:
            self._fetcher.suspect()  # should the lease turn out to be ours still, they are ours and nobody runs them

    async def _put_back_orphans(self, suspected_at: float) -> None:
        """Put back the running jobs in our name that are not in our hands.

        No claim may be under way meanwhile. What is in our hands leaves them only after the database has said so, or
        when it is let go, which is a suspicion of its own.
        """
        async with self._fetcher.claiming:
            began = time.monotonic()
            params = {"worker": self._lease.worker, "jobs": list(self._hands.held)}
            rows = await self._carrier.execute(Query(SQL["orphans"], params, nothing))
        if began - suspected_at > _SUSPICION and self._fetcher.suspected_at == suspected_at:
            self._fetcher.suspected_at = None
        if rows[0][0]:
            log.warning("put back %s job(s) that were in this worker's name and not in its hands", rows[0][0])
            self._fetcher.wake()

    # Hints -----------------------------------------------------------------------------------------------------------

    def _heard(self, payload: str) -> None:
        kind, _, what = payload.partition(" ")
        if kind == "cancel" and what.isdecimal():
            self._cancel(int(what))
        elif kind == "" or (kind == "queue" and what in self.queues):
            self._fetcher.wake()

    def _cancel(self, job: int) -> None:
        if (claimed := self._hands.held.get(job)) is not None and not claimed.cancelled:
            log.info("job %s (%s) is to be cancelled", claimed.job, claimed.task)
            claimed.cancelled = True
            claimed.interrupt()

    async def _notify(self, payload: str) -> None:
        await self._carrier.execute(Query(SQL["notify"], {"payload": payload}, nothing))

    def _longest_sleep(self, listener: Listener) -> float:
        if self._poll is not None:
            return self._poll
        return 30.0 if listener.works else 1.0

    async def _write_progress(self) -> None:
        """Write what handlers said of their progress, once a second, all in one statement."""
        while True:
            await asyncio.sleep(1.0)
            changed = [claimed for claimed in self._hands.held.values() if claimed.progress_changed]
            if not changed:
                continue
            for claimed in changed:
                claimed.progress_changed = False
            params = {
                "worker": self._lease.worker,
                "jobs": [claimed.job for claimed in changed],
                "tokens": [claimed.token for claimed in changed],
                "progress": [claimed.progress for claimed in changed],
                "notes": [claimed.note for claimed in changed],
            }
            with contextlib.suppress(*DATABASE_ERRORS):  # progress is for show; the next one tells more
                await self._carrier.execute(Query(SQL["progress"], params, nothing))
