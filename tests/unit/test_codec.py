from __future__ import annotations

import dataclasses
import enum
import json
import math
import sys
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgeverything.engine.codec import (
    decode,
    decode_as,
    decode_exactly,
    encode,
    encode_many,
    encode_own,
    max_payload_bytes,
)
from pgeverything.errors import ConfigurationError, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKSLASH = "\\"


class Colour(enum.Enum):
    RED = "red"


class Odd(enum.Enum):
    NAN = math.nan


@dataclasses.dataclass
class Order:
    id: int
    lines: list[Any]


class Point(msgspec.Struct):
    x: Any


class Pair(NamedTuple):
    a: float


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "overridden"


class Number(int):
    pass


class Real(float):
    pass


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ({"a": [1, 2.5, True, None, "é\u2028🙂"]}, {"a": [1, 2.5, True, None, "é\u2028🙂"]}),
        (10**30, 10**30),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00Z"),
        ([date(2026, 1, 2), time(3, 4), timedelta(hours=36)], ["2026-01-02", "03:04:00", "P1DT43200S"]),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (Decimal("1.10"), "1.10"),
        (Colour.RED, "red"),
        (b"ab", "YWI="),
        ((1, 2), [1, 2]),
        ({3}, [3]),
        (Order(1, [Point(None)]), {"id": 1, "lines": [{"x": None}]}),
        ({1: "a", Text("k"): None}, {"1": "a", "k": None}),
        ([Text("x"), Number(3), Real(2.5)], ["x", 3, 2.5]),
    ],
)
def test_values_become_json(value: object, expected: object) -> None:
    assert json.loads(encode(value, "args")) == expected
    assert decode(encode(value, "args")) == expected


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "args is nan"),
        ({"a": [1, math.inf]}, r"args\['a'\]\[1\] is inf"),
        ({"a": None, "b": -math.inf}, r"args\['b'\] is -inf"),
        (Order(1, [math.nan]), r"args\['lines'\]\[0\] is nan"),
        ([Point(math.nan)], r"args\[0\]\['x'\] is nan"),
        ([Odd.NAN], r"args\[0\] is nan"),
        ([Pair(math.nan)], r"args\[0\]\[0\] is nan"),
        ([Real("nan")], r"args\[0\] is nan"),
        ({"a": {math.nan}}, r"args\['a'\]\[0\] is nan"),
    ],
)
def test_nan_and_infinity_are_refused_wherever_they_are(value: object, path: str) -> None:
    with pytest.raises(InvalidArgument, match=path):
        encode(value, "args")


@pytest.mark.parametrize("value", ["null", {"null": 1}, [None], {"nullable": [1.5, None]}])
def test_null_as_text_or_value_is_fine(value: object) -> None:
    assert decode(encode(value, "args")) == value


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ("a\0b", "args holds"),
        ({"a": ["x", "\0"]}, r"args\['a'\]\[1\] holds"),
        ({"k\0": 1}, r"args \(a key\) holds"),
        (BACKSLASH + "\0", "args holds"),
        (BACKSLASH * 4 + "\0", "args holds"),
        (Order(1, ["\0"]), r"args\['lines'\]\[0\] holds"),
    ],
)
def test_a_nul_character_is_refused(value: object, path: str) -> None:
    with pytest.raises(InvalidArgument, match=path + " a NUL"):
        encode(value, "args")


@pytest.mark.parametrize("backslashes", [1, 2, 3, 4])
def test_text_that_looks_like_an_escaped_nul_is_fine(backslashes: int) -> None:
    value = BACKSLASH * backslashes + "u0000"
    assert decode(encode(value, "args")) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, object()]}, r"args\['a'\]\[1\] cannot be JSON: it is a builtins.object; pass"),
        (Order(1, [2j]), r"args.lines\[0\] cannot be JSON: it is a builtins.complex"),
        (Point(range(3)), "args.x cannot be JSON: it is a builtins.range"),
        ({"a": {(1, 2): 3}}, r"args\['a'\] has the key \(1, 2\)"),
        ({None: 3}, "args has the key None"),
        (["ok", "\ud800"], r"args\[1\] cannot be JSON: text with a lone surrogate"),
        ({"\ud800": 1}, "lone surrogate"),
        ([10**5000], r"args\[0\] cannot be JSON: .*4300 digits"),
        (Order, "args cannot be JSON: it is a builtins.type"),
    ],
)
def test_what_is_not_json_is_refused_with_its_place(value: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        encode(value, "args")


RAW = [b"", b"<html>", b"nul", b"NaN", b"[1,]", b"1 2", b'"\\ud83d"', b"\xff", b"1e400", b"9" * 4301, b"[null, 1e400]"]


@pytest.mark.parametrize("raw", RAW)
def test_a_raw_value_that_is_not_json_or_cannot_be_read_back_is_refused_with_its_place(raw: bytes) -> None:
    for value, place in (
        (msgspec.Raw(raw), "args"),
        ({"a": [1, msgspec.Raw(raw)]}, r"args\['a'\]\[1\]"),
        (Order(1, [Point(msgspec.Raw(raw))]), r"args.lines\[0\].x"),
    ):
        with pytest.raises(InvalidArgument, match=f"{place} cannot be JSON"):
            encode(value, "args")
        with pytest.raises(InvalidArgument, match=place.replace("args", r"args\[1\]", 1) + " cannot be JSON"):
            encode_many([None, value, 3], "args")


@pytest.mark.parametrize("pair", [(b"", b"1 2"), (b"[1", b"2]"), (b"[1,2]", b"3,4")])
def test_raw_values_that_are_json_only_together_are_refused(pair: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidArgument, match="cannot be JSON"):
        encode_many([msgspec.Raw(each) for each in pair], "args")


@pytest.mark.parametrize("raw", [b"null", b"[1, null, 2.5]", b'{"a": "\\ud83d\\ude00"}', b"[\n1]", b'"\\\\u0000"'])
def test_a_raw_value_that_is_json_is_fine(raw: bytes) -> None:
    value = [msgspec.Raw(raw), None, Point(msgspec.Raw(raw))]
    there = json.loads(raw)
    assert decode(encode(value, "args")) == [there, None, {"x": there}]
    assert [decode(text) for text in encode_many(value, "args")] == [there, None, {"x": there}]


@pytest.mark.parametrize(
    ("raw", "message"), [(b'"\\u0000"', r"args\['a'\] holds a NUL"), (b"9" * 2_000_000, "bytes of JSON|cannot be JSON")]
)
def test_a_raw_value_is_under_the_same_rules(raw: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        encode({"a": msgspec.Raw(raw)}, "args")
    with pytest.raises(InvalidArgument, match=r"args\[0\] is nan"):
        encode([math.nan, msgspec.Raw(b"null")], "args")


def test_a_value_that_contains_itself_is_refused() -> None:
    value: dict[str, Any] = {}
    value["self"] = [value]
    with pytest.raises(InvalidArgument, match="args contains itself or is nested too deeply"):
        encode(value, "args")


@contextmanager
def digits(limit: int) -> Iterator[None]:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(limit)
    try:
        yield
    finally:
        sys.set_int_max_str_digits(before)


def test_an_integer_that_could_be_written_but_not_read_is_refused() -> None:
    longest = 10**4300 - 1
    with digits(0):
        assert decode(encode([longest, -(longest // 10)], "args")) == [longest, -(longest // 10)]
        for number in (longest + 1, -longest):
            with pytest.raises(InvalidArgument, match=r"args\[0\] cannot be JSON: .* 4300 characters"):
                encode([number], "args")
            with pytest.raises(InvalidArgument, match=r"args\[1\]\[0\] cannot be JSON: .* 4300 characters"):
                encode_many([[1], [number]], "args")
        assert decode(encode(["1" * 5000], "args")) == ["1" * 5000]


def test_the_limit_counts_bytes_of_utf8_and_says_how_to_raise_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(encode("x" * (2**20 - 2), "args")) == 2**20
    with pytest.raises(InvalidArgument, match=r"args is 1048577 bytes .* 1048576.*PGEVERYTHING_MAX_PAYLOAD"):
        encode("x" * (2**20 - 1), "args")
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", "1024")
    assert encode("é" * 511, "args")
    with pytest.raises(InvalidArgument, match="1026 bytes"):
        encode("é" * 512, "args")
    with pytest.raises(InvalidArgument, match=r"args\[1\] is 1026 bytes"):
        encode_many(["x", "é" * 512], "args")


def test_no_small_text_can_be_over_the_least_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", "1024")
    with pytest.raises(InvalidArgument, match="1026 bytes"):
        encode("🙂" * 256, "args")
    assert encode("🙂" * 255, "args")


@pytest.mark.parametrize("text", ["0", "1023", "1MB", "-5000", "1e6", "²" * 5, "9" * 30, str(2**28)])
def test_a_limit_that_is_no_number_of_bytes_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", text)
    with pytest.raises(ConfigurationError, match="PGEVERYTHING_MAX_PAYLOAD="):
        max_payload_bytes()


def test_the_limit_is_what_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGEVERYTHING_MAX_PAYLOAD", raising=False)
    assert max_payload_bytes() == 1024 * 1024
    monkeypatch.setenv("PGEVERYTHING_MAX_PAYLOAD", " 5000 ")
    assert max_payload_bytes() == 5000


def test_many_values_are_encoded_like_one() -> None:
    values = [{"a": 1}, None, "null", "two\nlines", "\\u0000", "é" * 400, msgspec.Raw(b"[1]")]
    assert encode_many(values, "rows") == [encode(value, "rows") for value in values]
    assert encode_many(iter(values), "rows") == encode_many(values, "rows")
    assert encode_many([], "rows") == []
    assert [decode(text) for text in encode_many([msgspec.Raw(b"[\n1]"), 2], "rows")] == [[1], 2]


@pytest.mark.parametrize(
    ("bad", "message"),
    [(math.nan, "is nan"), ("\0", "holds a NUL"), (object(), "cannot be JSON"), ("\ud800", "surrogate")],
)
def test_of_many_the_bad_one_is_named(bad: object, message: str) -> None:
    with pytest.raises(InvalidArgument, match=r"rows\[2\] .*" + message):
        encode_many([None, "x", bad, 4], "rows")


@pytest.mark.parametrize("text", ["", "{", "nan", '{"a":}', b'"\xff"', "[" * 100_000])
def test_text_that_is_not_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidArgument, match="not JSON"):
        decode(text)
    with pytest.raises(InvalidArgument, match="not a list"):
        decode_as(text, list)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9" * 5000, Decimal("9" * 5000)),
        ('{"a": [-1%s, 2, 0.5]}' % ("0" * 4300), {"a": [Decimal("-1" + "0" * 4300), 2, 0.5]}),
        ("[1e400, 1e-400, 1.5]", [Decimal("1e400"), 0.0, 1.5]),
        (b'["\xc3\xa9", %s]' % (b"9" * 5000), ["é", Decimal("9" * 5000)]),
    ],
    ids=["whole", "negative", "real", "bytes"],
)
def test_numbers_that_python_has_no_other_place_for_are_decimals(text: str | bytes, value: object) -> None:
    assert decode(text) == value
    assert [type(each) for each in flat(decode(text))] == [type(each) for each in flat(value)]


def flat(value: Any) -> list[Any]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return [value] if items is None else [each for item in items for each in flat(item)]


def test_an_interpreter_that_converts_fewer_digits_reads_decimals() -> None:
    with digits(640):
        assert decode("[7, %s]" % ("9" * 1000)) == [7, Decimal("9" * 1000)]


def test_exact_numbers_stay_exact_beside_one_that_is_too_long() -> None:
    assert repr(decode_exactly("[0.1, 1234567890123456789.5, 1]")) == "[0.1, Decimal('1234567890123456789.5'), 1]"
    text = "[0.1, 1234567890123456789.5, %s]" % ("9" * 5000)
    assert decode_exactly(text) == [0.1, Decimal("1234567890123456789.5"), Decimal("9" * 5000)]


@pytest.mark.parametrize("inner", ["[1]", '{"b": "]}\\""}', '"\\"[{"'])
def test_below_the_hundredth_level_of_what_is_too_deep_is_its_text(inner: str) -> None:
    deep = '{"a": [' * 1000 + inner + "]}" * 1000
    found = decode(f'[1, {deep}, "[[", 2, {deep}]')
    assert (found[0], found[2:4], found[4]) == (1, ["[[", 2], found[1])
    level = found[1]
    for _ in range(49):
        [level] = level["a"]
    assert level == {"a": "[" + '{"a": [' * 950 + inner + "]}" * 950 + "]"}


def test_what_is_not_too_deep_is_not_cut() -> None:
    deep = "[" * 500 + "]" * 500
    assert json.dumps(decode(deep)) == deep


@pytest.mark.parametrize("end", ["", "x]", "}", ", NaN]", ", 1e99999999999999999999]"])
def test_text_that_is_not_json_behind_a_long_number_is_refused(end: str) -> None:
    with pytest.raises(InvalidArgument, match="not JSON that can be read here: Integer value out of range"):
        decode("[" + "9" * 5000 + end)


def test_decoding_as_a_type_is_strict_and_says_where() -> None:
    assert decode_as('{"id": 1, "lines": []}', Order) == Order(1, [])
    assert decode_as(b"[1, 2]", tuple[int, int]) == (1, 2)
    with pytest.raises(InvalidArgument, match=r"not a Order: Expected `int`, got `str` - at `\$.id`"):
        decode_as('{"id": "1", "lines": []}', Order)


def test_own_values_are_not_checked() -> None:
    assert encode_own({"a": "x" * 2**21}).endswith('x"}')


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
floats = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), floats, text),
    lambda inner: st.one_of(st.lists(inner), st.dictionaries(text, inner)),
    max_leaves=20,
)
hostile_text = st.text("\0\\u0\ud800nul")
hostile_values = st.recursive(
    st.one_of(st.floats(), hostile_text, st.none()),
    lambda inner: st.one_of(st.lists(inner), st.tuples(inner), st.dictionaries(hostile_text, inner)),
    max_leaves=10,
)


@given(json_values)
def test_what_goes_in_comes_out(value: object) -> None:
    text = encode(value, "x")
    assert decode(text) == decode(text.encode()) == json.loads(text) == value


@given(st.lists(json_values, max_size=8))
def test_many_go_in_and_come_out(values: list[object]) -> None:
    assert [decode(text) for text in encode_many(values, "x")] == values


@given(hostile_values)
def test_what_jsonb_cannot_hold_is_always_refused_and_nothing_else(value: object) -> None:
    def storable(item: object) -> bool:
        if isinstance(item, float):
            return math.isfinite(item)
        if isinstance(item, str):
            return "\0" not in item and "\ud800" not in item
        if isinstance(item, dict):
            return all(map(storable, item)) and all(map(storable, item.values()))
        return all(map(storable, item)) if isinstance(item, list | tuple) else True

    try:
        encode(value, "x")
    except InvalidArgument:
        assert not storable(value)
    else:
        assert storable(value)
