"""What the environment says."""

from __future__ import annotations

import pytest

from pgeverything import settings
from pgeverything.errors import ConfigurationError

NAMES = ("PGEVERYTHING_URL", "DATABASE_URL", "PGHOST", "PGSERVICE", "PGDATABASE")


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_the_first_that_is_set_names_the_database(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.database_url() is None
    for name in reversed(NAMES[2:]):
        monkeypatch.setenv(name, "x")
        assert settings.database_url() == ("", f"${name}")
        monkeypatch.setenv(name, "")
        assert settings.database_url() is None
    monkeypatch.setenv("PGHOST", "x")
    monkeypatch.setenv("DATABASE_URL", "postgresql://two")
    assert settings.database_url() == ("postgresql://two", "$DATABASE_URL")
    monkeypatch.setenv("PGEVERYTHING_URL", "postgresql://one")
    assert settings.database_url() == ("postgresql://one", "$PGEVERYTHING_URL")
    monkeypatch.setenv("PGEVERYTHING_URL", "")
    assert settings.database_url() == ("postgresql://two", "$DATABASE_URL")


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg", "postgresql+asyncpg"])
def test_a_url_loses_its_driver(scheme: str) -> None:
    assert settings.conninfo(f"{scheme}://u:p@h/d?sslmode=require") == "postgresql://u:p@h/d?sslmode=require"


def test_libpqs_own_form_stays() -> None:
    assert settings.conninfo("host=h dbname=d") == "host=h dbname=d"
    assert settings.conninfo("") == ""


@pytest.mark.parametrize("url", ["mysql://h/d", "postgresql+psycopg2://h/d", "sqlite:///file", "://h"])
def test_other_databases_are_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a PostgreSQL URL"):
        settings.conninfo(url)


def test_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.flag("PGEVERYTHING_TEST_FLAG", True) is True
    assert settings.flag("PGEVERYTHING_TEST_FLAG", False) is False
    for text, value in [("on", True), ("1", True), (" TRUE ", True), ("off", False), ("0", False), ("No", False)]:
        monkeypatch.setenv("PGEVERYTHING_TEST_FLAG", text)
        assert settings.flag("PGEVERYTHING_TEST_FLAG", not value) is value
    monkeypatch.setenv("PGEVERYTHING_TEST_FLAG", "maybe")
    with pytest.raises(ConfigurationError, match="PGEVERYTHING_TEST_FLAG must be on or off, not 'maybe'"):
        settings.flag("PGEVERYTHING_TEST_FLAG", True)


def test_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.number("PGEVERYTHING_TEST_NUMBER", 10) == 10
    monkeypatch.setenv("PGEVERYTHING_TEST_NUMBER", " 7 ")
    assert settings.number("PGEVERYTHING_TEST_NUMBER", 10) == 7
    for text in ("0", "-1", "1.5", "many"):
        monkeypatch.setenv("PGEVERYTHING_TEST_NUMBER", text)
        with pytest.raises(ConfigurationError, match="must be a whole number of at least 1"):
            settings.number("PGEVERYTHING_TEST_NUMBER", 10)
