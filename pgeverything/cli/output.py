"""Tables for people and JSON for programs, on stdout; everything that is only said, on stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


def say(text: str) -> None:
    """Tell the person something that is not data."""
    click.echo(text, err=True)


def emit_json(value: Any) -> None:
    """Print one JSON document: dataclasses as objects, times in ISO 8601."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not JSON")


def emit_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; where nobody looks (a pipe, a file) each row stays on one line."""
    from rich.console import Console  # noqa: PLC0415 - 60 ms, which `--json` need not wait for
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)


def emit_fields(fields: Mapping[str, object]) -> None:
    """Print `name  value` lines of what is known."""
    known = {name: shown(value) for name, value in fields.items() if value is not None and value != {}}
    width = max(map(len, known), default=0)
    for name, text in known.items():
        click.echo(f"{name:{width}}  {text}")


def shown(value: object) -> str:
    """Return a value as text that a terminal cannot misunderstand: what a stranger enqueued is printed here."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
    if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
        value = ", ".join(value)
    text = value if isinstance(value, str) else _text(value)
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain) if isinstance(value, Mapping | list) else str(value)


def _cell(value: object) -> Any:
    from rich.text import Text  # noqa: PLC0415

    return Text(shown(value).replace("\n", " "), justify="right" if isinstance(value, int | float) else None)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr where that is a terminal; yields what to call with the number done."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda done: progress.update(bar, completed=done)
