"""The application whose workers the tests kill: its tasks, and a worker process that serves them.

``python -m tests.faults.app`` runs one worker until SIGTERM. The environment tells it what to do:
``FAULTS_URL`` the database, ``FAULTS_WORKER`` the worker's options as JSON, ``FAULTS_JOURNAL`` the file for effects
outside the database, ``FAULTS_GATE`` a file whose appearance lets the gated handlers go on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import time
from pathlib import Path

from pgeverything import JobContext, PgEverything

pg = PgEverything(os.environ.get("FAULTS_URL", "postgresql://said-by-FAULTS_URL"))


@pg.task()
async def journaled(context: JobContext, number: int) -> None:
    """Has its effect outside the database, where nothing can make it one with the acknowledgement."""
    note("begin", context, number)
    await asyncio.sleep(random.random() * 0.004)
    note("effect", context, number)


@pg.task()
async def noted(context: JobContext, number: int) -> None:
    """Has its effect and nothing else."""
    note("effect", context, number)


@pg.task()
async def exact(context: JobContext, number: int) -> None:
    """Has its effect in the transaction that ends the job."""
    async with context.transaction() as tx:
        await tx.connection.execute("insert into effects (number, job) values (%s, %s)", [number, context.job.id])


@pg.task()
def exact_in_thread(context: JobContext, number: int) -> None:
    """The same in a thread."""
    with context.transaction() as tx:
        tx.connection.execute("insert into effects (number, job) values (%s, %s)", [number, context.job.id])


@pg.task()
def ordered(key: str, number: int) -> None:
    """Writes when it begins and when it ends into a table that only grows, each in a transaction of its own."""
    for event in ("begin", "end"):
        with pg.transaction() as tx:
            tx.connection.execute(
                "insert into history (key, number, event, pid) values (%s, %s, %s, %s)",
                [key, number, event, os.getpid()],
            )


@pg.task()
async def gated(context: JobContext, number: int) -> None:
    """Begins, and has its effect when the gate is open."""
    note("begin", context, number)
    while not gate_is_open():  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.01)
    note("effect", context, number)


@pg.task()
def gated_exact(context: JobContext, number: int) -> None:
    """The same with its effect in the transaction that ends the job, which is open while it waits."""
    with context.transaction() as tx:
        tx.connection.execute("insert into effects (number, job) values (%s, %s)", [number, context.job.id])
        note("begin", context, number)
        while not gate_is_open():
            time.sleep(0.01)


@pg.task()
async def innocent(context: JobContext, number: int) -> None:
    """Takes long enough to be running when a neighbour that was claimed with it kills the process."""
    note("begin", context, number)
    await asyncio.sleep(0.05)
    note("effect", context, number)


@pg.task()
def poison() -> None:
    """Takes its process down."""
    os._exit(1)


def gate_is_open() -> bool:
    """Whether the test lets the gated handlers go on."""
    return Path(os.environ["FAULTS_GATE"]).exists()


def note(kind: str, context: JobContext, number: int) -> None:
    """Append a line to the journal: one write, which a SIGKILL either precedes or follows."""
    journal = os.open(os.environ["FAULTS_JOURNAL"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        line = f"{kind} {number} {context.job.id} {context.job.worker} {os.getpid()}\n"
        os.write(journal, line.encode())
    finally:
        os.close(journal)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    pg.worker(**json.loads(os.environ["FAULTS_WORKER"])).run()
