"""What is dead, beside jobs, and how it is grouped."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..engine import codec
from ..engine.plan import Rows
from ..events.values import Event, read_events


@dataclass(frozen=True, slots=True)
class DeadDelivery:
    """An event that a durable subscription could not deliver.

    `id` is from the same numbers as the ids of jobs. `event` is None when retention has dropped it: then a redrive
    cannot deliver it either. `deliveries` counts how often it was handed out, `crashes` how often its member was lost.
    """

    id: int
    subscription: str
    position: int
    event: Event | None
    deliveries: int
    crashes: int
    redriven: int
    reason: str
    fingerprint: str | None
    error: Mapping[str, Any] | None
    died_at: datetime


@dataclass(frozen=True, slots=True)
class DeadGroup:
    """Dead letters that died of the same thing: jobs of one task, or deliveries of one subscription.

    `latest_id` and the error are those of the newest of them.
    """

    task: str | None
    fingerprint: str | None
    reason: str | None
    count: int
    first_at: datetime
    last_at: datetime
    latest_id: int
    error_type: str | None
    error_message: str | None
    subscription: str | None = None


def read_deliveries(rows: Rows) -> list[DeadDelivery]:
    """Read dead deliveries with their events."""
    found = []
    for id_, name, position, deliveries, crashes, redriven, reason, fingerprint, error, died_at, *event in rows:
        [kept] = read_events([(position, *event)]) if event[0] is not None else [None]
        known = codec.decode(error) if error else None
        found.append(
            DeadDelivery(
                id_, name, position, kept, deliveries, crashes, redriven, reason, fingerprint, known, died_at
            )
        )  # fmt: skip
    return found


def read_groups(rows: Rows) -> list[DeadGroup]:
    """Read groups of jobs."""
    return [DeadGroup(*row) for row in rows]


def read_delivery_groups(rows: Rows) -> list[DeadGroup]:
    """Read groups of deliveries, whose first column is the subscription."""
    return [dataclasses.replace(DeadGroup(*row), task=None, subscription=row[0]) for row in rows]
