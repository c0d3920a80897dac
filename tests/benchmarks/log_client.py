"""A client process of events.py: appends as fast as it can for so many seconds, and says how many events it was.

Say `ready` when connected; begin at a line on standard input; answer with the number of events.
"""

from __future__ import annotations

import sys
import time

from logs import LOGS


def main() -> None:
    """Run one client."""
    name, url, batch, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
    log = LOGS[name]()
    log.open(url)
    log.append()
    print("ready", flush=True)
    sys.stdin.readline()
    done, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        if batch == 1:
            log.append()
        else:
            log.append_many(batch)
        done += batch
    print(done, flush=True)


if __name__ == "__main__":
    main()
