"""Tables for people and JSON for programs, on stdout; everything that is only said, on stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable


_SHORT = 20  # characters; a time has 19
_LEAST = 10  # to which a long text may be squeezed beside short columns
_LONGEST = 200  # characters of one cell on a terminal; `show` and --json have all of it


def say(text: str) -> None:
    """Tell the person something that is not data."""
    click.echo(text, err=True)


def counted(number: int, noun: str, many: str = "") -> str:
    """Return `1 job`, `2 jobs`; `many` where the plural is not made with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {many or noun + 's'}"


def emit_json(value: Any) -> None:
    """Print one JSON document: dataclasses as objects, times in ISO 8601."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=plain))


def emit_json_line(value: Any) -> None:
    """Print one JSON document on one line."""
    click.echo(json.dumps(value, ensure_ascii=False, default=plain))


def plain(value: Any) -> Any:
    """Return what `json.dumps` cannot write as something that it can."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)  # a number would lose digits on its way through a float
    raise TypeError(f"{type(value).__name__} is not JSON")


def emit_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table.

    On a terminal what is short stays whole (ids, times, states), long texts wrap, and very long ones are cut. Where
    nobody looks (a pipe, a file) everything is there, and each row is one line.
    """
    from rich.console import Console  # noqa: PLC0415 - 60 ms, which `--json` need not wait for
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    most = _LONGEST if console.is_terminal else None
    cells = [[_cell(value, most) for value in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading, whole in zip(headings, _whole(headings, cells, console.width), strict=True):
        table.add_column(heading, overflow="fold", no_wrap=whole)
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _whole(headings: Sequence[str], cells: Sequence[Sequence[Any]], width: int) -> list[bool]:
    """Say which columns are not to be wrapped: the shortest first, as long as they leave room for the others."""
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    room = width - 2 * (len(widths) - 1) - sum(min(each, _LEAST) for each in widths)
    most = 0
    for each in sorted(set(widths)):
        room -= widths.count(each) * (each - min(each, _LEAST))
        if each > _SHORT or room < 0:
            break
        most = each
    return [each <= most for each in widths]


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
    return json.dumps(value, ensure_ascii=False, default=plain) if isinstance(value, Mapping | list) else str(value)


def _cell(value: object, most: int | None) -> Any:
    from rich.text import Text  # noqa: PLC0415

    text = shown(value).replace("\n", " ")
    if most is not None and len(text) > most:
        text = text[: most - 3] + "..."
    return Text(text, justify="right" if isinstance(value, int | float) else None)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar on stderr where that is a terminal; yields what to call with the number done."""
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import Progress  # noqa: PLC0415

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=total)
        yield lambda done: progress.update(bar, completed=done)
