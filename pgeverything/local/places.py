"""Where the local server keeps its files, and how their directories come to be private.

Under the home are ``lock``, ``bin/`` (copied binaries, only as root) and one folder per major version::

    18/                 mode 0700, owned by the account that runs the server
    18/data/            the cluster
    18/server.log       what the server printed, one older copy beside it
    18/.s.PGSQL.5432    the Unix socket, when the path is short enough for one

As root the home itself stays root's: the server's account can enter it (0711) but cannot exchange the lock or
the binaries that root runs.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tempfile
from pathlib import Path

import platformdirs

from ..errors import LocalServerError
from .account import Account, owner_name

_NAME = "pgeverything"
HOME_VARIABLE = "PGEVERYTHING_HOME"
PORT = 5432  # only part of the socket's file name: the server listens on no TCP port

# sockaddr_un.sun_path holds 104 bytes on macOS and 108 on Linux, with the final NUL.
_LONGEST_SOCKET = 99


def home_directory(data_home: Path | None) -> Path:
    """Return the directory that holds everything: `data_home`, ``$PGEVERYTHING_HOME``, or the default.

    Root's default is a system directory, because the unprivileged account that runs the server cannot reach
    one below ``/root``, and no permission there is ours to widen.
    """
    named = data_home or os.environ.get(HOME_VARIABLE)
    if named:
        # Resolved, so that one server has one name however its directory was reached.
        return Path(named).expanduser().resolve()
    if os.geteuid() == 0:
        linux = sys.platform == "linux"
        return Path("/var/lib/pgeverything" if linux else platformdirs.site_data_dir(_NAME, False)).resolve()
    return Path(platformdirs.user_data_dir(_NAME, False)).resolve()


def check_home(home: Path) -> None:
    """Refuse a home that somebody else controls: they could put a server of theirs, or binaries, in our way.

    Raises:
        LocalServerError: `home` exists and is not a directory of ours alone, or cannot be looked at.

    """
    try:
        info = home.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise LocalServerError(
            f"cannot look into {home}: {error.strerror}; set {HOME_VARIABLE} to a directory of yours"
        ) from error
    if not stat.S_ISDIR(info.st_mode):
        raise LocalServerError(f"{home} is not a directory; remove it, or set {HOME_VARIABLE} to a directory")
    if info.st_uid != os.geteuid():
        raise LocalServerError(
            f"{home} belongs to {owner_name(home)}; run as that account, or set {HOME_VARIABLE} to a directory of yours"
        )
    if info.st_mode & 0o022:
        raise LocalServerError(
            f"{home} can be written to by others (mode {stat.S_IMODE(info.st_mode):04o}); "
            f"take that away with `chmod go-w`, or set {HOME_VARIABLE} to another directory"
        )


def prepare_home(home: Path, account: Account) -> None:
    """Create `home` where it is missing, and see that `account` can reach it.

    Raises:
        LocalServerError: it cannot be created, is not ours, or the server's account cannot enter it.

    """
    if not home.exists():
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            _create(home, 0o711 if account.dropped else 0o700)
        except OSError as error:
            raise LocalServerError(
                f"cannot create {home}: {error.strerror}; set {HOME_VARIABLE} to a directory that you can write to"
            ) from error
    check_home(home)
    if account.dropped and not account.can_run("/bin/sh", "-c", 'cd "$1"', "sh", home):
        raise LocalServerError(
            f"as root the server runs as {account.name!r}, and that account cannot enter {home}; no "
            f"permissions were changed: set {HOME_VARIABLE} to a path that it can reach, such as "
            "/var/lib/pgeverything"
        )


def major_folders(home: Path) -> list[Path]:
    """Return the folders of the major versions that have been used, the newest first."""
    if not home.is_dir():
        return []
    found = [path for path in home.iterdir() if path.name.isdecimal() and path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: int(path.name), reverse=True)


def data_owner(home: Path) -> int | None:
    """Return the uid that owns the data under `home`, or None where there is none."""
    folders = major_folders(home)
    return folders[0].lstat().st_uid if folders else None


def prepare_folder(folder: Path, account: Account) -> None:
    """Create the folder of a major version for `account`, mode 0700, or check the one that exists.

    Raises:
        LocalServerError: it cannot be created, or belongs to another account.

    """
    try:
        if not folder.exists():
            _create(folder, 0o700, account)
    except OSError as error:
        raise LocalServerError(f"cannot create {folder}: {error.strerror}") from error
    for path in (folder, folder / "data"):
        if path.exists() and path.lstat().st_uid != account.uid:
            raise LocalServerError(
                f"{path} belongs to {owner_name(path)}, but the server runs as {account.name}; "
                f"give it back its owner, or set {HOME_VARIABLE} to another directory"
            )


def socket_directory(folder: Path, account: Account) -> Path:
    """Return a directory for the Unix socket that only `account` (and root) can enter.

    That is `folder` itself, unless its path is too long for a socket address. Then it is a private directory
    in /tmp: not $XDG_RUNTIME_DIR, which is removed at logout while the server goes on.

    Raises:
        LocalServerError: none could be created.

    """
    if _fits(folder):
        return folder
    digest = hashlib.sha256(os.fsencode(folder)).hexdigest()[:12]
    wanted = Path("/tmp", f"pgeverything-{account.uid}-{digest}")  # noqa: S108  its owner and mode are checked
    try:
        if not os.path.lexists(wanted):
            _create(wanted, 0o700, account)
        if _is_private(wanted, account):
            return wanted
        # Somebody else made it first. A running server's pid file says where its socket is, so any name will
        # do.
        unguessable = Path(tempfile.mkdtemp(prefix="pgeverything-", dir="/tmp"))
        _give(unguessable, account)
    except OSError as error:
        raise LocalServerError(f"cannot create a directory for the socket in /tmp: {error.strerror}") from error
    return unguessable


def _fits(directory: Path) -> bool:
    return len(os.fsencode(directory / f".s.PGSQL.{PORT}")) <= _LONGEST_SOCKET


def _is_private(directory: Path, account: Account) -> bool:
    info = directory.lstat()
    return stat.S_ISDIR(info.st_mode) and info.st_uid == account.uid and stat.S_IMODE(info.st_mode) == 0o700


def _create(path: Path, mode: int, account: Account | None = None) -> None:
    """Create `path` with its final owner and mode in one step; whoever creates it first wins.

    A process that is killed half-way leaves an empty directory under another name, never a half-made `path`.
    """
    fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        fresh.chmod(mode)
        _give(fresh, account)
        fresh.rename(path)
    except OSError:
        fresh.rmdir()
        if not os.path.lexists(path):
            raise


def _give(directory: Path, account: Account | None) -> None:
    if account is not None and account.dropped:
        os.chown(directory, account.uid, account.gid, follow_symlinks=False)
