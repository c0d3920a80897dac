"""Shows each ``op`` of a namespace as the method it is, with the signature and the docstring of its plan.

To Sphinx, ``JobQueue.enqueue`` is an attribute whose value is a descriptor. For the length of the build, and in its
process only, a function with the plan's parameters and result takes the descriptor's place.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgeverything import AsyncDeadLetters, AsyncJobQueue, DeadLetters, JobQueue
from pgeverything.engine.plan import Async, op

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NAMESPACES = (JobQueue, AsyncJobQueue, DeadLetters, AsyncDeadLetters)

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

        async def method(self: Any, *args: Any, **kwargs: Any) -> Any: ...
    else:

        def method(self: Any, *args: Any, **kwargs: Any) -> Any: ...

    signature = inspect.signature(operation.plan)
    found = _RESULT.fullmatch(str(signature.return_annotation))
    if found is None:
        raise TypeError(f"{operation.plan.__qualname__} is annotated {signature.return_annotation!r}, not Plan[...]")
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    method.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[itself, *signature.parameters.values()], return_annotation=found[1]
    )
    method.__annotations__ = {}  # Sphinx would take `args: Any` from here for a parameter of that name
    method.__name__, method.__qualname__ = name, f"{namespace.__qualname__}.{name}"
    method.__module__, method.__doc__ = namespace.__module__, operation.plan.__doc__
    return method


def _install(_app: Sphinx) -> None:
    for namespace in NAMESPACES:
        for name, operation in operations(namespace).items():
            setattr(namespace, name, as_method(name, operation, namespace))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("builder-inited", _install)
    return {"parallel_read_safe": True, "version": "1"}
