"""What the tests of pub/sub consume with, on every carrier, and what they ask of what they got."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pgeverything import AsyncPgEverything, PgEverything

from .carriers import Face

QUIET = 0.5  # seconds without a message after which these subscriptions end


def ack(message: Any) -> Any:
    return message.ack()


def consume(face: Face, pattern: str, handle: Callable[[Any], Any] = ack, **options: Any) -> list[Any]:
    """Handle messages until none came for a while, or until `handle` returns "enough"."""
    options = {"timeout": QUIET} | options
    messages = []

    def blocking() -> None:
        with face.pg.pubsub.subscribe(pattern, **options) as subscriber:
            for message in subscriber:
                messages.append(message)
                if handle(message) == "enough":
                    break

    async def awaiting() -> None:
        async with face.pg.pubsub.subscribe(pattern, **options) as subscriber:
            async for message in subscriber:
                messages.append(message)
                result = handle(message)
                if result == "enough":
                    break
                if asyncio.iscoroutine(result):
                    await result

    face.run(awaiting()) if isinstance(face.pg, AsyncPgEverything) else blocking()
    return messages


def data(messages: list[Any]) -> list[Any]:
    return [message.data for message in messages]


def one(pg: PgEverything, name: str = "s") -> Any:
    [found] = [each for each in pg.pubsub.subscriptions() if each.name == name]
    return found
