"""The examples of README.md and docs/ run, page by page, against a fresh database.

Every fenced ``python``, ``sql`` and ``postgresql`` block of a page runs, in order: the Python ones in one module, the
others each as a script on the same database. A block below the line ``<!-- not run -->`` is left out.
"""

from __future__ import annotations

import os
import re
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from pgeverything import PgEverything

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LEFT_OUT = "<!-- not run -->"

_BLOCK = re.compile(
    r"^(?P<skip>" + re.escape(LEFT_OUT) + r"\n+)?```(?P<kind>python|sql|postgresql)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Block:
    """An example: its language, its text, and the line of the page on which the text begins."""

    kind: str
    code: str
    line: int
    runs: bool


def blocks(text: str) -> list[Block]:
    """Return the fenced Python and SQL examples of a page, in order."""
    return [
        Block(found["kind"], found["code"], text.count("\n", 0, found.start("code")) + 1, found["skip"] is None)
        for found in _BLOCK.finditer(text)
    ]


RUNNABLE = [page for page in PAGES if any(block.runs for block in blocks(page.read_text("utf-8")))]


@pytest.fixture
def database(new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database, named by the environment as it would be for a reader."""
    url = new_database()
    for name in os.environ.keys() & {"DATABASE_URL", "PGHOST", "PGSERVICE", "PGDATABASE"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PGEVERYTHING_URL", url)
    with PgEverything(url) as pg:
        pg.migrate()
    return url


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[types.ModuleType]:
    """A real module, because dataclasses and annotations are looked up in the module that defines them."""
    made = types.ModuleType("docs_example")
    monkeypatch.setitem(sys.modules, made.__name__, made)
    yield made
    for value in vars(made).values():  # what a reader's program closes by ending
        if isinstance(value, PgEverything):
            value.close()
        elif isinstance(value, Engine):
            value.dispose()


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_examples_run(page: Path, database: str, module: types.ModuleType) -> None:
    for block in blocks(page.read_text("utf-8")):
        if not block.runs:
            continue
        if block.kind == "python":
            # Compiled under the page's own name and lines, so that a traceback shows the line of the page.
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec"), vars(module))
        else:
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute(block.code.encode())


def test_few_examples_are_left_out() -> None:
    found = [block for page in PAGES for block in blocks(page.read_text("utf-8"))]
    left_out = [block for block in found if not block.runs]
    assert len(found) > 40
    assert len(left_out) <= len(found) // 10, "run them, or make them shell examples"


def test_the_public_face_is_not_promised_wrongly() -> None:
    """What the README imports from the package exists; what is not there yet is not in an example."""
    import pgeverything

    names = set(re.findall(r"from pgeverything import ([\w, ]+)", (ROOT / "README.md").read_text("utf-8")))
    assert names
    for name in ", ".join(names).split(", "):
        assert hasattr(pgeverything, name)
