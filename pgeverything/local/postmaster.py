"""What a data directory says about its server, and whether that server is really there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg import pq

from .places import PORT


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What ``postmaster.pid`` says; the process may be long gone.

    Attributes:
        pid: the process id.
        data_dir: the data directory it was written in.
        socket_dir: the directory of its Unix socket, or None while it is still starting.
        ready: whether it has finished starting and has not begun to stop.

    """

    pid: int
    data_dir: Path
    socket_dir: Path | None
    ready: bool

    @property
    def url(self) -> str:
        """Where it listens, as a URL for libpq, psycopg, asyncpg and SQLAlchemy alike.

        The port is spelled out because ``$PGPORT`` would fill it in otherwise.
        """
        return f"postgresql://postgres@/postgres?host={quote(str(self.socket_dir), safe='')}&port={PORT}"

    def is_alive(self) -> bool:
        """Whether the process exists and is the server of this data directory.

        A pid alone proves nothing: after a crash or a reboot another process may have it, and a killed server
        may stay a zombie where nobody reaps it. The command line of neither names the data directory.
        """
        return _serves(self.pid, self.data_dir)

    def answers(self) -> bool:
        """Whether it accepts connections, or would if they were not all taken.

        A server that is not ready is not asked: it would log each attempt.
        """
        return self.ready and pq.PGconn.ping(f"{self.url}&connect_timeout=2".encode()) == pq.Ping.OK

    def version(self) -> str:
        """Return the version it reports, ``"18.6"``; only the major one if all connections are taken."""
        try:
            with psycopg.connect(self.url, connect_timeout=5) as connection:
                # "15.14 (Debian 15.14-0+deb12u1)"
                return (connection.info.parameter_status("server_version") or "").split()[0]
        except psycopg.OperationalError:
            return (self.data_dir / "PG_VERSION").read_text().strip()


def read_postmaster(data_dir: Path) -> Postmaster | None:
    """Return what ``postmaster.pid`` in `data_dir` says, or None if there is none that makes sense.

    Its lines are: pid, data directory, start time, port, socket directory, listen address, shared memory,
    state. The server writes them one after the other, so a young file may be short.
    """
    try:
        text = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape")
        lines = text.splitlines()
        pid = int(lines[0])
    except (FileNotFoundError, NotADirectoryError, ValueError, IndexError):
        return None
    if pid <= 1:
        return None
    socket = lines[4] if len(lines) > 4 else ""
    ready = len(lines) > 7 and lines[7].strip() == "ready"
    return Postmaster(pid, data_dir, Path(socket) if socket else None, ready)


def _serves(pid: int, data_dir: Path) -> bool:
    """Whether the command line of the process has ``-D data_dir``; a zombie's is empty."""
    if sys.platform == "linux":
        try:
            raw = Path("/proc", str(pid), "cmdline").read_bytes()
        except OSError:
            return False
        return f"\0-D\0{data_dir}\0".encode(errors="surrogateescape") in raw
    else:  # noqa: RET505  the type checker leaves out a platform's branch, not what follows it
        answer = subprocess.run(  # noqa: S603  no input but a number
            ["/bin/ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
        )
        return f" -D {data_dir} " in answer.stdout.strip() + " "
