"""A number that one writer raises and eight processes read through the cache: nobody ever sees it go back.

The writer invalidates in the transaction that raises the number, by key and by tag, and rolls some of them back. A
reader first learns which number is committed; what the cache gives it afterwards may not be older.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import psycopg

from pgeverything import PgEverything
from tests.waiting import PATIENCE

from .fleet import REPOSITORY

COMMITS = int(os.environ.get("FAULTS_COMMITS", "250"))
READERS = 8

READER = """
import json, random, sys, time
import psycopg
from pgeverything import PgEverything

url, seed = sys.argv[1], int(sys.argv[2])
random.seed(seed)
last, looks, computed, hits, faults = {}, 0, 0, 0, []
with psycopg.connect(url, autocommit=True) as database, PgEverything(url) as pg:

    def number():
        return database.execute("select n, ended from register").fetchone()

    def compute():
        global computed
        computed += 1
        found, _ = number()
        if random.random() < 0.3:
            time.sleep(random.random() * 0.02)  # so that it is stored late
        return found

    print("ready", flush=True)
    while not (now := number())[1]:
        floor = now[0]
        key, options = random.choice([
            ("by-key", {}), ("by-tag", {"tags": ["register"]}), ("both", {"tags": ["register", "other"]}),
            ("stale", {"ttl": "10ms", "stale": "1m"}), ("early", {"early": 50.0}),
        ])
        if random.random() < 0.2:
            found = pg.cache.get(key)
        else:
            found = pg.cache.get_or_set(key, compute, **{"ttl": "1m"} | options)
        looks += 1
        if found is not None:
            if found < floor:
                faults.append([key, "older than what was committed", found, floor])
            if found < last.get(key, 0):
                faults.append([key, "went back", found, last[key]])
            last[key] = found
    pg.cache.stats()  # says what was counted here, which otherwise waits for the next ten seconds to be over
print(json.dumps({"looks": looks, "computed": computed, "faults": faults[:10]}))
"""


def test_it_never_goes_back(url: str, chance: random.Random) -> None:
    keys = ["by-key", "both", "stale", "early"]
    with psycopg.connect(url, autocommit=True) as database, PgEverything(url) as pg:
        database.execute("create table register as select 1 as n, false as ended")
        readers = [
            subprocess.Popen([sys.executable, "-c", READER, url, str(seed)], stdout=subprocess.PIPE, cwd=REPOSITORY)
            for seed in range(READERS)
        ]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == b"ready\n"
            for n in range(2, COMMITS + 2):
                commit = False
                while not commit:
                    commit = chance.random() < 0.8
                    with pg.transaction() as tx:
                        if first := chance.random() < 0.5:
                            tx.cache.invalidate(*keys, tags=["register"])
                        # A second transaction that is rolled back leaves the number as it was.
                        tx.connection.execute("update register set n = %s", [n if commit else n + 1000])
                        tx.connection.execute("select pg_sleep(%s)", [chance.random() * 0.01])
                        if not first:
                            tx.cache.invalidate(*keys, tags=["register"])
                        if not commit:
                            raise psycopg.Rollback
            database.execute("update register set ended = true")
            results = [json.loads(reader.communicate(timeout=PATIENCE)[0]) for reader in readers]
            stats = pg.cache.stats()
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()

    assert [result["faults"] for result in results] == [[]] * READERS
    looks, computed = (sum(result[name] for result in results) for name in ("looks", "computed"))
    assert looks > 10 * READERS
    assert 0 < computed < looks / 2, "the cache was hardly used: this run has shown nothing"
    assert stats.fills > COMMITS / 10
