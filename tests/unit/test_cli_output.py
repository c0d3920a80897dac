"""Tables on a terminal: what is short stays whole, and nothing is lost where nobody looks."""

from __future__ import annotations

import click
import pytest
import rich.console

from pgeverything.cli.output import counted, emit_table

ROWS = [(1, "0ce256729d95", "2026-11-27 01:31:19", "no such customer: " + "x" * 300)]
HEADINGS = ("id", "fingerprint", "died", "error")


def table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, columns: int | None) -> str:
    if columns is not None:
        monkeypatch.setattr(rich.console.Console, "is_terminal", True)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TERM", "xterm")
    emit_table(HEADINGS, ROWS)
    return click.unstyle(capsys.readouterr().out)


def test_ids_and_times_are_not_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = table(monkeypatch, capsys, columns=50)
    assert " 1  0ce256729d95  2026-11-27 01:31:19  no such" in page
    assert max(map(len, page.splitlines())) <= 50


def test_where_not_all_fits_the_shortest_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = table(monkeypatch, capsys, columns=42)
    assert " 1  0ce256729d95  2026-11-2" in page
    assert max(map(len, page.splitlines())) <= 42


def test_a_very_long_text_is_cut_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    piped = table(monkeypatch, capsys, columns=None)
    assert len(piped.splitlines()) == 2
    assert piped.count("x") == 300
    seen = table(monkeypatch, capsys, columns=80)
    assert seen.count("x") < 200
    assert "..." in seen


def test_one_and_many() -> None:
    assert [counted(n, "row") for n in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert counted(2, "process", "processes") == "2 processes"
