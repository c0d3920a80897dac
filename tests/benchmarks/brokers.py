"""Ways to get a message to a handler, each behind the same few calls: this project, Redis Streams, NATS JetStream.

All acknowledge. pgeverything and Redis have a message on disk before `publish` returns; JetStream has written it and
syncs every two minutes, as is its default.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Handle = Callable[[float], None]
    Ready = Callable[[], object]

TOPIC, GROUP = "orders.eu", "bench"
_BATCH = 500


class Enough(BaseException):
    """Ends consuming."""


class Broker(Protocol):
    """One way."""

    name: str
    choices: str

    def serve(self, postgres: str) -> contextlib.AbstractContextManager[str]:
        """Start what it needs and yield where it is; `postgres` is a migrated database."""

    async def publish(self, where: str, count: int, pause: Callable[[], Awaitable[None]]) -> None:
        """Publish so many messages, each with the time of the monotonic clock, with a pause before each."""

    async def load(self, where: str, count: int) -> None:
        """Publish so many as fast as it goes."""

    async def consume(self, where: str, ready: Ready, handle: Handle) -> None:
        """Handle messages until `handle` raises `Enough`, and acknowledge each."""


class PgEverythingBroker:
    """This project, with the hint."""

    name = "pgeverything"
    choices = "an async handler of a worker with concurrency 10; publish awaited"
    listen = True

    @contextlib.contextmanager
    def serve(self, postgres: str) -> Iterator[str]:
        """Use the database that is there."""
        yield postgres

    async def publish(self, where: str, count: int, pause: Callable[[], Awaitable[None]]) -> None:
        """Publish one after the other."""
        from pgeverything import AsyncPgEverything

        async with AsyncPgEverything(where) as pg:
            for _ in range(count):
                await pause()
                await pg.pubsub.publish(TOPIC, {"at": time.monotonic()})

    async def load(self, where: str, count: int) -> None:
        """Publish batches."""
        from pgeverything import AsyncPgEverything

        async with AsyncPgEverything(where) as pg:
            for _ in range(count // _BATCH):
                await pg.events.append_many(TOPIC, [{"at": 0.0}] * _BATCH)

    async def consume(self, where: str, ready: Ready, handle: Handle) -> None:
        """Run a worker."""
        from pgeverything import AsyncMessage, AsyncPgEverything

        async with AsyncPgEverything(where) as pg:
            worker = pg.worker(listen=self.listen)

            @pg.subscriber(TOPIC, name=GROUP, start="earliest")
            async def handler(message: AsyncMessage) -> None:
                try:
                    handle(message.data["at"])
                except Enough:
                    worker.stop()

            await worker.serve(ready=ready)


class Polling(PgEverythingBroker):
    """This project where LISTEN does not work."""

    name = "pgeverything, polling"
    choices = "the same with listen=False"
    listen = False


class RedisStreams:
    """https://redis.io/docs/latest/develop/data-types/streams/ by redis-py."""

    name = "redis streams"

    def __init__(self) -> None:
        """Say which version it is."""
        self.choices = (
            f"redis-py {version('redis')}, appendfsync always; XADD, XREADGROUP with BLOCK, XACK of each batch"
        )

    @contextlib.contextmanager
    def serve(self, postgres: str) -> Iterator[str]:
        """Start a server on a Unix socket."""
        with _directory() as home:
            path = home / "redis.sock"
            options = ["--port", "0", "--unixsocket", str(path), "--dir", str(home), "--appendonly", "yes"]
            with _running(["redis-server", *options, "--appendfsync", "always", "--save", ""], path.exists):
                yield f"unix://{path}"

    async def publish(self, where: str, count: int, pause: Callable[[], Awaitable[None]]) -> None:
        """Publish one after the other."""
        from redis.asyncio import from_url

        async with from_url(where) as redis:
            for _ in range(count):
                await pause()
                await redis.xadd(TOPIC, {"at": json.dumps(time.monotonic())})

    async def load(self, where: str, count: int) -> None:
        """Publish in pipelines."""
        from redis.asyncio import from_url

        async with from_url(where) as redis:
            for _ in range(count // _BATCH):
                pipe = redis.pipeline()
                for _ in range(_BATCH):
                    pipe.xadd(TOPIC, {"at": "0.0"})
                await pipe.execute()

    async def consume(self, where: str, ready: Ready, handle: Handle) -> None:
        """Read in a consumer group."""
        from redis.asyncio import from_url
        from redis.exceptions import ResponseError

        async with from_url(where, socket_timeout=None) as redis:
            with contextlib.suppress(ResponseError):
                await redis.xgroup_create(TOPIC, GROUP, id="0", mkstream=True)
            ready()
            with contextlib.suppress(Enough):
                while True:
                    found = await redis.xreadgroup(GROUP, "one", {TOPIC: ">"}, count=_BATCH, block=5000)
                    for _, messages in found:
                        for _, fields in messages:
                            handle(json.loads(fields[b"at"]))
                        await redis.xack(TOPIC, GROUP, *(id_ for id_, _ in messages))


class JetStream:
    """https://docs.nats.io/nats-concepts/jetstream by nats-py."""

    name = "nats jetstream"

    def __init__(self) -> None:
        """Say which version it is."""
        self.choices = f"nats-py {version('nats-py')}, file storage; a durable push consumer, ack"

    @contextlib.contextmanager
    def serve(self, postgres: str) -> Iterator[str]:
        """Start a server on a port of the loopback interface."""
        with _directory() as home:
            port = _free_port()
            config = home / "nats.conf"
            config.write_text(f'listen: "127.0.0.1:{port}"\njetstream {{ store_dir: "{home}/js" }}\n')
            with _running(["nats-server", "-c", str(config)], lambda: _open(port)):
                yield f"nats://127.0.0.1:{port}"

    async def _stream(self, where: str):
        import nats

        client = await nats.connect(where)
        stream = client.jetstream()
        await stream.add_stream(name="orders", subjects=["orders.>"])
        return client, stream

    async def publish(self, where: str, count: int, pause: Callable[[], Awaitable[None]]) -> None:
        """Publish one after the other."""
        client, stream = await self._stream(where)
        for _ in range(count):
            await pause()
            await stream.publish(TOPIC, json.dumps(time.monotonic()).encode())
        await client.close()

    async def load(self, where: str, count: int) -> None:
        """Publish without waiting for each acknowledgement."""
        client, stream = await self._stream(where)
        for _ in range(count // _BATCH):
            await asyncio.gather(*(stream.publish(TOPIC, b"0.0", timeout=60) for _ in range(_BATCH)))
        await client.close()

    async def consume(self, where: str, ready: Ready, handle: Handle) -> None:
        """Subscribe with a durable consumer."""
        client, stream = await self._stream(where)
        over = asyncio.Event()

        async def handler(message) -> None:
            try:
                handle(json.loads(message.data))
                await message.ack()
            except Enough:
                over.set()

        await stream.subscribe(TOPIC, durable=GROUP, cb=handler, manual_ack=True)
        ready()
        await over.wait()
        await client.close()


def available() -> dict[str, type[Broker]]:
    """Return those whose servers and clients are here."""
    found: dict[str, type[Broker]] = {"pgeverything": PgEverythingBroker, "polling": Polling}
    if shutil.which("redis-server") and find_spec("redis"):
        found["redis"] = RedisStreams
    if shutil.which("nats-server") and find_spec("nats"):
        found["nats"] = JetStream
    return found


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    home = Path(tempfile.mkdtemp(prefix="pgeverything-bench-"))
    try:
        yield home
    finally:
        shutil.rmtree(home)


@contextlib.contextmanager
def _running(command: list[str], is_up: Callable[[], bool]) -> Iterator[None]:
    with Path(os.devnull).open("wb") as nowhere, subprocess.Popen(command, stdout=nowhere, stderr=nowhere) as server:
        try:
            deadline = time.monotonic() + 20
            while not is_up():
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"{command[0]} did not start")
                time.sleep(0.02)
            yield
        finally:
            server.terminate()
            server.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
