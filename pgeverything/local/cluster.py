"""One cluster, the data of one major version: initialise it, start it, wait for it, stop it."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from ..errors import LocalServerError
from . import places
from .postmaster import Postmaster, read_postmaster

if TYPE_CHECKING:
    from pathlib import Path

    from .account import Account
    from .binaries import Binaries

State: TypeAlias = Literal["running", "unresponsive", "stopped"]

_INIT_WAIT = 300.0  # seconds; 0.9 s on an idle machine
_READY_WAIT = 60.0  # seconds: also recovery after a crash
_STOP_WAIT = 60.0  # seconds: also the final checkpoint
_POLL = 0.02  # seconds
_LARGEST_LOG = 1 << 20  # bytes, checked at each start
_TAIL_BYTES = 16384
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A running local server.

    Attributes:
        url: its ``postgres`` database, for psycopg, asyncpg and SQLAlchemy alike.
        version: as it reports itself, such as ``"18.6"``.
        major: the major version, such as 18.
        data_dir: the cluster's data directory.
        socket_dir: where its Unix socket is.
        pid: the process id of the postmaster.

    """

    url: str
    version: str
    major: int
    data_dir: Path
    socket_dir: Path
    pid: int


@dataclass(frozen=True, slots=True)
class LocalStatus:
    """How the server of one major version is.

    Attributes:
        major: the major version, such as 18.
        state: ``running``; ``stopped``; or ``unresponsive``: the process is there and does not answer,
            because it starts, recovers, shuts down or hangs.
        data_dir: the cluster's data directory.
        log_file: what the server has printed.
        server: the running server, or None.

    """

    major: int
    state: State
    data_dir: Path
    log_file: Path
    server: LocalServer | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """The folder of one major version, such as ``<home>/18``."""

    folder: Path

    @property
    def major(self) -> int:
        """The major version."""
        return int(self.folder.name)

    @property
    def data(self) -> Path:
        """The data directory: once it is there it is complete."""
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the server prints."""
        return self.folder / "server.log"

    def process(self) -> Postmaster | None:
        """Return the server's process, whether it answers or not."""
        postmaster = read_postmaster(self.data)
        return postmaster if postmaster is not None and postmaster.is_alive() else None

    def running(self) -> LocalServer | None:
        """Return the server if it answers."""
        postmaster = self.process()
        if postmaster is None or postmaster.socket_dir is None or not postmaster.answers():
            return None
        return LocalServer(
            url=postmaster.url,
            version=postmaster.version(),
            major=self.major,
            data_dir=self.data,
            socket_dir=postmaster.socket_dir,
            pid=postmaster.pid,
        )

    def status(self) -> LocalStatus:
        """Return how the server is, without changing anything."""
        server = self.running()
        state: State = "running" if server else "unresponsive" if self.process() else "stopped"
        return LocalStatus(self.major, state, self.data, self.log, server)


def initialise(cluster: Cluster, binaries: Binaries, account: Account, *, durable: bool) -> None:
    """Create the data beside its final place and rename it, so that it is complete or absent.

    A process killed in the middle leaves an ``init-*`` behind, and perhaps an initdb that still writes into
    it: hence a new name each time. The caller holds the home's lock.

    Raises:
        LocalServerError: initdb failed; the message has what it said.

    """
    for leftover in cluster.folder.glob("init-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = cluster.folder / f"init-{secrets.token_hex(4)}"
    command: list[str | Path] = [binaries.directory / "initdb", "-D", fresh, "-U", "postgres", "-E", "UTF8"]
    # Trust is safe because only the account itself and root can enter the socket's directory, and no TCP port
    # is open. `peer` would need a map with an entry for root, and fails for a uid without a name, as in
    # containers.
    command += ["-A", "trust", "--no-instructions", *_locale_options(binaries.major)]
    if not durable:
        command.append("--no-sync")
    try:
        answer = account.run(command, timeout=_INIT_WAIT)
        if answer.returncode != 0:
            raise LocalServerError(
                f"initdb failed as {account.name!r} in {cluster.folder} (exit code {answer.returncode}):\n"
                f"{_tail(answer.stdout + answer.stderr)}"
            )
        fresh.rename(cluster.data)
        _sync_directory(cluster.folder)
    except OSError as error:
        raise LocalServerError(f"cannot create a cluster in {cluster.folder}: {error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def start(cluster: Cluster, binaries: Binaries, account: Account, *, durable: bool) -> LocalServer:
    """Start the server and return it when it accepts connections. The caller holds the home's lock.

    Raises:
        LocalServerError: it ended at once, or is not ready within a minute; the message has the end of its
        log.

    """
    deadline = time.monotonic() + _READY_WAIT
    while True:
        log_from = _prepare_log(cluster.log)
        server = wait_until_ready(cluster, _launch(cluster, binaries, account, durable=durable))
        if server is not None:
            return server
        # A starter that was killed a moment ago may have left a server that had no pid file yet. It won.
        other = cluster.process()
        server = wait_until_ready(cluster, other.pid) if other is not None else None
        if server is not None:
            return server
        # After a kill -9 the backends are orphans until they notice: milliseconds, more in a system call.
        # Till then their shared memory keeps a new server out.
        tail = _log_tail(cluster.log, log_from)
        orphans = "shared memory block" in tail and "still in use" in tail
        if not orphans or time.monotonic() > deadline:
            raise LocalServerError(
                f"the local server in {cluster.data} ended while it started; {cluster.log} ends with:\n{tail}"
            )
        time.sleep(_POLL)


def wait_until_ready(cluster: Cluster, pid: int) -> LocalServer | None:
    """Return the server once it accepts connections, or None once its process has ended.

    Args:
        cluster: whose server.
        pid: its process.

    Raises:
        LocalServerError: it is not ready in time; it goes on then.

    """
    deadline = time.monotonic() + _READY_WAIT
    process = Postmaster(pid, cluster.data, socket_dir=None, ready=False)
    while process.is_alive():
        server = cluster.running()
        if server is not None and server.pid == pid:
            return server
        if time.monotonic() > deadline:
            raise LocalServerError(
                f"the local server in {cluster.data} (pid {pid}) is not ready after {_READY_WAIT:g} s; it "
                f"may still be recovering: try again, or look at {cluster.log}, which ends with:\n"
                f"{_log_tail(cluster.log)}"
            )
        time.sleep(_POLL)
    return None


def stop(cluster: Cluster) -> bool:
    """Stop the server, and return whether there was one. The caller holds the home's lock.

    Raises:
        LocalServerError: it has not ended within a minute.

    """
    postmaster = cluster.process()
    if postmaster is None:
        return False
    deadline = time.monotonic() + _STOP_WAIT
    try:
        os.kill(postmaster.pid, signal.SIGINT)  # PostgreSQL's fast shutdown
    except ProcessLookupError:
        return True
    while postmaster.is_alive():
        if time.monotonic() > deadline:
            raise LocalServerError(
                f"the local server (pid {postmaster.pid}) has not stopped after {_STOP_WAIT:g} s; "
                f"{cluster.log} ends with:\n{_log_tail(cluster.log)}"
            )
        time.sleep(_POLL)
    return True


def _locale_options(major: int) -> list[str]:
    """Byte order for sorting, Unicode for letters; the same everywhere from 17 on, which brings its own."""
    if major >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
    # macOS has no C.UTF-8, and no other name is on every machine.
    return ["--locale=C.UTF-8" if sys.platform == "linux" else "--locale=C"]


def _launch(cluster: Cluster, binaries: Binaries, account: Account, *, durable: bool) -> int:
    """Start the postmaster in a session of its own, detached from this process, and return its pid.

    The shell in between ends at once, so that the server is init's child and never a zombie of ours. pg_ctl
    does the same, but it takes any live process that has the old pid for the server.
    """
    socket_dir = places.socket_directory(cluster.folder, account)
    # On the command line, not in postgresql.conf: nothing in the data directory can open a port or a socket.
    settings = {
        "listen_addresses": "",
        "port": str(places.PORT),
        "unix_socket_directories": '"' + str(socket_dir).replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "cluster_name": "pgeverything",
        "logging_collector": "off",
        "log_checkpoints": "off",  # up to a line per five minutes, and the log does not rotate while it runs
    }
    if not durable:
        settings |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
    command: list[str | Path] = [binaries.directory / "postgres", "-D", cluster.data]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # A pid file that names a live process keeps the server from starting, although that may be a stranger
    # which got the number after a crash. We know that it is one. The variable, by which pg_ctl names its own
    # parent, says so; deleting the file instead would give away the check for shared memory that it enables.
    stale = read_postmaster(cluster.data)
    environment = {"PG_GRANDPARENT_PID": str(stale.pid)} if stale else {}
    _remove_empty(cluster.data / "postmaster.pid", socket_dir / f".s.PGSQL.{places.PORT}.lock")
    script = 'exec "$@" >>"$0" 2>&1 </dev/null & echo $!'
    try:
        answer = account.run(
            ["/bin/sh", "-c", script, cluster.log, *command], timeout=_READY_WAIT, environment=environment
        )
        return int(answer.stdout)
    except (OSError, ValueError) as error:
        raise LocalServerError(f"cannot start {command[0]} as {account.name!r}: {error}") from error


def _remove_empty(*lock_files: Path) -> None:
    """Remove lock files that a power cut left empty; PostgreSQL takes them for ones being written."""
    for path in lock_files:
        if path.exists() and path.stat().st_size == 0:
            path.unlink(missing_ok=True)


def _prepare_log(log: Path) -> int:
    """Move a large log aside, and return the position where the next server's output begins."""
    try:
        size = log.stat().st_size if log.exists() else 0
        if size <= _LARGEST_LOG:
            return size
        log.replace(log.with_name("server.log.1"))
    except OSError as error:
        raise LocalServerError(f"cannot move {log} aside: {error.strerror}") from error
    return 0


def _log_tail(log: Path, start: int = 0) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(start, log.stat().st_size - _TAIL_BYTES))
            return _tail(file.read().decode(errors="replace"))
    except OSError as error:
        return _tail(f"(it cannot be read: {error.strerror})")


def _tail(text: str) -> str:
    lines = text.strip().splitlines()[-_TAIL_LINES:]
    return "\n".join(f"    {line}" for line in lines) or "    (nothing)"


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
