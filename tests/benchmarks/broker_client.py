"""A process that handles messages of one broker: `broker_client.py NAME WHERE COUNT`.

Prints `ready`, handles so many, and prints a JSON object: the seconds from the first to the last of them, and the
latencies in seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from brokers import Enough, available


def main() -> None:
    """Handle the messages."""
    name, where, count = sys.argv[1:]
    latencies: list[float] = []
    began = 0.0

    def handle(at: float) -> None:
        nonlocal began
        now = time.monotonic()
        began = began or now
        latencies.append(now - at)
        if len(latencies) >= int(count):
            raise Enough

    asyncio.run(available()[name]().consume(where, lambda: print("ready", flush=True), handle))
    print(json.dumps({"took": time.monotonic() - began, "latencies": latencies}))


if __name__ == "__main__":
    main()
