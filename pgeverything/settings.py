"""What the environment says, read where it is needed and nowhere else."""

from __future__ import annotations

import os

from .errors import ConfigurationError

URL_EXAMPLE = "postgresql://user@host/database"


def database_url() -> tuple[str, str] | None:
    """Return the connection string the environment names, and the variable it is in, or None when it names none.

    ``$PGEVERYTHING_URL``, then ``$DATABASE_URL``; an empty string, which lets libpq read its own variables, when one of
    ``PGHOST``, ``PGSERVICE`` or ``PGDATABASE`` is set.
    """
    for name in ("PGEVERYTHING_URL", "DATABASE_URL"):
        if url := os.environ.get(name):
            return url, f"${name}"
    for name in ("PGHOST", "PGSERVICE", "PGDATABASE"):
        if os.environ.get(name):
            return "", f"${name}"
    return None


def conninfo(url: str, source: str = "the database's URL") -> str:
    """Return a URL as libpq takes it: without SQLAlchemy's driver name.

    Args:
        url: a URL, or libpq's own form, ``host=... dbname=...``.
        source: where it was found, for the error message.

    Raises:
        ConfigurationError: it is a URL of something else.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url  # "host=... dbname=...", or empty: libpq's own form
    if scheme not in ("postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"):
        raise ConfigurationError(
            f"{source} begins with {scheme}://, which is not a PostgreSQL URL: write {URL_EXAMPLE}"
        )
    return f"postgresql://{rest}"


def flag(name: str, default: bool) -> bool:
    """Read an on/off variable.

    Raises:
        ConfigurationError: it is set to something else.
    """
    text = os.environ.get(name, "").strip().lower()
    if text in ("", "on", "1", "true", "yes"):
        return True if text else default
    if text in ("off", "0", "false", "no"):
        return False
    raise ConfigurationError(f"${name} must be on or off, not {text!r}")


def number(name: str, default: int, least: int = 1) -> int:
    """Read a whole number.

    Raises:
        ConfigurationError: it is not a number of at least `least`.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < least:
        raise ConfigurationError(f"${name} must be a whole number of at least {least}, not {text!r}")
    return int(text)
