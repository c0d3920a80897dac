"""Everything that the health check asks."""

from __future__ import annotations

from .session import Session


def exercise(session: Session) -> None:
    run = session.run
    run("doctor.settings", names=["fsync"])
    for name in (
        "connections",
        "ages",
        "hidden",
        "tables",
        "indexes",
        "usage",
        "lacking",
        "ahead",
        "strays",
        "fence",
        "backlogs",
        "unsealed",
    ):
        run(f"doctor.{name}")
    run("doctor.holders", patience=0.0, transactions=0)
    run("doctor.blocked", patience=0.0)
    for name in ("workers", "crashing", "sweeps", "oldest"):
        run(f"doctor.{name}")
    run("doctor.dead", recent=3600.0)
    run("doctor.bounds")
