"""A process that goes through locked sections, and dies or freezes in the worst place of one now and then.

``python -m tests.faults.locker`` runs until the file ``stop`` appears. The environment tells it what to do:
``LOCKER_URL`` the database, ``LOCKER_DIRECTORY`` where its journal and the unprotected counter are, ``LOCKER_TTL`` the
length of its leases in seconds, ``LOCKER_FAULTS`` how often it kills or freezes itself (a share of the sections).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg_pool import PoolTimeout

from pgeverything import LeaseLost, PgEverything

NAME = "the lock"
TABLES = """
create table guarded (n bigint);
insert into guarded values (0);
create table commits (seq bigserial, n bigint, token bigint, pid bigint);
"""


def section(pg: PgEverything, lease: Any, directory: Path, fault: str | None) -> str:
    """Increment a counter in a file, which nothing protects, and one in a row, with the guard; return how it ended."""
    counter = directory / "counter"
    seen = int(counter.read_text() or 0)
    with contextlib.suppress(LeaseLost), pg.transaction() as tx:
        ((n,),) = tx.connection.execute("select n from guarded").fetchall()
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)  # and goes on when the test says so
        counter.write_text(str(seen + 1))
        tx.locks.guard(lease)
        tx.connection.execute("update guarded set n = %s", [n + 1])
        tx.connection.execute(
            "insert into commits (n, token, pid) values (%s, %s, %s)", [n + 1, lease.token, os.getpid()]
        )
        return "committed"
    return "refused"


def main() -> None:
    directory, ttl = Path(os.environ["LOCKER_DIRECTORY"]), float(os.environ["LOCKER_TTL"])
    faults, chance = float(os.environ["LOCKER_FAULTS"]), random.Random()
    journal = os.open(directory / f"{os.getpid()}.journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    with PgEverything(os.environ["LOCKER_URL"]) as pg:
        while not (directory / "stop").exists():
            try:
                lease = pg.locks.acquire(NAME, ttl=ttl, wait="60s")
                if lease is None:
                    raise RuntimeError("a minute was not enough")
                fault = chance.choice(["kill", "freeze"]) if chance.random() < faults else None
                acquired = (lease.expires_at - timedelta(seconds=ttl)).timestamp()
                os.write(journal, f"{lease.token} {acquired!r} {fault or '-'}\n".encode())
                outcome = section(pg, lease, directory, fault)
                os.write(journal, f"{lease.token} {outcome} {'released' if lease.release() else 'lost'}\n".encode())
            except (psycopg.Error, PoolTimeout):
                time.sleep(0.02)  # the server is away


if __name__ == "__main__":
    main()
