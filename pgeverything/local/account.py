"""The OS account that runs the local server: ourselves, or as root an existing unprivileged one."""

from __future__ import annotations

import os
import pwd
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from ..errors import LocalServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# `postgres` first: whoever can act as that account already owns every server on the machine, so sharing it
# gives nobody anything new. `nobody` is last: other daemons may run under it, and they could read the data.
_UNPRIVILEGED = ("postgres", "_postgres", "pgsql", "daemon", "nobody")

# The server outlives the process that starts it, so it must not keep that process's secrets in its
# environment, and PGDATA, PGPORT or PGOPTIONS meant for another server must not reach it.
_INHERITED = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TZ")


class _Identity(TypedDict, total=False):
    user: int
    group: int
    extra_groups: list[int]


@dataclass(frozen=True, slots=True)
class Account:
    """Who owns the server's files and runs its processes.

    Attributes:
        name: the account's name, for messages.
        uid: its user id.
        gid: its primary group id.
        dropped: whether this process is root and becomes the account for everything the server does.

    """

    name: str
    uid: int
    gid: int
    dropped: bool = False

    def run(
        self,
        command: Sequence[str | Path],
        *,
        timeout: float,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` as this account in a session of its own, and return its exit code and output.

        Args:
            command: the program and its arguments; no shell in between.
            timeout: seconds before it is killed.
            environment: variables to add to the few that are inherited.

        Raises:
            LocalServerError: it took longer than `timeout`.
            OSError: the account may not run it, or it is not there.

        """
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        identity: _Identity = {}
        if self.dropped:
            identity = {"user": self.uid, "group": self.gid, "extra_groups": []}
        try:
            return subprocess.run(  # noqa: S603  a list of our own making, never a shell line
                [os.fspath(part) for part in command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
                timeout=timeout,
                # The caller's directory may be one that the account cannot enter, and its home need not
                # exist.
                cwd="/",
                env={"PATH": os.defpath, **inherited, "HOME": "/", "LC_ALL": "C", **(environment or {})},
                umask=0o077,
                start_new_session=True,
                **identity,
            )
        except subprocess.TimeoutExpired as error:
            raise LocalServerError(f"{os.fspath(command[0])} did not finish within {timeout:g} s") from error

    def can_run(self, *command: str | Path) -> bool:
        """Whether the account can execute `command` and it succeeds."""
        try:
            return self.run(command, timeout=30).returncode == 0
        except OSError:
            return False


def current_account() -> Account:
    """Return the account of this process."""
    return Account(_name_of(os.geteuid()), os.geteuid(), os.getegid())


def server_account(owner: int | None = None) -> Account:
    """Return the account that the server runs as: ourselves, or as root an unprivileged one.

    Args:
        owner: the uid that owns the data already there; as root the server keeps running as that account.

    Raises:
        LocalServerError: running as root and no unprivileged account exists that root may switch to.

    """
    if os.geteuid() != 0:
        return current_account()
    candidates = [_entry(owner)] if owner else [_entry(name) for name in _UNPRIVILEGED]
    for entry in candidates:
        if entry is None or entry.pw_uid == 0:
            continue
        account = Account(entry.pw_name, entry.pw_uid, entry.pw_gid, dropped=True)
        # Not a formality: a container may have the account but not the right to switch to it.
        if account.can_run("/bin/sh", "-c", ":"):
            return account
    names = f"uid {owner}, the owner of the data" if owner else ", ".join(_UNPRIVILEGED)
    raise LocalServerError(
        "PostgreSQL refuses to run as root, and root cannot switch to an unprivileged account here (tried "
        f"{names}); run as an ordinary user, or set PGEVERYTHING_URL to a server that runs already"
    )


def _entry(account: str | int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(account) if isinstance(account, int) else pwd.getpwnam(account)
    except KeyError:
        return None


def _name_of(uid: int) -> str:
    entry = _entry(uid)
    return entry.pw_name if entry else f"uid {uid}"


def owner_name(path: Path) -> str:
    """Return the name of the account that owns `path`, for messages."""
    return _name_of(path.lstat().st_uid)
