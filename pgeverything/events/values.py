"""What an event is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..engine import codec
from ..engine.plan import Rows

PARTITION = 5_000_000
"""How many positions a partition of the log holds."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event of the log.

    `position` is its place, the same for every reader; positions increase and have gaps. `version` counts the events of
    its topic and key from 1, and is None without a key. `data` is a JSON value. `recorded_at` is the database's clock
    when it was appended, which is before its transaction was committed.
    """

    position: int
    topic: str
    key: str | None
    version: int | None
    type: str
    data: Any
    headers: Mapping[str, str]
    recorded_at: datetime


def read_events(rows: Rows) -> list[Event]:
    """Read rows of position, topic, key, version, type, data, headers and time."""
    decode = codec.decode
    return [
        Event(position, topic, key, version, type_, decode(data), decode(headers) if headers else {}, recorded_at)
        for position, topic, key, version, type_, data, headers, recorded_at in rows
    ]
