"""Consumes subscriptions in a worker: one poller for all of them, handlers side by side, acknowledgements together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from ..engine.plan import AsyncCarrier, Query, adrive, one
from ..engine.statements import statements
from ..errors import PgEverythingError, SubscriptionError, SubscriptionNotFound
from ..pubsub.handlers import Handler
from ..pubsub.manage import create, find
from ..pubsub.member import SUSPICION, Claim, Member, acknowledge, beat, check_state, put_back
from ..pubsub.pace import Pace
from ..pubsub.sources import insist
from ..pubsub.values import Held
from .fetch import DATABASE_ERRORS
from .handle import Back, Done, Ending, Gone, Handling
from .inbox import Inbox

log = logging.getLogger("pgeverything.worker")
SQL = statements("pubsub")

_MOST = 500  # acknowledgements in a statement
_CLAIM = 500  # messages of a subscription in a claim
_LOOK = 5.0  # seconds between looks whether subscriptions that were deleted are there again, at the most
_COUNT = 60.0  # seconds between comparisons of what is in our name with what is in our hands, for no reason
_IDLE_CHECK = 0.1  # the longest pause when it is to end as soon as it is idle


class Consumer:
    """The messages of a worker.

    Args:
        carrier: where they are claimed and acknowledged.
        handlers: what handles them.
        handling: runs a handler.
        concurrency: how many run at once.
        lease: in seconds.
        name: what the member is called.
        poll: the longest sleep in seconds, or None for what suits.
        hinted: whether hints arrive.
        until_idle: whether it is to end as soon as nothing is left to do.
    """

    def __init__(
        self,
        carrier: AsyncCarrier,
        handlers: Sequence[Handler],
        handling: Handling,
        *,
        concurrency: int,
        lease: float,
        name: str,
        poll: float | None,
        hinted: Callable[[], bool],
        until_idle: bool,
    ) -> None:
        self._carrier, self._registered, self._handling = carrier, handlers, handling
        self._concurrency, self._hinted = concurrency, hinted
        self._lease, self._name = lease, name
        self._pace = Pace(most=_IDLE_CHECK if until_idle else poll)
        self._wake, self._some = asyncio.Event(), asyncio.Event()
        self._outcomes: list[tuple[Held, Ending]] = []
        self._claiming = asyncio.Lock()  # held while a claim is under way: what it takes is not in our hands yet
        self._suspected_at: float | None = None
        self._counted_at = time.monotonic()  # when what is in our name was last compared with what is in our hands
        self._told: dict[int | str, str] = {}  # by number, and by name of those that are there again and do not fit
        self._looked_at = float("-inf")
        self._idle = False  # whether the last claim found nothing
        self._stopping = self._ending = False

    async def begin(self) -> None:
        """Create the subscriptions that are new, and become a member of all.

        Raises:
            SubscriptionError: there is one of that name with another pattern.
        """
        known = [
            await adrive(self._carrier, create(each.name, each.pattern, each.start, each.settings))
            for each in self._registered
        ]
        self._known = {each.id: each for each in known}
        self._handlers = {each.id: handler for each, handler in zip(known, self._registered, strict=True)}
        self._inbox = Inbox(self._concurrency, {id_: each.max_in_flight for id_, each in self._handlers.items()})
        self._member = Member(known, self._lease, self._name)
        await self._register()
        log.info("member %s consumes %s", self._member.id, ", ".join(each.name for each in known))

    async def _register(self) -> None:
        await adrive(self._carrier, self._member.register())
        self._pace.id = self._member.id

    def wake(self) -> None:
        """There may be messages."""
        self._pace.found()
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopping = True
        self._wake.set()

    def end_runners(self) -> None:
        """The loops that handle are to end when they are cancelled now."""
        self._ending = True

    # Claims ----------------------------------------------------------------------------------------------------------

    async def claim(self) -> None:
        """Claim until stopped."""
        trouble, busy_since = 0.1, time.monotonic()
        while not self._stopping:
            if not self._member.trusted:
                await asyncio.sleep(0.1)
                continue
            most = await self._inbox.room(1.0)
            if not most or self._stopping:
                continue
            self._wake.clear()
            try:
                claim = await self._claim(most)
                trouble = 0.1
                if claim.held or claim.more:
                    self._pace.found()
                    await adrive(self._carrier, self._pace.working(busy_since))
                    continue
                if claim.busy:
                    await asyncio.sleep(self._pace.crowded())
                    continue
                busy_since = time.monotonic()
                self._idle = not self._inbox.held
                if await adrive(self._carrier, self._pace.ask(hinted=self._hinted())):
                    continue
            except DATABASE_ERRORS as error:
                log.warning("lost the database, claiming again in %.1f s: %s", trouble, error)
                await asyncio.sleep(trouble)
                trouble = min(trouble * 2, 5.0)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pace.pause(claim.next_due, hinted=self._hinted())):
                    await self._wake.wait()

    async def _claim(self, most: dict[int, int]) -> Claim:
        async with self._claiming:
            try:
                claim = await adrive(
                    self._carrier, self._member.claim({each: min(count, _CLAIM) for each, count in most.items()})
                )
            except BaseException:
                self._suspect()  # it may have gone through without its answer reaching us
                raise
            if "lost" in claim.states.values():
                await self._lost()
            elif claim.held:
                self._idle = False
                self._inbox.take(claim.held)
        for id_, state in claim.states.items():
            await self._tell(id_, state)
        if "gone" in claim.states.values() and time.monotonic() - self._looked_at > _LOOK:
            self._looked_at = time.monotonic()
            for id_, state in claim.states.items():
                if state == "gone":
                    await self._look_for(id_)
        if claim.held:
            await asyncio.sleep(0)  # the handlers first
        return claim

    async def _tell(self, id_: int, state: str) -> None:
        """Say once when a subscription cannot go on by itself, and when it can again."""
        if state in ("gap", "gone", "stopped") and self._told.get(id_) != state:
            try:
                await adrive(self._carrier, check_state(self._known[id_], state))
                log.error("subscription %r has stopped: resume it when the cause is mended", self._known[id_].name)
            except SubscriptionNotFound as error:
                log.error("%s: who creates it again finds this worker there", error)  # noqa: TRY400
            except PgEverythingError as error:
                log.error("cannot consume: %s", error)  # noqa: TRY400
        if state != "busy":
            self._told[id_] = state

    async def _look_for(self, gone: int) -> None:
        """Take up a subscription that was deleted and created again. It is not ours to create: somebody deleted it."""
        async with self._claiming:  # nobody else takes it up, and we stay the member that we are
            if gone not in self._member.subscriptions:
                return
            handler = self._handlers[gone]
            try:
                known = await adrive(self._carrier, find(handler.name, handler.pattern, handler.settings))
            except SubscriptionError as error:  # it has another pattern, for example
                if self._told.get(handler.name) != str(error):
                    log.error("cannot consume: %s", error)  # noqa: TRY400
                    self._told[handler.name] = str(error)
                return
            if known is None:
                return
            await adrive(self._carrier, self._member.take_up(known, gone))
            self._told.pop(handler.name, None)
            # Messages of the old one may still be in our hands, under its number.
            self._known[known.id] = known
            self._handlers[known.id] = handler
            self._inbox.replace(gone, known.id)
        log.info("subscription %r is there again", known.name)
        self.wake()

    # Handlers --------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Handle one message after the other: one of `concurrency` such loops."""
        while not self._ending:  # a handler may swallow the cancellation that the end of the worker is
            held = await self._inbox.next()
            began = time.monotonic()
            if held.lost or not self._member.trusted:
                self._let_it_go(held)
            else:
                await self._handle(held)
            self._inbox.ran(time.monotonic() - began)

    async def _handle(self, held: Held) -> None:
        ending = await self._handling.run(self._handlers[held.subscription], held)
        if held.lost or isinstance(ending, Gone):
            self._let_it_go(held)
        elif isinstance(ending, Back | Done):
            # Its lane waits until that is in the database: so nothing of a key is repeated but the one that a kill hit.
            self._outcomes.append((held, ending))
            self._some.set()
        else:
            self._inbox.pass_on(held)
            self._inbox.drop(held)
            if held.lane is not None:
                self._wake.set()  # what another claim has put behind it meanwhile is free

    def _let_it_go(self, held: Held) -> None:
        """It is somebody else's by now, or soon, and so is what comes after it in its lane."""
        self._inbox.drop_lane(held)
        self._inbox.drop(held)
        self._suspect()

    async def settle(self) -> None:
        """Write how messages ended, until cancelled: while one batch is on its way the next one gathers."""
        while True:
            await self._some.wait()
            self._some.clear()
            await self._flush()

    async def _flush(self) -> None:
        while self._outcomes:
            batch, self._outcomes = self._outcomes[:_MOST], self._outcomes[_MOST:]
            done = [held for held, ending in batch if isinstance(ending, Done)]
            if done:
                await self._acknowledge(done)
            for held, ending in batch:
                if isinstance(ending, Back):
                    await self._back(held, ending)

    async def _acknowledge(self, done: list[Held]) -> None:
        refused, freed = await adrive(self._carrier, insist(lambda: acknowledge(done), "acknowledging"))
        for held in refused:
            if not held.tried:
                log.warning("the acknowledgement of message %s was refused: it is not ours", held.position)
                self._let_it_go(held)
        for held in done:
            self._inbox.pass_on(held)
            self._inbox.drop(held)
        if freed:
            self._wake.set()

    async def _back(self, held: Held, ending: Back) -> None:
        """Put a message back, and with it what is behind it in its lane, unless it is dead and to be skipped."""
        how: dict[str, Any] = {
            "begun": ending.begun, "failed": ending.failed, "reason": ending.reason, "failure": ending.failure,
        }  # fmt: skip
        plan = insist(lambda: put_back(held, ending.delay, **how), "putting back")
        async with self._claiming:  # a claim at the same moment would still give us what comes after it
            answer = await adrive(self._carrier, plan)
            self._settled(held, answer)
        if answer == "dead":
            why = f": {ending.failure.type}: {ending.failure.message}" if ending.failure else ""
            name, reason = self._known[held.subscription].name, ending.reason or f"failed at delivery {held.delivery}"
            log.warning("message %s of %r is dead: %s%s", held.position, name, reason, why)

    def _settled(self, held: Held, answer: str | None) -> None:
        if answer is None:
            self._suspect()
        if answer == "dead":  # and what comes after it goes on
            self._inbox.pass_on(held)
        else:
            self._inbox.drop_lane(held)
        self._inbox.drop(held)
        self._wake.set()  # for when it is due

    # The lease -------------------------------------------------------------------------------------------------------

    async def beat(self) -> None:
        """Renew the lease until cancelled."""
        rest = self._member.heartbeat
        while True:
            await asyncio.sleep(rest)
            rest = self._member.heartbeat
            try:
                await adrive(self._carrier, beat([self._member]))
                if self._member.lost:
                    async with self._claiming:
                        await self._lost()
                elif self._suspected_at is not None or time.monotonic() - self._counted_at > _COUNT:
                    await self._put_back_unknown(self._suspected_at)
            except (psycopg.Error, *DATABASE_ERRORS) as error:
                log.warning("could not send a heartbeat: %s", error)
                rest = min(1.0, rest)

    async def watch(self) -> None:
        """Let go in time: a heartbeat may hang in a dead connection for longer than the lease lasts."""
        while True:
            if self._member.trusted:
                await asyncio.sleep(self._member.left)
            else:
                self._let_go("no heartbeat got through for too long")
                await asyncio.sleep(0.1)

    async def _lost(self) -> None:
        self._let_go("another member declared this one dead")
        await self._register()
        self._wake.set()

    def _let_go(self, why: str) -> None:
        running = [held for held in self._inbox.held.values() if not held.lost]
        if running:
            log.error("%s: letting go of %s message(s)", why, len(running))
            self._suspect()  # should the lease turn out to be ours still, they are ours and nobody handles them
        for held in self._inbox.lose():
            self._handling.interrupt(held)

    def _suspect(self) -> None:
        """There may be messages in our name that are not in our hands."""
        self._suspected_at = time.monotonic()

    async def _put_back_unknown(self, suspected_at: float | None) -> None:
        async with self._claiming:
            began = self._counted_at = time.monotonic()
            held = [each for each in self._inbox.held.values() if not each.lost]
            await adrive(self._carrier, self._member.put_back_unknown(held))
        if suspected_at is not None and began - suspected_at > SUSPICION and self._suspected_at == suspected_at:
            self._suspected_at = None

    # The end ---------------------------------------------------------------------------------------------------------

    async def idle(self) -> bool:
        """Whether nothing is left to do, here or in the hands of other members."""
        if not self._idle or self._inbox.held:
            return False
        params: dict[str, Any] = {"subscriptions": list(self._member.subscriptions)}
        if one(await self._carrier.execute(Query(SQL["open"], params, one))):
            return False
        self._idle = False
        claim = await self._claim(dict.fromkeys(self._member.subscriptions, 1))
        if claim.held or claim.more or claim.busy:
            self._wake.set()
            return False
        return not self._inbox.held

    async def drain(self, longest: float) -> None:
        """Give back what has not started, and wait until what has is over and acknowledged.

        After `longest` seconds `async def` handlers are cancelled and their messages given back; a thread cannot be
        stopped.
        """
        for held in self._inbox.unstarted():
            with contextlib.suppress(*DATABASE_ERRORS):  # else they are rescued
                await adrive(self._carrier, put_back(held, 0.0, begun=False))
        deadline = time.monotonic() + longest
        while self._inbox.running or self._inbox.held:
            if time.monotonic() > deadline:
                deadline = float("inf")
                log.warning(
                    "%s message(s) outlasted the drain of %g s: interrupting them", self._inbox.running, longest
                )
                for held in list(self._inbox.held.values()):
                    self._handling.interrupt(held)
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Be no member any more."""
        with contextlib.suppress(*DATABASE_ERRORS):
            await adrive(self._carrier, self._pace.awake())
            await adrive(self._carrier, self._member.leave())
