"""Handle local servers and their processes in tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.waiting import eventually

if TYPE_CHECKING:
    pass

REPOSITORY = Path(__file__).parents[1]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as somebody else")

# In a process of its own: prints what it got, as JSON.
ENSURE = """
import json, sys
from pathlib import Path
from pgeverything import local
server = local.ensure(Path(sys.argv[1]), durable=False)
print(json.dumps({"pid": server.pid, "url": server.url}))
"""


def spawn(code: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | options.pop("env", {}),
        **options,
    )


def one(url: str, query: str) -> Any:
    with psycopg.connect(url) as connection:
        row = connection.execute(query).fetchone()
        assert row is not None
        return row[0]


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid), "the killed process to end")


def is_running(pid: int) -> bool:
    # A zombie has no command line, and where nobody reaps orphans it stays one.
    path = Path("/proc", str(pid), "cmdline")
    if Path("/proc/self").exists():
        return path.exists() and path.read_bytes() != b""
    return subprocess.run(["/bin/ps", "-p", str(pid)], capture_output=True, check=False).returncode == 0
