"""Everything of the event log that runs often, and every way to look at it."""

from __future__ import annotations

from .session import Session

MANY = "[" + ",".join(["1"] * 50) + "]"
ALL: dict[str, object] = {"everything": True, **dict.fromkeys(("topic", "low", "high", "regex"))}


def exercise(session: Session) -> None:
    run = session.run
    plain = {"expected_version": None, "headers": '{"a": "b"}', "idempotency_key": None}
    for topic in ("orders.eu", "orders.us", "new"):
        run("events.append", topic=topic, data="{}", type="t", key=None, **plain)
        run("events.append_many", topic=topic, data=MANY, types=["t"], keys=None, **plain)
        run("events.append_many", topic=topic, data="[1, 2, 3]", types=["t", "u", "v"], keys=["a", None, "a"], **plain)
        run("events.append", topic=topic, data="{}", type="t", key="k", **plain)
        version = run("events.version", topic=topic, key="k")[0][0]
        for expected in (version, version, 0):
            run("events.append", topic=topic, data="{}", type="t", key="k", **plain | {"expected_version": expected})
        version = run("events.version", topic=topic, key="k")[0][0]
        for expected in (version, version, 0):
            more = plain | {"expected_version": expected, "idempotency_key": "e"}
            run("events.append_many", topic=topic, data=MANY, types=["t"], keys=["k"], **more)
        for _ in range(2):
            run("events.append", topic=topic, data="1", type="t", key=None, **plain | {"idempotency_key": "i"})
            run(
                "events.append_many",
                topic=topic,
                data="[1]",
                types=["t"],
                keys=None,
                **plain | {"idempotency_key": "j"},
            )
    run("events.append_many", topic="orders.eu", data="[]", types=["t"], keys=None, **plain)

    head = run("events.horizon", after=0, own=True)[0][0]
    run("events.horizon", after=head, own=False)
    page: dict[str, object] = {"limit": 100, "key": None, "type": None}
    one = ALL | {"everything": False, "topic": "orders.eu"}
    some = ALL | {"everything": False, "low": "orders.", "high": "orders/", "regex": "^orders[.][^.]+$"}
    for topics in (ALL, one, some):
        run("events.near", after=head - 400, upto=head, **topics, **page)
        run("events.near", after=head - 400, upto=head, **topics, **page | {"key": "k", "type": "t"})
        run("events.own", after=head - 400, upto=2**62, **topics, **page)
    for topics in (one, some):
        far = {name: value for name, value in topics.items() if name != "everything"}
        for more in ({}, {"key": "k"}, {"type": "t"}):
            run("events.far", after=0, upto=head, **far, **page | more)
    run("events.get", positions=[head, head - 1])
    run("events.position_at", at="2020-01-01 00:00:00+00")
    run("events.stalled_by")
    for name in ("dropped", "uncounted", "kept", "may_extend", "discard", "discardable"):
        run(f"events.{name}")
    run("events.topics", **{name: value for name, value in some.items() if name != "everything"})
    run("events.count", first=-5_000_000)
    run("events.extend", ahead=1)
    run("events.drop", upto=0)
    run("events.forget", seconds=3600.0, limit=10)
    run("events.keep", seconds=None)
    run("events.sleep", id=1, seconds=5.0)
    run("events.append", topic="orders.eu", data="{}", type="t", key=None, **plain)
    run("events.append_many", topic="orders.eu", data="[1]", types=["t"], keys=None, **plain)
    run("events.awake", id=1)
