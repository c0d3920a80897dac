"""Shows each ``op`` of a namespace as the method it is, with the signature and the docstring of its plan.

To Sphinx, ``JobQueue.enqueue`` is an attribute whose value is a descriptor. For the length of the build, and in its
process only, a function with the plan's parameters and result takes the descriptor's place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgeverything import (
    AsyncAuditTrail,
    AsyncCache,
    AsyncDeadLetters,
    AsyncEventLog,
    AsyncJobQueue,
    AsyncLocks,
    AsyncPubSub,
    AsyncScheduler,
    AuditTrail,
    Cache,
    DeadLetters,
    EventLog,
    JobQueue,
    Locks,
    PubSub,
    Scheduler,
)
from pgeverything.audit import AsyncBoundAudit, BoundAudit
from pgeverything.cache import AsyncBoundCache, BoundCache
from pgeverything.engine.plan import Async, method, op
from pgeverything.locks import AsyncBoundLocks, BoundLocks
from pgeverything.pubsub import AsyncBoundPubSub, BoundPubSub

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NAMESPACES = (
    JobQueue,
    AsyncJobQueue,
    EventLog,
    AsyncEventLog,
    DeadLetters,
    AsyncDeadLetters,
    Scheduler,
    AsyncScheduler,
    Cache,
    AsyncCache,
    BoundCache,
    AsyncBoundCache,
    Locks,
    AsyncLocks,
    BoundLocks,
    AsyncBoundLocks,
    PubSub,
    AsyncPubSub,
    BoundPubSub,
    AsyncBoundPubSub,
    AuditTrail,
    AsyncAuditTrail,
    BoundAudit,
    AsyncBoundAudit,
)

_RESULT = re.compile(r"Plan\[(.*)\]", re.DOTALL)


def operations(namespace: type) -> dict[str, op[..., Any]]:
    """Return the operations of a namespace class by name, those of its bases included."""
    found: dict[str, op[..., Any]] = {}
    for cls in reversed(namespace.__mro__):
        found |= {name: value for name, value in vars(cls).items() if isinstance(value, op)}
    return found


def as_method(name: str, operation: op[..., Any], namespace: type) -> Callable[..., Any]:
    """Return a function that looks as the operation does to a caller of this namespace."""
    if issubclass(namespace, Async):

        async def shown(self: Any, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def shown(self: Any, *args: Any, **kwargs: Any) -> Any: ...

    signature = inspect.signature(operation.plan)
    found = _RESULT.fullmatch(str(signature.return_annotation))
    if found is None:
        raise TypeError(f"{operation.plan.__qualname__} is annotated {signature.return_annotation!r}, not Plan[...]")
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = list(signature.parameters.values())[isinstance(operation, method) :]  # its first one is the namespace
    shown.__signature__ = signature.replace(  # type: ignore[attr-defined]  # what `inspect` looks for
        parameters=[itself, *parameters], return_annotation=found[1]
    )
    shown.__annotations__ = {}  # Sphinx would take `args: Any` from here for a parameter of that name
    shown.__name__, shown.__qualname__ = name, f"{namespace.__qualname__}.{name}"
    shown.__module__, shown.__doc__ = namespace.__module__, operation.plan.__doc__
    return shown


def _install(_app: Sphinx) -> None:
    for namespace in NAMESPACES:
        for name, operation in operations(namespace).items():
            setattr(namespace, name, as_method(name, operation, namespace))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", _install)
    return {"parallel_read_safe": True, "version": "1"}
