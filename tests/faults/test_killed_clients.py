"""A client is killed inside a transaction that enqueued: nothing is left. Killed after the commit: everything is."""

from __future__ import annotations

import signal
import subprocess
import sys

from pgeverything import PgEverything
from tests.waiting import eventually

from .accounts import fetch
from .fleet import REPOSITORY

CLIENT = """
import sys
from pgeverything import PgEverything
pg = PgEverything(sys.argv[1])
with pg.transaction() as tx:
    tx.connection.execute("insert into effects (number) values (1)")
    tx.jobs.enqueue("plain")
    tx.jobs.enqueue("keyed", ordering_key="k")
    tx.jobs.enqueue("later", delay="1h")
    tx.jobs.enqueue("single", unique_key="u")
    tx.jobs.enqueue_many("many", [{"n": n} for n in range(6000)])
    if sys.argv[2] == "before":
        print(tx.connection.info.backend_pid, flush=True)
        sys.stdin.read()
print("committed", flush=True)
sys.stdin.read()
"""


def client(url: str, when: str) -> tuple[subprocess.Popen[bytes], bytes]:
    """Start a client and return it with its first line, after which it waits to be killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", CLIENT, url, when], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_a_client_killed_inside_its_transaction_leaves_nothing(url: str, pg: PgEverything) -> None:
    process, backend = client(url, "before")
    kill(process)
    eventually(
        lambda: not fetch(url, "select pid from pg_stat_activity where pid = %s", int(backend)), "its backend to end"
    )
    for table in ("jobs", "ready", "waiting", "scheduled", "turn_notes", "finished"):
        assert fetch(url, f"select count(*) from pgeverything.{table}") == [(0,)], table
    assert fetch(url, "select count(*) from effects") == [(0,)]
    assert pg.jobs.enqueue("single", unique_key="u").duplicate is False


def test_a_client_killed_right_after_its_commit_leaves_everything(url: str, pg: PgEverything) -> None:
    process, line = client(url, "after")
    assert line == b"committed"
    kill(process)
    assert fetch(url, "select count(*) from pgeverything.jobs") == [(6004,)]
    assert fetch(url, "select count(*) from pgeverything.ready") == [(6002,)]
    assert fetch(url, "select count(*) from effects") == [(1,)]
    assert pg.jobs.enqueue("single", unique_key="u").duplicate is True
