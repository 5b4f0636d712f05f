"""The load: jobs fall due by a plan made in advance, whether or not those before have run (an open loop).

python -m bench.reload.load SENDER --jobs N --rate R --ms MS --seed S --out FILE [--even]

SENDER is the module in bench/apps whose `send(batch)` queues jobs; its broker is named by the environment. What falls
due while a batch is under way goes with the next one. A job's wait is counted from the moment that it was *due*: if the
client or the broker is late, the wait grows, and is not quietly left out. FILE gets a line "UNIQUE DUE SENT" for each
job that the broker has confirmed. Rate 0: all are due at once. Clients are elsewhere in earnest: where it may, this one
takes precedence over the workers that share its machine. SIGTERM ends the load after the batch that is under way.
"""

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

MOST = 500  # in one batch
START_S = 0.3
NICE = -10


def due_times(jobs: int, rate: float, seed: int, *, even: bool) -> Iterator[float]:
    """Return when each job falls due, in seconds from the start: at an even pace, or as a Poisson stream."""
    if not rate:
        return iter([0.0] * jobs)
    chance = random.Random(seed)
    return accumulate((1 / rate if even else chance.expovariate(rate)) for _ in range(jobs))


def main(argv: list[str]) -> int:
    """Send the load."""
    parser = argparse.ArgumentParser(prog="bench.reload.load", description=__doc__)
    parser.add_argument("sender")
    parser.add_argument("--jobs", type=int, required=True)
    parser.add_argument("--rate", type=float, required=True)
    parser.add_argument("--ms", type=float, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--even", action="store_true")
    given = parser.parse_args(argv)
    send = importlib.import_module(f"bench.apps.{given.sender}").send
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    due = list(due_times(given.jobs, given.rate, given.seed, even=given.even))
    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    start = time.monotonic() + START_S
    with given.out.open("w") as out:
        at = 0
        while at < len(due) and not over.is_set():
            time.sleep(max(0.0, start + due[at] - time.monotonic()))
            end, now = at, time.monotonic() - start
            while end < len(due) and due[end] <= now and end - at < MOST:
                end += 1
            batch = [(f"{given.seed:x}-{number:08x}", f"{start + due[number]:.6f}") for number in range(at, end)]
            send([(unique, f"{unique} {when} {given.ms:g}") for unique, when in batch])
            sent = f"{time.monotonic():.6f}"
            out.writelines(f"{unique} {when} {sent}\n" for unique, when in batch)
            at = end
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
