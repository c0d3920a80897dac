"""A row, a job, an event, an invalidation, a schedule, an audited change and a lock's guard: all of them or none.

The client is killed before and after each of its statements, and before and after its commit.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import psycopg
import pytest

from pgeverything import LeaseLost, PgEverything
from tests.waiting import PATIENCE, eventually

from .accounts import fetch
from .fleet import REPOSITORY
from .one_transaction import CARRIERS, everything

TRACES = {"row", "job", "event", "message", "invalidation", "schedule", "audit"}


@pytest.fixture
def shop(pg: PgEverything, url: str) -> PgEverything:
    fetch(url, "create table orders (id bigint primary key, total integer not null)")
    pg.audit.track("public.orders", require_actor=True)
    return pg


class Client:
    """The client's process, which lives as long as the test."""

    def __init__(self, carrier: str, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.one_transaction", carrier, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def go(self, order: int, point: int) -> tuple[int, int]:
        """Do all of it for an order, up to a point; returns how the child ended, and how many points it passed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(order, point, file=self._process.stdin, flush=True)
        code, passed = self._process.stdout.readline().split()
        return int(code), int(passed)

    def close(self) -> None:
        self._process.communicate(timeout=PATIENCE)
        assert self._process.returncode == 0


@pytest.fixture
def new_client(url: str) -> Iterator[Callable[[str], Client]]:
    clients: list[Client] = []

    def make(carrier: str) -> Client:
        clients.append(Client(carrier, url))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def prepare(pg: PgEverything, order: int) -> None:
    """Put what the transaction invalidates into the cache: by its key and by its tag."""
    pg.cache.set(f"cart:{order}", "stale", ttl="1h")
    pg.cache.set(f"greeting:{order}", "stale", ttl="1h", tags=[f"user:{order}"])


def traces(pg: PgEverything, url: str, order: int) -> set[str]:
    """What there is of an order in each module."""
    carts = pg.cache.get_many([f"cart:{order}", f"greeting:{order}"])
    assert len(carts) in (0, 2)
    schedules = [schedule.name for schedule in pg.scheduler.list()]
    found = {
        "row": bool(fetch(url, "select id from orders where id = %s", order)),
        "job": any(job.args == {"order": order} for job in pg.jobs.list(task="ship", limit=1000)),
        "event": [event.data for event in pg.events.read("orders", key=str(order))] == [{"order": order}],
        "message": {"order": order} in [event.data for event in pg.events.read("shop")],
        "invalidation": not carts,
        "schedule": f"remind-{order}" in schedules,
        "audit": [(entry.action, entry.actor, entry.reason) for entry in pg.audit.history("orders", order)]
        == [("insert", "ada", "checkout")],
    }
    return {name for name, there in found.items() if there}


@pytest.mark.parametrize("carrier", CARRIERS)
def test_all_or_nothing(carrier: str, url: str, shop: PgEverything, new_client: Callable[[str], Client]) -> None:
    client = new_client(carrier)
    prepare(shop, 0)
    code, points = client.go(0, 0)
    assert code == 0
    assert traces(shop, url, 0) == TRACES
    assert points >= 2 * (len(TRACES) + 2)  # each of the steps is one statement at least, and there is the commit

    for point in range(1, points + 1):
        prepare(shop, point)
        assert client.go(point, point) == (-signal.SIGKILL, 0)
        eventually(lambda: not open_transactions(url), "the server to see that the client is gone")
        found = traces(shop, url, point)
        assert found == (TRACES if point == points else set()), f"killed at point {point} of {points}"


def open_transactions(url: str) -> list[tuple[object, ...]]:
    return fetch(
        url,
        "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        " and backend_type = 'client backend' and xact_start is not null",
    )


def checkout(shop: PgEverything, url: str, lease: object, order: int) -> None:
    """Do all of it in this process."""
    with psycopg.connect(url) as connection:
        insert = "insert into orders (id, total) values (%s, 990)"
        for _ in everything(shop.on(connection), lambda order: connection.execute(insert, [order]), lease, order):
            pass


def test_a_lost_lease_leaves_nothing(url: str, shop: PgEverything) -> None:
    """The guard is the last step: all that was done before it vanishes with it."""
    lease = shop.locks.acquire("order:1", ttl="5m")
    shop.locks.break_lock("order:1")
    prepare(shop, 1)

    with pytest.raises(LeaseLost):
        checkout(shop, url, lease, 1)

    assert traces(shop, url, 1) == set()


def test_a_row_that_the_audit_trail_refuses_leaves_nothing(url: str, shop: PgEverything) -> None:
    """Nobody has said who it is that changes an order."""

    def anonymous() -> None:
        with psycopg.connect(url) as connection:
            tx = shop.on(connection)
            tx.jobs.enqueue("ship", {"order": 1})
            tx.events.append("orders", {"order": 1}, key="1")
            connection.execute("insert into orders (id, total) values (1, 990)")

    prepare(shop, 1)
    with pytest.raises(psycopg.Error, match="actor"):
        anonymous()

    assert traces(shop, url, 1) == set()
