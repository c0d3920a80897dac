"""What a check says, and how one is made: every check is a plan, which looks and judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from ..engine.plan import Plan

Verdict: TypeAlias = Literal["ok", "unknown", "warning", "problem"]

_WORST_LAST: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        verdict: "ok"; "warning" for what will be a problem, or is one for somebody else; "problem" for what keeps work
            from being done, or data from being safe, now; "unknown" where this role may not look.
        found: what was found, in a sentence.
        fix: what to do about it, in a sentence; None where there is nothing to do.
        figures: the numbers and names behind it.
    """

    name: str
    verdict: Verdict
    found: str
    fix: str | None = None
    figures: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return self.found if self.fix is None else f"{self.found}: {self.fix}"


@dataclass(frozen=True, slots=True)
class Health:
    """All checks of one examination, in the order in which to read them.

    Attributes:
        verdict: the worst of theirs.
        migrated: False when a migration is missing, None when that could not be seen; unless it is True, only the
            server was examined.
        checks: the checks.
    """

    verdict: Verdict
    migrated: bool | None
    checks: Sequence[Check]

    @classmethod
    def of(cls, checks: Sequence[Check], *, migrated: bool | None) -> Health:
        """Return the health that these checks come to."""
        place = max((_WORST_LAST.index(check.verdict) for check in checks), default=0)
        return cls(_WORST_LAST[place], migrated, tuple(checks))

    @property
    def ok(self) -> bool:
        """Whether no check found a problem; warnings are not one."""
        return self.verdict != "problem"

    def __getitem__(self, name: str) -> Check:
        """Return the check of that name.

        Raises:
            KeyError: none was made.
        """
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Examination:
    """A plan that makes one check or a few that read the same; its name is theirs when it cannot be carried out."""

    name: str
    plan: Callable[[], Plan[Sequence[Check]]]


def spell(names: Sequence[str], most: int = 3) -> str:
    """Return the first few of these, and how many there are besides."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def ago(seconds: float) -> str:
    """Return a length of time as a person says it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
