"""The way to the database: what was found out from outside a session."""

from __future__ import annotations

from .. import settings
from ..engine.probe import Probe
from .values import Check, Health

CLOCKS = 5.0  # seconds that two clocks may differ without a word


def unreachable(why: str) -> Health:
    """Return the health of a server that does not answer."""
    fix = "start it, or name another database with --url or $PGEVERYTHING_URL"
    return Health.of([Check("server", "problem", f"the server cannot be reached ({why})", fix)], migrated=None)


def way(probe: Probe) -> list[Check]:
    """Judge the way to the database."""
    return [_listen(probe), _pooler(probe), _clock(probe)]


def _listen(probe: Probe) -> Check:
    if probe.listens:
        return Check("listen", "ok", "notifications arrive: idle workers start a job within milliseconds")
    found = "notifications do not arrive on this connection: an idle worker sees a job with its next poll, within 1 s"
    fix = "give workers a direct connection or a session pool, or a shorter poll="
    return Check("listen", "warning", found, fix)


def _pooler(probe: Probe) -> Check:
    figures = {"pooled": probe.pooled, "prepares": probe.prepares, "closes": probe.closes}
    if not probe.pooled:
        return Check("pooler", "ok", "the connection is direct", figures=figures)
    if probe.prepares is False:
        found = "a pooler answers, and loses prepared statements"
        fix = "set PGEVERYTHING_PREPARE=off, or max_prepared_statements in PgBouncer 1.21 with a libpq of 17 or newer"
        return Check("pooler", "problem", found, fix, figures)
    if probe.prepares and not probe.closes:
        found = "a pooler answers that keeps prepared statements, and psycopg's libpq is too old to close one there"
        fix = "set PGEVERYTHING_PREPARE=off, or install psycopg[binary] with a libpq of 17 or newer"
        return Check("pooler", "warning", found, fix, figures)
    if probe.prepares is None and not probe.listens and settings.flag("PGEVERYTHING_PREPARE", True):
        found = "a pooler answers, and whether prepared statements survive it could not be seen"
        return Check("pooler", "unknown", found, "set PGEVERYTHING_PREPARE=off if it does not handle them", figures)
    known = "prepared statements survive it" if probe.prepares else "prepared statements are off, or not at risk"
    return Check("pooler", "ok", f"a pooler answers; {known}", figures=figures)


def _clock(probe: Probe) -> Check:
    where = "ahead of" if probe.ahead > 0 else "behind"
    found = "the clocks of the server and this machine agree"
    if abs(probe.ahead) > CLOCKS:
        found = f"the server's clock is {abs(probe.ahead):.0f} s {where} this machine's; only the server's counts here"
    return Check("clock", "ok", found, figures={"ahead": round(probe.ahead, 3)})
