"""``@pg.cached``: a function whose results are kept by a key that its arguments make."""

from __future__ import annotations

import contextlib
import functools
import inspect
import string
import typing
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

from ..durations import Duration, seconds
from ..engine import codec
from ..errors import InvalidArgument
from .compute import Found, Misfit, Recipe
from .values import check_keys

if TYPE_CHECKING:
    from . import AsyncCache, Cache

P = ParamSpec("P")
R = TypeVar("R")

Key: TypeAlias = str | Callable[..., str]
Tags: TypeAlias = Sequence[str] | Callable[..., Iterable[str]]


@dataclass(frozen=True, slots=True)
class Options:
    """What the decorator was told, beside the key and the tags; `get_or_set` says what each means."""

    ttl: Duration | None
    stale: Duration | None
    early: float | None
    lease: Duration
    errors: Duration | None
    near: Duration | None


class Keys(Generic[P]):
    """Makes the key and the tags of a call from its arguments.

    Raises:
        InvalidArgument: a template names what is no parameter.
    """

    def __init__(self, function: Callable[P, Any], key: Key, tags: Tags) -> None:
        self._signature = inspect.signature(function)
        self._name = getattr(function, "__qualname__", repr(function))
        if not isinstance(key, str) and not callable(key):
            raise InvalidArgument(
                f'key={key!r} must be a template like "rate:{{currency}}", or a function that returns it'
            )
        if not callable(tags) and (
            isinstance(tags, str) or not isinstance(tags, Sequence) or not all(isinstance(tag, str) for tag in tags)
        ):
            raise InvalidArgument(f"tags={tags!r} must be a list of templates, or a function")
        self._key, self._tags = key, tags
        for template in [key, *([] if callable(tags) else tags)]:
            if isinstance(template, str):
                self._check(template)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call."""
        if callable(self._key):
            return self._key(*args, **kwargs)
        return self._fill(self._key, self._arguments(args, kwargs))

    def tags(self, *args: P.args, **kwargs: P.kwargs) -> list[str]:
        """Return the tags of a call."""
        if callable(self._tags):
            return check_keys(self._tags(*args, **kwargs), "tags")
        if not self._tags:
            return []
        arguments = self._arguments(args, kwargs)
        return [self._fill(tag, arguments) for tag in self._tags]

    def _check(self, template: str) -> None:
        try:
            names = list(_names(template))
        except ValueError as error:
            raise InvalidArgument(f"{template!r} is not a template: {error}") from error
        for name in names:
            first = name.partition(".")[0].partition("[")[0]
            if first not in self._signature.parameters:
                raise InvalidArgument(
                    f"{template!r} names {first!r}, which is no parameter of {self._name}{self._signature}"
                )

    def _arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    def _fill(self, template: str, arguments: dict[str, Any]) -> str:
        return _FORMATTER.vformat(template, (), arguments)


def _names(template: str) -> Iterator[str]:
    """Return what a template names, also in its format specifications."""
    for _, name, specification, conversion in string.Formatter().parse(template):
        if conversion is not None and conversion not in ("r", "s", "a"):
            raise ValueError(f"'!' is followed by r, s or a, not by {conversion!r}")
        if name is not None:
            yield name
            yield from _names(specification or "")


class _Formatter(string.Formatter):
    """Refuses what has no words of its own: its address in memory would be a new key in each process."""

    def format_field(self, value: Any, format_spec: str) -> str:
        kind: Any = type(value)
        if all(getattr(kind, name) is getattr(object, name) for name in ("__format__", "__str__", "__repr__")):
            raise InvalidArgument(
                f"a key cannot be made from a {kind.__module__}.{kind.__qualname__}: name one of its attributes, "
                "as in {user.id}, or give a function that makes the key"
            )
        return str(super().format_field(value, format_spec))


_FORMATTER = _Formatter()


class _Results:
    """Reads stored results as the type that the function is annotated to return.

    Raises:
        InvalidArgument: JSON cannot be read as that type.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        with contextlib.suppress(
            NameError
        ):  # it names what is defined further down, so it is looked at when it is called
            self._read  # noqa: B018

    @functools.cached_property
    def _read(self) -> Callable[[str | bytes], Any]:
        returned = typing.get_type_hints(self._function, include_extras=True).get("return", Any)
        try:
            return codec.reader(returned)
        except TypeError as error:
            raise InvalidArgument(
                f"{self._function.__qualname__} cannot be cached: it returns {returned}, which JSON cannot be read as "
                f"({error})"
            ) from error

    def load(self, text: str | None, data: bytes | None) -> Any:
        """Return a stored result.

        Raises:
            Misfit: it is of another type.
        """
        if text is None:
            return data
        read = self._read
        try:
            return read(text)
        except InvalidArgument as error:
            raise Misfit(str(error)) from error


class _Function(Generic[P]):
    """What both kinds of cached functions share."""

    def __init__(self, function: Callable[P, Any], key: Key, tags: Tags, options: Options) -> None:
        if not callable(function):
            raise InvalidArgument(
                f"{function!r} is no function: write @pg.cached(...) above one, and below @classmethod or @staticmethod"
            )
        functools.update_wrapper(cast("Callable[P, Any]", self), function)
        self._function = function
        self._keys, self._results, self._options = Keys(function, key, tags), _Results(function), options
        self._recipe(lambda: "key", list)  # so that a wrong option is refused where it is written

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key under which the result for these arguments is kept, for ``tx.cache.invalidate(...)``."""
        return self._keys.key(*args, **kwargs)

    def __get__(self, instance: object, owner: type) -> Any:
        """Bind to an object, as a method does."""
        return self if instance is None else _Method(self, instance)

    def _of(self, *args: P.args, **kwargs: P.kwargs) -> Recipe:
        return self._recipe(lambda: self._keys.key(*args, **kwargs), lambda: self._keys.tags(*args, **kwargs))

    def _recipe(self, key: Callable[[], str], tags: Callable[[], list[str]]) -> Recipe:
        said = self._options
        return Recipe.of(key(), said.ttl, said.stale, tags(), said.early, said.lease, said.errors, self._results.load)


class Cached(_Function[P], Generic[P, R]):
    """A function whose results are kept. Call it as before."""

    def __init__(self, cache: Cache, function: Callable[P, R], key: Key, tags: Tags, options: Options) -> None:
        if inspect.iscoroutinefunction(function):
            raise InvalidArgument(f"{function.__qualname__} is asynchronous: use AsyncPgEverything to cache it")
        super().__init__(function, key, tags, options)
        self._cache = cache if options.near is None else cache.near(seconds(options.near, "near", zero=False))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result for these arguments, computing it where it is not there."""
        found: Found = self._cache._obtain(self._of(*args, **kwargs), lambda: self._function(*args, **kwargs))
        value: R = found.value
        return value

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result for these arguments. In a transaction: ``tx.cache.invalidate(function.key(...))``."""
        self._cache.invalidate(self._keys.key(*args, **kwargs))


class AsyncCached(_Function[P], Generic[P, R]):
    """A function whose results are kept by an :class:`AsyncPgEverything`; it is awaited, whatever it was."""

    def __init__(self, cache: AsyncCache, function: Callable[P, Any], key: Key, tags: Tags, options: Options) -> None:
        super().__init__(function, key, tags, options)
        self._cache = cache if options.near is None else cache.near(seconds(options.near, "near", zero=False))

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the result for these arguments, computing it where it is not there."""
        found = await self._cache._obtain(self._of(*args, **kwargs), lambda: self._function(*args, **kwargs))
        value: R = found.value
        return value

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Forget the result for these arguments."""
        await self._cache.invalidate(self._keys.key(*args, **kwargs))


class _Method:
    """A cached function bound to an object, which is its first argument, also for its key."""

    def __init__(self, function: Any, instance: object) -> None:
        self.__func__, self.__self__ = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def key(self, *args: Any, **kwargs: Any) -> str:
        return self.__func__.key(self.__self__, *args, **kwargs)  # type: ignore[no-any-return]  # of the function, which is Any here

    def invalidate(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__.invalidate(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "__func__"), name)


class CachedDecorator(Protocol):
    """What `pg.cached(...)` returns."""

    def __call__(self, function: Callable[P, R], /) -> Cached[P, R]:
        """Return the function, cached."""
        ...


class AsyncCachedDecorator(Protocol):
    """The same for `AsyncPgEverything`: of functions and of coroutine functions."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncCached[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> AsyncCached[P, R]: ...
