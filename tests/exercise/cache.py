"""Everything of the cache."""

from __future__ import annotations

from .session import Session


def exercise(session: Session) -> None:
    run = session.run
    keys = [f"key-{n}" for n in range(50)]
    value = {"value": '"v"', "data": None, "ttl": 60.0}
    run("cache.configure", max_entries=100_000, max_bytes=None, given=["max_entries", "max_bytes"])
    run("cache.listen", seconds=60.0)
    run("cache.set_many", keys=keys, values=['"v"'] * 50, datas=[None] * 50, ttl=None, tags=None)
    for tags in (None, ["s", "t"], ["t", "u"]):
        run("cache.set", key="k", **value, tags=tags)
        run("cache.get", key="k")
        run("cache.look", key="k")
        run("cache.get_many", keys=["k", *keys])
        run("cache.touch", key="k", ttl=None)
        run("cache.add", key="k", **value)
        run("cache.increment", key="n", by=1, ttl=60.0)
        run("cache.invalidate", keys=["k", "absent"], tags=tags or [], hint="\tcache all")
        for state in ("taken", "held"):
            lease = {"hold": 60.0, "stale": 0.0, "refresh": False, "tags": tags}
            answer = run("cache.lease", key="computed", lease=7, **lease)[0]
            assert answer[0] == state
        settle = {
            "generations": answer[4],
            "stale": 60.0,
            "took": 0.1,
            "error": None,
            "error_ttl": None,
        }
        assert run("cache.settle", key="computed", lease=7, **value, **settle) == [(True,)]
        assert run("cache.lease", key="computed", lease=8, **lease)[0][0] == "hit"
        refreshed = run("cache.lease", key="computed", lease=8, **lease | {"refresh": True})[0]
        assert refreshed[0] == "taken"
        failed = settle | {"value": None, "data": None, "ttl": None, "error": "E", "error_ttl": 0.0}
        assert run("cache.settle", key="computed", lease=8, **failed) == [(True,)]
        run("cache.invalidate", keys=["computed"], tags=[], hint="\tcache:computed")
        run("cache.sweep", entries=500)
    run("cache.count", slot=1, hits=1, misses=1, fills=1, waits=1)
    run("cache.stats")
    run("cache.log", logged=False)
    run("cache.clear", after="key-")
