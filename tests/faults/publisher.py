"""A process of publishers: threads that append in transactions of every kind, until a file is there.

``python -m tests.faults.publisher URL NAME SEED THREADS STOP JOURNAL``. The journal gets a line after each commit, with
what it committed, and one for what was rolled back: ``+ a b c``, ``- d``.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg

from pgeverything import PgEverything
from pgeverything.app import Bound

KEYS = 12


class Undo(Exception):
    """Rolls back a transaction or a savepoint on purpose."""


class Publisher:
    """One connection that publishes. Everything it appends has a name of its own."""

    def __init__(self, pg: PgEverything, url: str, name: str, chance: random.Random, journal: int) -> None:
        self._pg, self._url, self._name, self._chance, self._journal = pg, url, name, chance, journal
        self._numbers = count()

    def run(self, stop: Path) -> None:
        with psycopg.connect(self._url) as connection:
            tx = self._pg.on(connection)
            while not stop.exists():
                kept: list[str] = []
                undone: list[str] = []
                try:
                    with connection.transaction():
                        self._transaction(tx, connection, kept, undone)
                except Undo:
                    kept, undone = [], undone + kept
                lines = [f"{sign} {' '.join(names)}\n" for sign, names in (("+", kept), ("-", undone)) if names]
                os.write(self._journal, "".join(lines).encode())

    def _transaction(
        self, tx: Bound, connection: psycopg.Connection[object], kept: list[str], undone: list[str]
    ) -> None:
        chance = self._chance
        # One topic and key in a transaction, or keys in one statement, which sorts them: all else is deadlocks.
        key = f"k{chance.randrange(KEYS)}" if chance.random() < 0.5 else None
        topic = None if key is None else self._topic()
        for _ in range(chance.randrange(1, 4)):
            with self._savepoint(connection, kept, undone) as names:
                self._append(tx, topic or self._topic(), key, names)
            if chance.random() < 0.3:
                time.sleep(chance.random() * 0.01)
        if key is None and chance.random() < 0.2:
            names = [self._new() for _ in range(chance.randrange(1, 30))]
            keys = [chance.choice([None, f"k{chance.randrange(KEYS)}"]) for _ in names]
            tx.events.append_many(self._topic(), names, key=keys)
            kept += names
        if chance.random() < 0.01:
            time.sleep(chance.random() * 0.5)
        self._perhaps_undo(0.15)

    @contextmanager
    def _savepoint(
        self, connection: psycopg.Connection[object], kept: list[str], undone: list[str]
    ) -> Iterator[list[str]]:
        names: list[str] = []
        if self._chance.random() < 0.6:
            yield names
            kept += names
            return
        try:
            with connection.transaction():
                yield names
                self._perhaps_undo(0.4)
            kept += names
        except Undo:
            undone += names

    def _perhaps_undo(self, share: float) -> None:
        if self._chance.random() < share:
            raise Undo

    def _append(self, tx: Bound, topic: str, key: str | None, names: list[str]) -> None:
        if self._chance.random() < 0.6:
            names.append(self._new())
            tx.events.append(topic, names[-1], key=key)
        else:
            names += [self._new() for _ in range(self._chance.randrange(1, 40))]
            tx.events.append_many(topic, names, key=key)

    def _topic(self) -> str:
        return f"topic.{self._chance.randrange(5)}"

    def _new(self) -> str:
        return f"{self._name}-{next(self._numbers)}"


def main() -> None:
    url, name, seed, threads, stop, journal = sys.argv[1:]
    # One write a line and the kernel appends it: a killed process leaves whole lines.
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with PgEverything(url) as pg:
        running = [
            threading.Thread(
                target=Publisher(pg, url, f"{name}.{number}", random.Random(f"{seed} {name} {number}"), file).run,
                args=(Path(stop),),
            )
            for number in range(int(threads))
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()


if __name__ == "__main__":
    main()
