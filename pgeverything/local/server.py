"""The private local server: find it running or make it run, stop it, say how it is."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ..errors import LocalServerError
from . import cluster, places
from .account import server_account
from .binaries import BIN_VARIABLE, find_binaries, readable_copy
from .cluster import Cluster, LocalServer, LocalStatus

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK_WAIT = 180.0  # seconds: somebody else's initdb and start, on a slow and busy machine
_POLL = 0.02  # seconds

_logger = logging.getLogger(__name__)


def ensure(data_home: Path | None = None, *, durable: bool = True) -> LocalServer:
    """Return the running local server; create and start it first where necessary.

    Any number of processes may call this at the same time: one does the work and all get the same server. It
    survives the process that started it, until ``stop()`` or the machine's end. It listens on a Unix socket
    that only the calling user (and root) can reach. As root it runs as an existing unprivileged account.

    Args:
        data_home: the directory that holds everything; None means ``$PGEVERYTHING_HOME``, or the platform's
            directory for user data (as root: for system data).
        durable: False starts it without fsync: faster, and a crash of the machine may destroy the data. For
            tests, which throw it away. A server that runs already stays as it is.

    Raises:
        LocalServerError: no PostgreSQL was found, or it could not be initialised or started; the message ends
            with what the server said.

    """
    home = places.home_directory(data_home)
    places.check_home(home)
    server = _running(home)
    if server is not None:
        return server
    account = server_account(places.data_owner(home))
    places.prepare_home(home, account)
    with _exclusive(home):
        used = _used(home)
        binaries = find_binaries([one.major for one in used])
        chosen = Cluster(home / str(binaries.major))
        places.prepare_folder(chosen.folder, account)
        process = chosen.process()
        if process is not None:
            # Somebody else has just started it, or it was still recovering when its starter gave up; or it is
            # shutting down.
            server = cluster.wait_until_ready(chosen, process.pid)
            if server is not None:
                return server
        binaries = readable_copy(binaries, account, home)
        if chosen not in used:
            if used:
                _logger.warning(
                    "the local server starts empty as PostgreSQL %s; the data of version %s stays in %s, "
                    "and is used again when only its programs are installed",
                    binaries.major,
                    ", ".join(str(one.major) for one in used),
                    home,
                )
            cluster.initialise(chosen, binaries, account, durable=durable)
        return cluster.start(chosen, binaries, account, durable=durable)


def stop(data_home: Path | None = None) -> list[int]:
    """Stop the local server: disconnect everybody, roll back what is open, write everything, end.

    Args:
        data_home: as for :func:`ensure`.

    Returns:
        The major versions of the servers that were stopped: usually one, none if nothing was running.

    Raises:
        LocalServerError: it did not end within a minute.

    """
    home = places.home_directory(data_home)
    places.check_home(home)
    if not _used(home):
        return []
    with _exclusive(home):
        return [one.major for one in _used(home) if cluster.stop(one)]


def status(data_home: Path | None = None) -> list[LocalStatus]:
    """Say how the local server is, without starting or changing anything.

    Args:
        data_home: as for :func:`ensure`.

    Returns:
        One entry for each major version that has data, the newest first; empty before the first ``ensure()``.

    Raises:
        LocalServerError: the directory belongs to somebody else.

    """
    home = places.home_directory(data_home)
    places.check_home(home)
    return [one.status() for one in _used(home)]


def _used(home: Path) -> list[Cluster]:
    """Return the clusters that exist, the newest first."""
    found = (Cluster(folder) for folder in places.major_folders(home))
    return [one for one in found if one.data.is_dir()]


def _running(home: Path) -> LocalServer | None:
    """Return the newest server that runs already, unless the caller asks for certain programs.

    This is the usual case: it takes 5 ms, and neither the lock nor the search for programs.
    """
    if os.environ.get(BIN_VARIABLE):
        return None
    return next((server for one in _used(home) if (server := one.running()) is not None), None)


@contextmanager
def _exclusive(home: Path) -> Iterator[None]:
    """Hold the home's lock. The kernel releases it when its holder ends, however it ends."""
    deadline = time.monotonic() + _LOCK_WAIT
    path = home / "lock"
    try:
        # Closed to others: whoever can open a file, even for reading, can lock it.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LocalServerError(f"cannot open {path}: {error.strerror}") from error
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LocalServerError(
                        f"another process has been starting or stopping the local server for {_LOCK_WAIT:g} "
                        f"s and holds {path}; end it and try again"
                    ) from None
                time.sleep(_POLL)
        yield
    finally:
        os.close(descriptor)
