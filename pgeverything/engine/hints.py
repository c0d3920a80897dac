"""A process's ears: one LISTEN connection in a thread of its own, shared by all in the process who wait for a hint.

A thread, whatever the caller: blocking code has no event loop, and asyncio code may have several, one after the other.
It is there while somebody waits and a little longer, and listens through the same self-test as a worker does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable

import psycopg

from ..errors import PgEverythingError
from .listen import Listener

log = logging.getLogger("pgeverything.hints")

_LINGER = 60.0  # seconds for which the connection is kept when nobody waits any more
_PATIENCE = 5.0  # seconds that closing waits for the thread
_DEAF = 300.0  # seconds until it is tried again after LISTEN was found not to work


class Ears:
    """Wakes whoever watches for a hint: a notification whose payload is a TAB and the hint.

    Args:
        conninfo: returns where to connect to.
        channel: the channel, which is the schema's name.
    """

    def __init__(self, conninfo: Callable[[], str], channel: str) -> None:
        self._conninfo, self._channel = conninfo, channel
        self._begin()

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._wakes: dict[str, list[Callable[[], object]]] = {}
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._hearing: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._own = f"pgeverything hints {uuid.uuid4().hex}"
        self._begun = threading.Event()
        self._deaf_until = 0.0
        self._pid = os.getpid()

    @property
    def channel(self) -> str | None:
        """A channel of this process alone, which a hint may be sent to instead; None while we do not listen."""
        listener = self._listener
        return self._own if listener is not None and listener.works and self._pid == os.getpid() else None

    def watch(self, hint: str, wake: Callable[[], object]) -> Callable[[], None]:
        """Call `wake`, in our thread, for every such hint and when some may have been missed; returns how to stop."""
        if self._pid != os.getpid():  # a fork has our memory, its lock perhaps held, and not our thread
            self._begin()
        with self._lock:
            self._wakes.setdefault(hint, []).append(wake)
            if self._thread is None and time.monotonic() >= self._deaf_until:
                self._begun.clear()
                self._thread = threading.Thread(target=self._run, name="pgeverything hints", daemon=True)
                self._thread.start()

        def stop() -> None:
            with self._lock, contextlib.suppress(KeyError, ValueError):
                self._wakes[hint].remove(wake)
                if not self._wakes[hint]:
                    del self._wakes[hint]

        return stop

    def close(self) -> None:
        """End the thread and its connection. The next watch begins anew."""
        thread = self._thread
        if thread is None or self._pid != os.getpid():
            return
        self._begun.wait(_PATIENCE)
        with self._lock, contextlib.suppress(RuntimeError):  # it has just ended by itself
            if self._loop is not None and self._hearing is not None:
                self._loop.call_soon_threadsafe(self._hearing.cancel)
        thread.join(_PATIENCE)

    def _run(self) -> None:
        try:
            asyncio.run(self._hear())
        except asyncio.CancelledError:
            pass  # closed
        except (psycopg.Error, PgEverythingError, OSError) as error:
            log.warning("no hints, polling instead: %s", error)
            self._deaf_until = time.monotonic() + _DEAF
        finally:
            self._begun.set()
            with self._lock:
                if self._thread is threading.current_thread():
                    self._thread = self._loop = self._hearing = None

    async def _hear(self) -> None:
        """Listen until nobody has watched for a while, or until LISTEN is found not to work."""
        with self._lock:
            self._loop, self._hearing = asyncio.get_running_loop(), asyncio.current_task()
        self._begun.set()
        listener = self._listener = Listener(self._conninfo(), self._channel, self._heard, self._probe, self._own)
        listening = asyncio.create_task(listener.run())
        watched = time.monotonic()
        try:
            while not (await asyncio.wait({listening}, timeout=1.0))[0]:
                with self._lock:
                    if self._wakes:
                        watched = time.monotonic()
                    elif time.monotonic() - watched > _LINGER:
                        self._thread = self._loop = self._hearing = None  # the next to watch starts another
                        return
            listening.result()
            self._deaf_until = time.monotonic() + _DEAF  # it ended, so its self-test failed
        finally:
            listener.works = False
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _probe(self, payload: str) -> None:
        """Send a notification through another connection, as a publisher would."""
        async with await psycopg.AsyncConnection.connect(self._conninfo(), autocommit=True) as connection:
            await connection.execute("select pg_notify(%s, %s)", [self._channel, payload])

    def _heard(self, payload: str) -> None:
        """Wake who watches for this hint; everybody, when some hints may have been missed."""
        if payload and not payload.startswith("\t"):
            return  # for the workers of the job queue
        with self._lock:
            wakes = (
                list(self._wakes.get(payload[1:], ()))
                if payload
                else [wake for found in self._wakes.values() for wake in found]
            )
        for wake in wakes:
            with contextlib.suppress(RuntimeError):  # its event loop was closed while it waited
                wake()
