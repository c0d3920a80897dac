"""Databases that cannot be: the first use says why, and not a pool, half a minute later, that it has no connection."""

from __future__ import annotations

import asyncio

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from pgeverything import AsyncPgEverything, PgEverything
from pgeverything.errors import ConfigurationError

NOBODY = "postgresql://127.0.0.1:1/nowhere"  # no service has port 1


def test_the_first_use_says_why() -> None:
    with PgEverything(NOBODY) as pg, pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1.*port 1") as error:
        pg.jobs.counts()
    assert not isinstance(error.value, PoolTimeout)


def test_the_first_use_says_why_with_asyncio() -> None:
    async def use() -> None:
        async with AsyncPgEverything(NOBODY) as pg:
            await pg.jobs.counts()

    with pytest.raises(psycopg.OperationalError, match=r"127\.0\.0\.1.*port 1") as error:
        asyncio.run(use())
    assert not isinstance(error.value, PoolTimeout)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("secret", 'missing "="'),
        ("postgresql://u@h/d?sslmoode=require", "invalid URI query parameter"),
        ("postgresql://u:secret%@h/d", "invalid percent-encoded token"),
        ("postgresql://u:secret@[h/d", "end of string reached"),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_source_and_not_repeated(
    url: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGEVERYTHING_URL", raising=False)
    monkeypatch.setenv("DATABASE_URL", url)
    for target, source in ((None, r"\$DATABASE_URL"), (url, "the database's URL")):
        refusal = rf"{source} cannot be read \({reason}.*write postgresql://"
        with PgEverything(target) as pg, pytest.raises(ConfigurationError, match=refusal) as error:
            pg.jobs.counts()
        assert "secret" not in str(error.value)
