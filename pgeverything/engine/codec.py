"""JSON in and out: every value that this library stores crosses the driver as JSON text made and read here.

msgspec does the work in C. What it lets through and Postgres's ``jsonb`` refuses or changes is refused here,
before any SQL: by reading every text back, and by substring searches that look closer only when they hit. A
small dict takes 0.5 µs (0.35 of them msgspec's), 0.3 µs in :func:`encode_many`, and 0.5 µs more when there is a
None in it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections import deque
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from ..errors import ConfigurationError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")

MAX_PAYLOAD_VARIABLE = "PGEVERYTHING_MAX_PAYLOAD"
_DEFAULT_LIMIT = 1024 * 1024
_LEAST_LIMIT = 1024
_MOST_LIMIT = 0x0FFFFFFF  # jsonb keeps lengths in 28 bits: JENTRY_OFFLENMASK in PostgreSQL's jsonb.h
_SMALL = _LEAST_LIMIT // 4  # characters: at most 1 KiB of UTF-8, so within every limit
_NEVER_NAN = frozenset({str, int, bool, type(None)})

_ESCAPED_NUL = "\\u0000"  # after an escaped backslash, these six characters are ordinary text
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

_DEEPEST = 100  # levels that are read of a value that is too deep
_TEXT_OR_BRACKET = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[\[\]{}]')


def max_payload_bytes() -> int:
    """Return the most bytes of UTF-8 that one JSON value may have.

    It is ``$PGEVERYTHING_MAX_PAYLOAD``, a plain number of bytes from 1024 to 268435455 (what jsonb itself can
    hold), and 1 MiB when that is not set. Values above a few kilobytes belong into a table of their own.

    Raises:
        ConfigurationError: the variable is not such a number.

    """
    text = os.environ.get(MAX_PAYLOAD_VARIABLE, "").strip()
    if not text:
        return _DEFAULT_LIMIT
    if text.isascii() and text.isdigit() and len(text) < 12 and _LEAST_LIMIT <= int(text) <= _MOST_LIMIT:
        return int(text)
    raise ConfigurationError(
        f"{MAX_PAYLOAD_VARIABLE}={text!r} must be a number of bytes from {_LEAST_LIMIT} to {_MOST_LIMIT}, "
        f"for example {_DEFAULT_LIMIT}"
    )


def encode(value: object, name: str) -> str:
    """Return `value` as JSON text that a ``jsonb`` column takes and that reads back as the same value.

    Besides JSON's own types: dataclasses, ``msgspec.Struct`` and attrs classes (objects); ``datetime``,
    ``date``, ``time``, ``timedelta``, ``UUID``, ``Decimal`` and ``bytes`` (strings: ISO 8601, digits,
    base64); ``Enum`` (its value); tuples and sets (arrays); subclasses of ``str``, ``int`` and ``float``.

    Two things change on the way through ``jsonb``, as they do for every program: of keys that are equal as
    text (``1`` and ``"1"``) the last one wins, and a float from 1e16 up reads back as the integer of its
    digits, unless it is read as a ``float``, which gives the same float.

    Args:
        value: what to encode.
        name: the argument's name, for the error message.

    Raises:
        InvalidArgument: the value, or something inside it, is not JSON, or cannot be read back; is NaN or
            infinite; holds a NUL character or a lone surrogate; or the text is longer than
            :func:`max_payload_bytes`.

    """
    try:
        text = _ENCODER.encode(value).decode()
        _DECODER.decode(text)  # a `msgspec.Raw` may hold anything, and an integer more digits than can be read
    except _NOT_ENCODABLE as error:
        raise InvalidArgument(_why_not_json(value, name, error)) from error
    if len(text) > _SMALL:
        _refuse_long(text, name, max_payload_bytes())
    if "null" in text or _ESCAPED_NUL in text:
        _refuse_unstorable(value, text, name)
    return text


def encode_many(values: Iterable[object], name: str) -> list[str]:
    """Return each of `values` as JSON text, as :func:`encode` does, in fewer calls.

    Args:
        values: what to encode.
        name: the argument's name; an error says which one is meant: ``name[3]``.

    Raises:
        InvalidArgument: as for :func:`encode`.

    """
    rows = list(values)
    try:
        # One line a value. msgspec escapes newlines inside strings, so only a `msgspec.Raw` could add lines.
        whole = _ENCODER.encode_lines(rows).decode()
        texts = whole.split("\n")[:-1]
        deque(map(_DECODER.decode, texts), maxlen=0)  # not `decode_lines`, which takes "1 2" for two lines
    except _NOT_ENCODABLE:
        texts = []
    if len(texts) != len(rows):
        return [encode(row, f"{name}[{index}]") for index, row in enumerate(rows)]
    limit = max_payload_bytes()
    suspect = "null" in whole or _ESCAPED_NUL in whole
    if suspect or len(max(texts, key=len, default="")) > _SMALL:
        for index, text in enumerate(texts):
            if len(text) > _SMALL:
                _refuse_long(text, f"{name}[{index}]", limit)
            if suspect and ("null" in text or _ESCAPED_NUL in text):
                _refuse_unstorable(rows[index], text, f"{name}[{index}]")
    return texts


def encode_own(value: object) -> str:
    """Return a value made by this library from text that it has cleaned as JSON text: no checks, no limit."""
    return _ENCODER.encode(value).decode()


def decode(text: str | bytes) -> Any:
    """Return the value of JSON text: dicts, lists, strings, numbers, booleans and None.

    Whatever ``jsonb`` holds can be read. Anybody may write a row with psql, and one that could not be read would hide
    all those that are read together with it. So a number that is no int or float here, because it has more digits than
    the interpreter converts (4,300) or is beyond a float, is a ``Decimal``; and of a value that is nested more deeply
    than the interpreter goes (a thousand levels), what is below the hundredth level is its JSON text.

    Raises:
        InvalidArgument: the text is not JSON.

    """
    try:
        return _DECODER.decode(text)
    except _NOT_DECODABLE as error:
        return _decode_outsized(text, error, _real)


def decode_exactly(text: str | bytes) -> Any:
    """Return the value of JSON text as :func:`decode` does; what a float cannot hold exactly is a ``Decimal`` too."""
    try:
        return _EXACT_DECODER.decode(text)
    except _NOT_DECODABLE as error:
        return _decode_outsized(text, error, _exact)


def decode_as(text: str | bytes, type_: type[T]) -> T:
    """Return the value of JSON text as a `type_`, checked strictly: ``"7"`` is no ``int``.

    Args:
        text: the JSON.
        type_: a type that msgspec can decode: a dataclass, ``TypedDict``, ``list[int]``, ``datetime``, ...

    Raises:
        InvalidArgument: the text is not JSON, or does not fit the type; the message says where and why.

    """
    try:
        return msgspec.json.decode(text, type=type_)
    except _NOT_DECODABLE as error:
        label = type_.__qualname__ if isinstance(type_, type) else type_
        raise InvalidArgument(f"the JSON text is not a {label}: {error}") from error


def reader(type_: Any) -> Callable[[str | bytes], Any]:
    """Return a function that reads JSON text as a `type_`, as :func:`decode_as` does, and is faster than that.

    Raises:
        TypeError: JSON cannot be read as such a type.

    """
    decoder = msgspec.json.Decoder(type_)
    label = type_.__qualname__ if isinstance(type_, type) else type_

    def read(text: str | bytes) -> Any:
        try:
            return decoder.decode(text)
        except _NOT_DECODABLE as error:
            raise InvalidArgument(f"the JSON text is not a {label}: {error}") from error

    return read


def _decode_outsized(text: str | bytes, error: Exception, real: Callable[[str], float | Decimal]) -> Any:
    """Return the value of JSON text that msgspec has refused with `error`, where that was for the size of something."""
    try:
        if isinstance(error, msgspec.ValidationError | RecursionError):
            text = _cut(text if isinstance(text, str) else text.decode())
            return json.loads(text, parse_int=_whole, parse_float=real, parse_constant=_refuse_constant)
    except (ValueError, ArithmeticError, RecursionError):
        pass
    raise InvalidArgument(f"the text is not JSON that can be read here: {error}") from error


def _cut(text: str) -> str:
    """Return JSON text in which whatever is nested too deeply is a string."""
    kept, depth, start, end = [], 0, 0, 0
    for token in _TEXT_OR_BRACKET.finditer(text):
        if token[0] in ("[", "{"):
            depth += 1
            if depth == _DEEPEST + 1:
                start = token.start()
        elif token[0] in ("]", "}"):
            if depth == _DEEPEST + 1:
                kept += [text[end:start], json.dumps(text[start : token.end()])]
                end = token.end()
            depth -= 1
    return "".join([*kept, text[end:]])


def _whole(text: str) -> int | Decimal:
    try:
        return int(text)
    except ValueError:
        return Decimal(text)


def _real(text: str) -> float | Decimal:
    number = float(text)
    return number if math.isfinite(number) else Decimal(text)


def _exact(text: str) -> float | Decimal:
    number, exact = float(text), Decimal(text)
    return number if Decimal(repr(number)) == exact else exact


def _refuse_constant(text: str) -> None:
    raise ValueError(text)


def _as_base(value: object) -> object:
    """Give msgspec the plain text or number inside a subclass of one (numpy.float64, markupsafe.Markup).

    And the values of a `msgspec.Raw`, which it asks for only when it is to make built-in values of one.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, msgspec.Raw):
        return _DECODER.decode(value)
    raise TypeError(
        f"it is a {type(value).__module__}.{type(value).__qualname__}; pass a str, number, bool, None, list, "
        "dict, dataclass, datetime, UUID, Decimal, Enum or bytes"
    )


_ENCODER = msgspec.json.Encoder(enc_hook=_as_base)
_DECODER = msgspec.json.Decoder()
_EXACT_DECODER = msgspec.json.Decoder(float_hook=_exact)
_NOT_DECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# ValueError: lone surrogates (UnicodeEncodeError) and integers above the interpreter's digit limit.
_NOT_ENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def _refuse_long(text: str, name: str, limit: int) -> None:
    size = len(text) if text.isascii() else len(text.encode())
    if size > limit:
        raise InvalidArgument(
            f"{name} is {size} bytes of JSON, more than the limit of {limit}; store the data in a table "
            f"and pass its key, or raise the limit with {MAX_PAYLOAD_VARIABLE}"
        )


def _refuse_unstorable(value: object, text: str, name: str) -> None:
    """Look closely at a text with a ``null``, msgspec's word for NaN too, or with what may be a NUL."""
    if _ESCAPED_NUL in text and _NUL.search(text):
        where = f"{name}{_path_of_nul(_DECODER.decode(text))}"
        raise InvalidArgument(
            f"{where} holds a NUL character (U+0000), which Postgres cannot store; "
            'remove it (text.replace("\\0", "")) or send the data as bytes'
        )
    if "null" in text and _has_nan(value):
        for path, item in _walk(msgspec.to_builtins(value, enc_hook=_as_base)):
            if isinstance(item, float) and item - item != 0:
                raise InvalidArgument(f"{name}{path} is {item}, which JSON has no word for; pass None or a string")


def _has_nan(value: object) -> bool:
    """Whether a NaN or an infinity is anywhere inside.

    0.5 µs for a small dict. The obvious walk, over ``to_builtins(value)`` with ``isinstance``, takes 1.5 µs.
    """
    items: list[Any] = [value]
    for item in items:  # grows while it is read
        kind = type(item)
        if kind in _NEVER_NAN:
            continue
        if kind is float:
            if item - item != 0:  # true of NaN and the infinities only
                return True
        elif kind is dict:
            items.extend(item.values())
        elif kind is list or kind is tuple:
            items.extend(item)
        else:
            items.append(msgspec.to_builtins(item, enc_hook=_as_base))
    return False


def _path_of_nul(plain: object) -> str:
    for path, item in _walk(plain):
        if isinstance(item, str) and "\0" in item:
            return path
        if isinstance(item, dict) and any("\0" in key for key in item):
            return f"{path} (a key)"
    return ""


def _why_not_json(value: object, name: str, error: Exception) -> str:
    """Say which part of `value` it was that made msgspec give up with `error`."""
    if isinstance(error, RecursionError):
        return f"{name} contains itself or is nested too deeply for JSON; pass ids instead of linked objects"
    for path, item in _walk(value):
        where = f"{name}{path}"
        if isinstance(item, dict):
            for key in item:
                if (reason := _refusal({key: None})) is not None:
                    return f"{where} has the key {key!r}, which JSON cannot hold: {reason}"
        if next(_children(item), None) is None and (reason := _refusal(item)) is not None:
            return f"{where} cannot be JSON: {reason}"
    return f"{name} cannot be JSON: {error}"


def _refusal(item: object) -> str | None:
    """Why `item` alone cannot be encoded, or not be read back; None if it can."""
    try:
        _DECODER.decode(_ENCODER.encode(item).decode())
    except UnicodeEncodeError:
        return 'text with a lone surrogate; decode it with errors="replace" or send bytes'
    except _NOT_ENCODABLE as error:
        if isinstance(item, msgspec.Raw):
            return f"a msgspec.Raw of something else: {error}"
        if isinstance(error, msgspec.DecodeError):
            return "an integer of more than 4300 characters, too many to read back; pass a string"
        return str(error)
    return None


def _walk(value: object) -> Iterator[tuple[str, Any]]:
    """Yield every value inside `value`, itself first, with the path to it. Only for error messages."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        path, item = stack.pop()
        yield path, item
        stack.extend(reversed([(path + step, child) for step, child in _children(item)]))


def _children(item: object) -> Iterator[tuple[str, object]]:
    if isinstance(item, dict):
        yield from ((f"[{key!r}]", child) for key, child in item.items())
    elif isinstance(item, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(item))
    elif isinstance(item, msgspec.Struct):
        yield from ((f".{field}", getattr(item, field, None)) for field in item.__struct_fields__)
    elif dataclasses.is_dataclass(item) and not isinstance(item, type):
        yield from ((f".{field.name}", getattr(item, field.name, None)) for field in dataclasses.fields(item))
