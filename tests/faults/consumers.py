"""The application whose consumers the tests kill: ``python -m tests.faults.consumers`` runs one worker, as `app` does.

An event's data is a number, and its key is in the topic's key; what handlers write says which process wrote it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random

from pgeverything import AsyncBound, AsyncMessage, Bound, Message, PgEverything

pg = PgEverything(os.environ.get("FAULTS_URL", "postgresql://said-by-FAULTS_URL"))


@pg.subscriber("orders.>", name="ordered", start="earliest", max_deliveries=100)
def ordered(message: Message) -> None:
    """Writes when it begins and when it ends into a table that only grows, each in a transaction of its own."""
    for event in ("begin", "end"):
        with pg.transaction() as tx:
            tx.connection.execute(
                "insert into history (key, number, event, pid) values (%s, %s, %s, %s)",
                [message.key, message.data, event, os.getpid()],
            )


@pg.subscriber("orders.>", name="exact", start="earliest", max_deliveries=100, transactional=True)
async def exact(message: AsyncMessage, tx: AsyncBound) -> None:
    """Has its effect in the transaction that acknowledges the message."""
    await tx.connection.execute("insert into effects (number, job) values (%s, 1)", [message.data])
    await asyncio.sleep(random.random() * 0.002)


@pg.subscriber("orders.>", name="exact-in-thread", start="earliest", max_deliveries=100, transactional=True)
def exact_in_thread(message: Message, tx: Bound) -> None:
    """The same in a thread, and fails now and then after its effect."""
    tx.connection.execute("insert into effects (number, job) values (%s, 2)", [message.data])
    if random.random() < 0.02:
        message.nack(0.05)


@pg.subscriber("orders.>", name="loose", start="earliest", max_deliveries=100, ordered=False)
async def loose(message: AsyncMessage) -> None:
    """Has its effect outside of any transaction with the acknowledgement."""
    line = f"effect {message.data} {message.position} {message.delivery} {os.getpid()}\n"
    journal = os.open(os.environ["FAULTS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(journal, line.encode())
    finally:
        os.close(journal)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    pg.worker(**json.loads(os.environ["FAULTS_WORKER"])).run()
