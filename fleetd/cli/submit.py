"""`fleetd submit`: hands a job to a dispatcher and waits for its result, but never for ever; or a batch of them."""

import argparse
import sys
from pathlib import Path
from typing import Final

from fleetd.client import Client, Files, JobError
from fleetd.errors import UsageError

WAIT_S: Final = 30.0
EXIT_JOB: Final = 4
STDIN: Final = Path("-")


def main(argv: list[str]) -> int:
    """Run the command; returns 0, or 4 where a job failed or did not end in time."""
    given = _parser().parse_args(argv)
    _check(given)
    servers = given.server or ["127.0.0.1:4730"]
    if given.batch is not None:
        from fleetd.cli.batch import Batch, run

        file = None if given.batch == STDIN else given.batch
        return EXIT_JOB if run(Batch(given.function, file, servers, given.wait, given.priority, given.keep)) else 0
    with Client(servers, files=Files.from_environment()) as client:
        try:
            result = _one(client, given)
        except JobError as error:
            print(f"fleetd: {error}", file=sys.stderr)
            return EXIT_JOB
    sys.stdout.buffer.write(result)
    return 0


def _one(client: Client, given: argparse.Namespace) -> bytes:
    function, unique = given.function, given.unique
    if given.result is not None:
        return client.result(given.result, function=function, wait_s=given.wait, into=given.into)
    payload = b"" if given.file else sys.stdin.buffer.read() if given.payload is None else given.payload.encode()
    if given.background:
        handle = client.submit(
            function, payload, unique=unique, priority=given.priority, file=given.file, keep_result_s=given.keep
        )
        return f"{handle.server} {handle.handle} {handle.unique}\n".encode()
    return client.run(
        function, payload, wait_s=given.wait, unique=unique, priority=given.priority, file=given.file, into=given.into
    )


def _check(given: argparse.Namespace) -> None:
    for name in ("wait", "keep"):
        value = getattr(given, name)
        if value is not None and not 0 < value < 1e7:
            raise UsageError(f"submit: --{name}: must be a positive number of seconds, not {value:g}")
    if given.batch is not None and (given.payload is not None or given.file or given.unique or given.background):
        raise UsageError("submit: --batch: each line of its file is a payload; it goes with --keep, --wait, --priority")
    if given.file and given.payload is not None:
        raise UsageError("submit: --file: goes in the place of the payload; leave one out")
    if given.keep is not None and given.batch is None and not given.background:
        raise UsageError("submit: --keep: what is waited for is not kept; it goes with --background or --batch")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetd submit",
        description=f"{__doc__} Files and kept results need FLEETD_URL and FLEETD_TOKEN.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("function", help="the job's name")
    add("--server", action="append", metavar="HOST:PORT", help="a dispatcher; again for more")
    add("--payload", help="the payload as text; default: standard input")
    add("--file", type=Path, metavar="PATH", help="a file in the place of the payload")
    add("--into", type=Path, metavar="PATH", help="the file that the result goes to; default: standard output")
    add("--batch", type=Path, metavar="FILE", help="one job for each line of this file, - for standard input")
    add("--unique", help="jobs of one function with the same unique are one job")
    add("--priority", choices=("low", "normal", "high"), default="normal")
    add("--background", action="store_true", help="do not wait; print the job's handle")
    add("--keep", type=float, metavar="SECONDS", help="with --background or --batch: have the end kept for so long")
    add("--result", metavar="UNIQUE", help="submit nothing; fetch the end of an earlier job")
    add("--wait", type=float, default=WAIT_S, metavar="SECONDS", help="give up after (default 30)")
    return parser
