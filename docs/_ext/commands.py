"""The ``commands`` directive: a click command and all below it, as the program itself prints them with ``--help``."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import click
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_WIDTH = 88


def walk(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[click.Context]:
    """Yield a context for the command and for each below it, in the order of its help."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=_WIDTH, max_content_width=_WIDTH)
    yield context
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            if found is not None and not found.hidden:
                yield from walk(found, each, context)


def load(place: str) -> click.Command:
    """Return the command at ``package.module:name``."""
    module, _, name = place.partition(":")
    command = getattr(importlib.import_module(module), name)
    if not isinstance(command, click.Command):
        raise TypeError(f"{place} is {command!r}, not a click command")
    return command


class Commands(SphinxDirective):
    """``commands:: package.module:name`` and what a person types for it: one section for each command."""

    required_arguments = 2  # the second one may hold spaces: "pgeverything local"
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Build the sections."""
        sections: list[nodes.Node] = []
        for context in walk(load(self.arguments[0]), self.arguments[1]):
            path = context.command_path
            section = nodes.section(ids=[nodes.make_id(path)], names=[path])
            section += nodes.title(path, path)
            help_text = context.get_help()
            section += nodes.literal_block(help_text, help_text, language="text")
            self.state.document.note_implicit_target(section, section)
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "version": "1"}
