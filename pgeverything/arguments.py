"""A task's arguments: checked against the handler's signature, sent as one JSON object, read back as types.

The JSON object maps parameter names to values. What the caller leaves out is not in it, so a default is the
handler's business at run time: a new default applies to jobs that are already queued. Every named parameter
can be sent. ``*args`` and ``**kwargs`` cannot: with them, a misspelt name would be data instead of an error.

Values are proven at enqueue by the very decoding that the worker will do: encoded, then decoded by annotation
in one msgspec call, strictly (``"7"`` is no ``int``). For ``f(n: int)``, :meth:`Arguments.bind` takes
1.2 µs and :meth:`Arguments.call_args` 0.3 µs.
"""

from __future__ import annotations

import inspect
import types
import typing
from typing import TYPE_CHECKING, Any

import msgspec
import msgspec.inspect

from .engine.codec import encode
from .errors import InvalidArgument, InvalidTaskArguments, TaskError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_NOT_READABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_NOT_IN_JSON = (msgspec.inspect.CustomType, msgspec.inspect.ExtType)
# What msgspec reads from the key of a JSON object. It takes the other types and then fails on every job.
_KEYS = (
    msgspec.inspect.AnyType,
    msgspec.inspect.StrType,
    msgspec.inspect.IntType,
    msgspec.inspect.FloatType,
    msgspec.inspect.BytesType,
    msgspec.inspect.DateTimeType,
    msgspec.inspect.DateType,
    msgspec.inspect.TimeType,
    msgspec.inspect.TimeDeltaType,
    msgspec.inspect.UUIDType,
    msgspec.inspect.DecimalType,
    msgspec.inspect.EnumType,
    msgspec.inspect.LiteralType,
    msgspec.inspect.UnionType,
)


class Arguments:
    """The parameters of one handler, compiled once: calls into JSON text, JSON text into calls.

    Attributes:
        description: the handler as error messages show it: ``send_welcome(user_id: int)``.
        context: the name of the parameter that the worker fills with its context, or None.

    """

    __slots__ = (
        "_by_name",
        "_by_position",
        "_decode",
        "_defaults",
        "_positional_only",
        "_required",
        "_signature",
        "_texts",
        "context",
        "description",
    )

    def __init__(
        self, description: str, signature: inspect.Signature, annotations: dict[str, Any], context: str | None
    ) -> None:
        parameters = signature.parameters.values()
        sent = [parameter for parameter in parameters if parameter.name != context]
        self.description = description
        self.context = context
        self._signature = signature.replace(parameters=sent)
        self._by_position = [p.name for p in sent if p.kind is not p.KEYWORD_ONLY]
        self._by_name = frozenset(p.name for p in sent if p.kind is not p.POSITIONAL_ONLY)
        self._required = frozenset(p.name for p in sent if p.default is p.empty)
        self._defaults = len(sent) > len(self._required)
        self._positional_only = [(p.name, p.default) for p in parameters if p.kind is p.POSITIONAL_ONLY]
        self._decode = _compile(description, sent, annotations)
        self._texts = [name for name, kind in annotations.items() if _takes_text(msgspec.inspect.type_info(kind))]

    @classmethod
    def of(cls, function: Callable[..., Any], context_type: type) -> Arguments:
        """Read the signature of `function`.

        Args:
            function: the handler, ``def`` or ``async def``.
            context_type: a parameter annotated with this class is filled by the worker and never sent. The
                class may be imported under ``if TYPE_CHECKING:``.

        Raises:
            TaskError: the signature cannot be sent as named JSON values: an annotation cannot be resolved or
                is not a type that JSON can hold, there is ``*args`` or ``**kwargs``, or a second context.

        """
        if not inspect.isroutine(function):
            raise TaskError(f"{function!r} is not a function; write a def or async def that calls it")
        signature = _signature(function)
        annotations = {
            name: _resolve(function, name, annotation, context_type)
            for name, annotation in ((p.name, p.annotation) for p in signature.parameters.values())
        }
        contexts = [name for name, kind in annotations.items() if kind is context_type]
        description = _describe(function, signature, contexts)
        if len(contexts) > 1:
            raise TaskError(f"{description} has more than one {context_type.__name__}: {', '.join(contexts)}")
        for name, parameter in signature.parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise TaskError(
                    f"{description}: {str(parameter).partition(':')[0]} cannot be sent as named JSON values; "
                    f"take a list or a dict instead, as in `{name}: dict[str, int]`"
                )
        for name in contexts:
            del annotations[name]
        return cls(description, signature, annotations, contexts[0] if contexts else None)

    def bind(self, *args: Any, **kwargs: Any) -> str:
        """Return the JSON object for a call with these arguments, checked by the handler's annotations.

        Defaults are not filled in: they apply when the job runs.

        Raises:
            InvalidTaskArguments: one is missing, unknown, given twice, of the wrong type, or not JSON.

        """
        named = dict(zip(self._by_position, args, strict=False))
        fits = len(args) <= len(self._by_position)
        if kwargs:
            fits = fits and self._by_name.issuperset(kwargs) and named.keys().isdisjoint(kwargs)
            named.update(kwargs)
        if not (fits and self._required.issubset(named)):
            try:
                named = self._signature.bind(*args, **kwargs).arguments  # 2 µs, so only to word the error
            except TypeError as error:
                raise InvalidTaskArguments(f"{self.description}: {error}") from None
        return self._encode(named)

    def check(self, mapping: Mapping[str, Any]) -> str:
        """Return the JSON object for a mapping of parameter names to values, checked as :meth:`bind` does.

        Raises:
            InvalidTaskArguments: one is missing, unknown, of the wrong type, or not JSON.

        """
        names = mapping.keys()
        if missing := self._required - names:
            raise InvalidTaskArguments(f"{self.description}: missing a required argument: {_list(missing)}")
        if unknown := names - self._signature.parameters.keys():
            raise InvalidTaskArguments(
                f"{self.description}: got an unexpected argument: {_list(unknown)}; "
                f"it takes {_list(self._signature.parameters) or 'none'}"
            )
        return self._encode(dict(mapping))

    def load(self, text: str | bytes) -> dict[str, Any]:
        """Return the keyword arguments that a stored JSON object holds, converted by annotation.

        Raises:
            InvalidTaskArguments: they no longer fit the handler: missing, unknown or of the wrong type.

        """
        try:
            values = msgspec.structs.asdict(self._decode(text))
        except _NOT_READABLE as error:
            raise InvalidTaskArguments(f"{self.description}: {_where(error)}") from error
        if self._defaults:
            return {name: value for name, value in values.items() if value is not msgspec.UNSET}
        return values

    def call_args(self, text: str | bytes, context: object = None) -> tuple[list[Any], dict[str, Any]]:
        """Return ``(args, kwargs)`` to call the handler with: what :meth:`load` returns, and the context.

        Args:
            text: the stored JSON object.
            context: goes to the parameter that wants it, if there is one.

        Raises:
            InvalidTaskArguments: as for :meth:`load`.

        """
        values = self.load(text)
        if self.context is not None:
            values[self.context] = context
        if not self._positional_only:
            return [], values
        return [values.pop(name, default) for name, default in self._positional_only], values

    def _encode(self, named: dict[str, Any]) -> str:
        try:
            text = encode(named, "arguments")
            loaded = self._decode(text)
        except InvalidArgument as error:
            raise InvalidTaskArguments(f"{self.description}: {error}") from error
        except _NOT_READABLE as error:
            raise InvalidTaskArguments(f"{self.description}: {_where(error)}") from error
        # A UUID, date, Decimal or bytes becomes text in JSON and so would pass for a `str`, as another value.
        for name in self._texts:
            if type(getattr(loaded, name)) is str and not isinstance(named[name], str):
                raise InvalidTaskArguments(
                    f"{self.description}: {name}: Expected `str`, got `{type(named[name]).__name__}`"
                )
        return text


def describe(function: Callable[..., Any]) -> str:
    """Return name and parameters of `function` as its author wrote them: ``send_welcome(user_id: int)``."""
    return _describe(function, _signature(function), [])


def _describe(function: Callable[..., Any], signature: inspect.Signature, hidden: list[str]) -> str:
    shown = [
        p.replace(annotation=_AsWritten(p.annotation)) if isinstance(p.annotation, str) else p
        for p in signature.parameters.values()
        if p.name not in hidden
    ]
    return f"{_name(function)}{signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)}"


class _AsWritten:
    """A string annotation that is shown without its quotes."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _list(names: typing.Iterable[object]) -> str:
    return ", ".join(sorted(map(repr, names)))


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise TaskError(f"{_name(function)} has no signature that can be read: {error}") from error
    except NameError as error:  # Python 3.14 evaluates annotations here
        raise TaskError(f"{_name(function)}: {_unresolved(error)}") from error


def _resolve(function: Callable[..., Any], name: str, annotation: Any, context_type: type) -> Any:
    """Return the type that one annotation means: one, so that an error names it and `-> X` is not read."""
    if annotation is inspect.Parameter.empty:
        return Any
    scope = {context_type.__name__: context_type, **getattr(inspect.unwrap(function), "__globals__", {})}
    try:
        hints = typing.get_type_hints(
            types.SimpleNamespace(__annotations__={name: annotation}), globalns=scope, include_extras=True
        )
    except Exception as error:
        reason = _unresolved(error) if isinstance(error, NameError) else f"{type(error).__name__}: {error}"
        raise TaskError(f"{describe(function)}: the annotation of {name!r} cannot be read: {reason}") from error
    # `object` promises as little as `Any`, but msgspec would take it for a class of the user's.
    return Any if hints[name] is object else hints[name]


def _unresolved(error: NameError) -> str:
    return (
        f"there is no {error.name!r} at run time; define it at the top of the module, or import it there and "
        "not under `if TYPE_CHECKING:`"
    )


def _compile(
    description: str, parameters: list[inspect.Parameter], annotations: dict[str, Any]
) -> Callable[[str | bytes], Any]:
    """Return the decoder of the whole JSON object: a struct, because asking for one is one call into C."""
    for name, annotation in annotations.items():
        try:
            msgspec.json.Decoder(annotation)
            reason = next(_objections(msgspec.inspect.type_info(annotation)), None)
        except Exception as error:  # msgspec's TypeError, the NameError of a dataclass's own annotation, ...
            reason = str(error)
        if reason is not None:
            raise TaskError(
                f"{description}: parameter {name!r} cannot be read from JSON: {reason}; use a dataclass, "
                "TypedDict, datetime, UUID, Decimal, Enum, list[...], dict[str, ...] or a msgspec.Struct"
            )
    # UNSET tells a value that was not sent from None.
    fields = [
        (p.name, annotations[p.name]) if p.default is p.empty else (p.name, annotations[p.name], msgspec.UNSET)
        for p in parameters
    ]
    try:
        struct = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    except (TypeError, RuntimeError) as error:
        raise TaskError(f"{description}: a parameter's name cannot be sent: {error}; rename it") from error
    return msgspec.json.Decoder(struct).decode


def _objections(node: msgspec.inspect.Type) -> Iterator[str]:
    """Why jobs could not be read although msgspec takes the type: it leaves unknown classes to hooks."""
    seen: set[int] = set()
    stack: list[Any] = [node]
    while stack:
        part = stack.pop()
        if isinstance(part, list | tuple):
            stack.extend(part)
        elif isinstance(part, msgspec.inspect.Type | msgspec.inspect.Field) and id(part) not in seen:
            seen.add(id(part))
            if isinstance(part, _NOT_IN_JSON):
                kind = getattr(part, "cls", msgspec.msgpack.Ext)
                if kind is not object:
                    yield f"{kind.__module__}.{kind.__qualname__} is not a type that JSON can hold"
            if isinstance(part, msgspec.inspect.DictType) and not _is_key(part.key_type):
                yield "a dict's keys must be str, int, float, Enum, UUID, datetime or the like"
            stack.extend(getattr(part, name) for name in part.__struct_fields__)


def _takes_text(node: msgspec.inspect.Type) -> bool:
    if isinstance(node, msgspec.inspect.UnionType):
        return any(map(_takes_text, node.types))
    return isinstance(node, msgspec.inspect.StrType)


def _is_key(node: msgspec.inspect.Type) -> bool:
    if isinstance(node, msgspec.inspect.UnionType):
        return all(map(_is_key, node.types))
    return isinstance(node, _KEYS)


def _where(error: Exception) -> str:
    """Put the path in front of msgspec's message: "user_id: Expected `int`, got `str`"."""
    reason, found, path = str(error).partition(" - at `$.")
    return f"{path.removesuffix('`')}: {reason}" if found else reason
