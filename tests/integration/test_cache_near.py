"""The cache through a process's own memory: as old as it says at most, and usually newer."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from pgeverything import AsyncPgEverything, InvalidArgument, PgEverything
from pgeverything.cache import memory
from tests.waiting import eventually

from . import carriers

if TYPE_CHECKING:
    from .carriers import Face

    Database = psycopg.Connection[Any]

KINDS = [name for name in carriers.CARRIERS if name not in carriers.JOINED]


@pytest.fixture(scope="module", params=KINDS)
def _alone(request: pytest.FixtureRequest, url: str) -> Iterator[Face]:
    with carriers.opened(request.param, url) as face:
        yield face


@pytest.fixture
def near(_alone: Face, db: Database) -> Any:
    """A near cache on each carrier of our own, with no help from hints."""
    return carriers.blocking(_alone.pg.cache.near("1h", 100), _alone.run)


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hints arrive: LISTEN does not work, say."""
    monkeypatch.setattr("pgeverything.engine.hints.Ears.watch", lambda *_: lambda: None)


def test_what_was_read_is_kept(deaf: None, near: Any, pg: PgEverything) -> None:
    pg.cache.set_many({"a": [1], "b": None, "c": b"c"})
    assert near.get_many(["a", "b", "c", "d"]) == {"a": [1], "b": None, "c": b"c"}
    pg.cache.clear()
    assert near.get_many(["a", "b", "c", "d"]) == {"a": [1], "b": None, "c": b"c"}
    assert near.get("b", 7) is None
    assert near.get("d", 7) == 7
    near.get("a").append(2)
    assert near.get("a") == [1]  # nobody gets what another may change
    near.forget()
    assert near.get_many(["a", "b", "c"]) == {}


def test_what_is_not_there_is_asked_for_again(deaf: None, near: Any, pg: PgEverything) -> None:
    assert near.get("a") is None
    pg.cache.set("a", 1)
    assert near.get("a") == 1


def test_a_value_is_computed_once(deaf: None, near: Any, pg: PgEverything) -> None:
    count = itertools.count(1).__next__
    assert near.get_or_set("a", count, tags=["t"]) == 1
    pg.cache.invalidate(tags=["t"])
    assert near.get_or_set("a", count, tags=["t"]) == 1
    near.invalidate(tags=["t"])
    assert near.get_or_set("a", count, tags=["t"]) == 2
    assert pg.cache.get("a") == 2


def test_it_is_as_old_as_it_says_at_most(
    deaf: None, pg: PgEverything, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 0.0
    monkeypatch.setattr(memory, "now", lambda: at)
    near = pg.cache.near("2s")
    pg.cache.set("a", 1)
    assert near.get("a") == 1
    pg.cache.invalidate("a")
    at = 1.999
    assert near.get("a") == 1
    at = 2.0
    assert near.get("a") is None


@pytest.mark.parametrize("kind", ["url", "async-url"])
@pytest.mark.parametrize("how", ["key", "keys", "tag", "transaction"])
def test_invalidations_elsewhere_are_heard(direct_url: str, pg: PgEverything, kind: str, how: str) -> None:
    with carriers.opened(kind, direct_url) as face:
        near = carriers.blocking(face.pg.cache.near("1h"), face.run)
        pg.cache.set("a", 1, tags=["t"])
        pg.cache.set("other", 1)
        near.get_many(["a", "other"])
        eventually(lambda: hears(face.pg), "it to listen")
        near.forget()
        assert near.get_many(["a", "other"]) == {"a": 1, "other": 1}
        if how == "key":
            pg.cache.delete("a")
        elif how == "keys":
            pg.cache.invalidate("a", "b")
        elif how == "tag":
            pg.cache.invalidate(tags=["t"])
        else:
            with pg.transaction() as tx:
                tx.cache.invalidate("a")
                assert near.get("a") == 1
        eventually(lambda: near.get("a") is None, "the hint to arrive")
        assert near.get("other") == 1


def hears(pg: Any) -> bool:
    return pg._database._ears.channel is not None


def test_nobody_is_told_where_nobody_keeps_anything(pg: PgEverything, direct_url: str, db: Database) -> None:
    with psycopg.connect(direct_url, autocommit=True) as listener:
        listener.execute("listen pgeverything")
        pg.cache.invalidate("a", tags=["t"])
        pg.cache.near().get("a")
        pg.cache.invalidate("a")
        db.execute("update pgeverything.cache_near set until = now()")
        pg.cache.invalidate("a")
        listener.execute("notify pgeverything, 'end'")
        heard = [found.payload for found in listener.notifies(stop_after=2)]
    assert [payload for payload in heard if not payload.startswith("test ")] == ["\tcache:a", "end"]


def test_it_is_found_in_memory_without_a_statement(pg: PgEverything, db: Database) -> None:
    near = pg.cache.near("1h")
    pg.cache.set("a", 1)
    near.get("a")
    before = pg.cache.stats()
    for _ in range(100):
        assert near.get("a") == 1
    after = pg.cache.stats()
    assert (after.hits - before.hits, after.misses - before.misses) == (100, 0)


def test_arguments_that_are_refused(pg: PgEverything) -> None:
    for wrong in ({"ttl": 0}, {"ttl": "soon"}, {"entries": 0}, {"entries": 1.5}):
        with pytest.raises(InvalidArgument):
            pg.cache.near(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="key=''"):
        pg.cache.near().get("")


# Cached functions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rate:
    currency: str
    value: float


class Counted:
    """Counts calls of what it makes."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> int:
        self.calls.append(args)
        return len(self.calls)


@pytest.fixture
def counted() -> Counted:
    return Counted()


def test_results_are_kept_by_key(pg: PgEverything, counted: Counted) -> None:
    @pg.cached(key="rate:{currency}:{day}", ttl="1m", tags=["rates", "rate:{currency}"])
    def rate(currency: str, day: int = 1) -> Rate:
        """The rate of a day."""
        return Rate(currency, counted(currency, day))

    assert rate("EUR") == rate("EUR", day=1) == rate(currency="EUR") == Rate("EUR", 1.0)
    assert rate("EUR", 2) == Rate("EUR", 2.0)
    assert rate.key("EUR", day=2) == "rate:EUR:2"
    assert pg.cache.get("rate:EUR:2") == {"currency": "EUR", "value": 2}
    rate.invalidate("EUR")
    assert rate("EUR").value == 3
    pg.cache.invalidate(tags=["rate:EUR"])
    assert rate("EUR").value == 4
    with pg.transaction() as tx:
        tx.cache.invalidate(rate.key("EUR"))
    assert rate("EUR").value == 5
    assert (rate.__name__, rate.__doc__, rate.__wrapped__("X", 1).currency) == ("rate", "The rate of a day.", "X")


def test_keys_and_tags_made_by_functions(pg: PgEverything, counted: Counted) -> None:
    @pg.cached(key=lambda ids: ",".join(map(str, ids)), tags=lambda ids: [f"id:{n}" for n in ids])
    def total(ids: list[int]) -> int:
        return counted(*ids)

    assert (total([1, 2]), total([1, 2]), total([2, 1])) == (1, 1, 2)
    pg.cache.invalidate(tags=["id:2"])
    assert (total([1, 2]), total([2, 1])) == (3, 4)


def test_methods(pg: PgEverything, counted: Counted) -> None:
    class Account:
        def __init__(self, number: int) -> None:
            self.number = number

        @pg.cached(key="balance:{self.number}:{currency}")
        def balance(self, currency: str) -> int:
            return counted(self.number, currency)

    one, two = Account(1), Account(2)
    assert (one.balance("EUR"), one.balance("EUR"), two.balance("EUR")) == (1, 1, 2)
    assert Account.balance.key(one, "EUR") == "balance:1:EUR"


def test_a_method_of_an_object_knows_it(pg: PgEverything, counted: Counted) -> None:
    """Where parameters have defaults, an argument that is taken for another one makes another key, and no error."""

    class Rates:
        number = 7

        @pg.cached(key="rate:{self.number}:{currency}", tags=["rates"])
        def rate(self, currency: str = "USD") -> int:
            return counted(currency)

    rates = Rates()
    assert (rates.rate("EUR"), rates.rate(), rates.rate(currency="EUR")) == (1, 2, 1)
    assert rates.rate.key("EUR") == Rates.rate.key(rates, "EUR") == "rate:7:EUR"
    assert rates.rate.key() == "rate:7:USD"
    rates.rate.invalidate("EUR")
    assert (rates.rate("EUR"), rates.rate()) == (3, 2)
    assert rates.rate.__name__ == "rate"


async def test_so_does_an_asynchronous_one(url: str, db: Database, counted: Counted) -> None:
    async with AsyncPgEverything(url) as apg:

        class Rates:
            @apg.cached(key="rate:{currency}")
            async def rate(self, currency: str = "USD") -> int:
                return counted(currency)

        rates = Rates()
        assert (await rates.rate("EUR"), await rates.rate()) == (1, 2)
        await rates.rate.invalidate("EUR")
        assert (await rates.rate("EUR"), await rates.rate()) == (3, 2)


def test_a_result_of_another_release_is_computed_anew(pg: PgEverything) -> None:
    @pg.cached(key="rate")
    def rate() -> Rate:
        return Rate("EUR", 1.0)

    pg.cache.set("rate", {"currency": "EUR", "rate": 7})
    assert rate() == rate() == Rate("EUR", 1.0)
    assert pg.cache.get("rate") == {"currency": "EUR", "value": 1.0}


def test_bytes_and_what_is_not_annotated(pg: PgEverything) -> None:
    @pg.cached(key="picture:{n}")
    def picture(n: int) -> bytes | None:
        return b"\0" * n or None

    @pg.cached(key="anything")
    def anything():  # type: ignore[no-untyped-def]
        return (1, 2)

    assert [picture(2), picture(2), picture(0), picture(0)] == [b"\0\0", b"\0\0", None, None]
    assert [anything(), anything()] == [[1, 2], [1, 2]]


async def test_asyncio(url: str, db: Database, counted: Counted) -> None:
    async with AsyncPgEverything(url) as apg:

        @apg.cached(key="rate:{currency}", tags=["rates"])
        async def rate(currency: str) -> Rate:
            await asyncio.sleep(0)
            return Rate(currency, counted(currency))

        @apg.cached(key="plain", near="1h")
        def plain() -> int:
            return counted()

        assert [await rate("EUR"), await rate("EUR")] == [Rate("EUR", 1.0)] * 2
        await rate.invalidate("EUR")
        assert (await rate("EUR")).value == 2
        assert [await plain(), await plain()] == [3, 3]


def test_near_results(deaf: None, pg: PgEverything, counted: Counted) -> None:
    @pg.cached(key="rate", near="1h")
    def rate() -> Rate:
        return Rate("EUR", counted())

    assert rate() == Rate("EUR", 1.0)
    pg.cache.invalidate("rate")
    assert rate() == Rate("EUR", 1.0)
    rate.invalidate()
    assert rate() == Rate("EUR", 2.0)


def refused(pg: PgEverything) -> list[tuple[Callable[[], Any], str]]:
    class Plain: ...

    def one(n: int) -> int:
        return n

    async def awaited(n: int) -> int:
        return n

    def strange(n: int) -> Rate | dict[str, int]:
        return {"n": n}

    def mistaken(n: int) -> str:
        return n  # type: ignore[return-value]

    return [
        (lambda: pg.cached(key="k:{m}")(one), r"'k:\{m\}' names 'm', which is no parameter of .*one\(n: 'int'\)"),
        (lambda: pg.cached(key="k:{}")(one), "names ''"),
        (lambda: pg.cached(key="k:{n")(one), "is not a template"),
        (lambda: pg.cached(key="k", tags=["{m}"])(one), "names 'm'"),
        (lambda: pg.cached(key="k", tags="t")(one), "tags='t' must be a list of templates"),
        (lambda: pg.cached(key=7)(one), "key=7 must be a template"),  # type: ignore[arg-type]
        (lambda: pg.cached(key="k", ttl=0)(one), "ttl=0"),
        (lambda: pg.cached(key="k", near=0)(one), "near=0"),
        (lambda: pg.cached(key="k")(awaited), "awaited is asynchronous: use AsyncPgEverything"),
        (lambda: pg.cached(key="k")(strange), "strange cannot be cached: it returns"),
        (lambda: pg.cached(key="k")(mistaken)(1), "does not fit its annotation"),
        (lambda: pg.cached(key="{n}")(one)(Plain()), "a key cannot be made from a .*Plain"),  # type: ignore[arg-type]
        (lambda: pg.cached(key="{n}")(one)(""), "key=''"),  # type: ignore[arg-type]
        (lambda: pg.cached(key=lambda n: n)(one)(7), "key=7 must be text"),
        (lambda: pg.cached(key="k:{n:{m}}")(one), "names 'm'"),
        (lambda: pg.cached(key="k:{n!z}")(one), "is not a template: .*'z'"),
        (lambda: pg.cached(key="k", tags=["t", 7])(one), r"tags=\['t', 7\] must be a list of templates"),  # type: ignore[list-item]
        (lambda: pg.cached(key="k")(7), "7 is no function"),  # type: ignore[arg-type]
        (lambda: pg.cached(key="k")(classmethod(one)), "below @classmethod"),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("case", range(19))
def test_functions_that_cannot_be_cached(pg: PgEverything, case: int) -> None:
    call, message = refused(pg)[case]
    with pytest.raises(InvalidArgument, match=message):
        call()
