"""`fleetd submit`: hands a job to a dispatcher and waits for its result, but never for ever."""

import argparse
import sys
from typing import Final

from fleetd.client import Client, JobError
from fleetd.errors import UsageError

WAIT_S: Final = 30.0
EXIT_JOB: Final = 4


def main(argv: list[str]) -> int:
    """Run the command; returns 0, or 4 where the job failed or did not end in time."""
    parser = argparse.ArgumentParser(prog="fleetd submit", description=__doc__, allow_abbrev=False)
    parser.add_argument("function", help="the job's name")
    parser.add_argument("--server", action="append", metavar="HOST:PORT", help="a dispatcher; again for more")
    parser.add_argument("--payload", help="the payload as text; default: standard input")
    parser.add_argument("--unique", help="jobs of one function with the same unique are one job")
    parser.add_argument("--priority", choices=("low", "normal", "high"), default="normal")
    parser.add_argument("--background", action="store_true", help="do not wait; print the job's handle")
    parser.add_argument("--wait", type=float, default=WAIT_S, metavar="SECONDS", help="give up after (default 30)")
    given = parser.parse_args(argv)
    if not 0 < given.wait < 1e7:
        raise UsageError(f"submit: --wait: must be a positive number of seconds, not {given.wait:g}")
    payload = sys.stdin.buffer.read() if given.payload is None else given.payload.encode()
    with Client(given.server or ["127.0.0.1:4730"]) as client:
        try:
            if given.background:
                handle = client.submit(given.function, payload, unique=given.unique, priority=given.priority)
                print(handle.server, handle.handle, handle.unique)
                return 0
            result = client.run(
                given.function, payload, wait_s=given.wait, unique=given.unique, priority=given.priority
            )
        except JobError as error:
            print(f"fleetd: {error}", file=sys.stderr)
            return EXIT_JOB
    sys.stdout.buffer.write(result)
    return 0
