"""Topics and the patterns that choose them: dotted tokens, `*` for one token, `>` for all the rest."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from ..errors import InvalidArgument

MOST_TOPIC_BYTES = 200

_TOPIC = re.compile(r"[^.*>\s]+(?:\.[^.*>\s]+)*")
_PATTERN = re.compile(r"(?:\*|[^.*>\s]+)(?:\.(?:\*|[^.*>\s]+))*(?:\.>)?|>")
_SPECIAL = re.compile(r"([!-/:-@\[-`{-~])")  # what means something to a regular expression is among these


@dataclass(frozen=True, slots=True)
class Topics:
    """Which topics a pattern chooses, in the terms of a statement.

    `topic` is the only one, where there is one. Else names are from `low` up to `high` bytewise, which an index
    finds, and match `regex`; each may be None and chooses nothing away then.
    """

    pattern: str
    topic: str | None = None
    low: str | None = None
    high: str | None = None
    regex: str | None = None

    @property
    def everything(self) -> bool:
        """Whether all topics are chosen."""
        return self.topic is None and self.low is None and self.regex is None

    def params(self) -> dict[str, object]:
        """Return the choice as statement parameters."""
        return {
            "everything": self.everything,
            "topic": self.topic,
            "low": self.low,
            "high": self.high,
            "regex": self.regex,
        }


def check_topic(value: object) -> str:
    """Return the name of a topic.

    Raises:
        InvalidArgument: it is not 1 to 200 bytes of tokens with a dot between each two, or a token holds a space, a
            wildcard or what cannot be printed.
    """
    if not isinstance(value, str) or not _TOPIC.fullmatch(value) or not _fits(value):
        raise InvalidArgument(
            f"topic={value!r} must be tokens with dots between them, like 'orders.eu.paid': 1 to "
            f"{MOST_TOPIC_BYTES} bytes, printable, without spaces, '*' or '>'"
        )
    return value


def _fits(text: str) -> bool:
    return text.isprintable() and len(text.encode()) <= MOST_TOPIC_BYTES


def compile_pattern(pattern: str | None) -> Topics:
    """Return what a pattern chooses; None and `>` choose every topic.

    `*` stands for exactly one token, `>` at the end for one or more: `orders.*.paid`, `orders.>`.

    Raises:
        InvalidArgument: it is not a pattern.
    """
    if pattern is None or pattern == ">":
        return Topics(">")
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern) or not _fits(pattern):
        raise InvalidArgument(
            f"topic={pattern!r} must be a topic or a pattern of topics, like 'orders.*.paid' or 'orders.>': '*' is one "
            "whole token, '>' stands last and is all the rest"
        )
    return _compiled(pattern)


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Topics:
    tokens = pattern.split(".")
    wild = [token in ("*", ">") for token in tokens]
    if not any(wild):
        return Topics(pattern, topic=pattern)
    literal = tokens[: wild.index(True)]
    low = high = None
    if literal:
        stem = ".".join(literal)
        low, high = f"{stem}.", f"{stem}/"  # a slash is the byte after a dot
    if tokens[len(literal) :] == [">"]:
        return Topics(pattern, low=low, high=high)
    return Topics(pattern, low=low, high=high, regex=f"^{'[.]'.join(map(_token, tokens))}$")


def _token(token: str) -> str:
    """Return a token as a regular expression that Postgres and Python read alike."""
    if token == "*":  # noqa: S105
        return "[^.]+"
    return ".+" if token == ">" else _SPECIAL.sub(r"\\\1", token)  # noqa: S105
