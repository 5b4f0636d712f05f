"""The worker's command line.

Promises: a wrong argument or an app that cannot be served is one clear line on stderr and an exit code of its own; the
exit code after a drain, a release or an order to stop is 0.
"""

import argparse
import asyncio
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.credentials import read_credentials
from fleetd.errors import FleetdError, UsageError
from fleetd.worker.app import find_app
from fleetd.worker.children import TOKEN_VARIABLE
from fleetd.worker.lease import make_controller
from fleetd.worker.logs import event, set_up
from fleetd.worker.settings import Settings
from fleetd.worker.supervisor import Supervisor

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")


def main(argv: Sequence[str]) -> int:
    """Run a worker until it is told to stop; returns the exit code."""
    arguments = _parser().parse_args(argv)
    set_up(arguments.log_format)
    try:
        settings = _settings(arguments)
        set_up(settings.log_format, pool=settings.pool)
        credentials = read_credentials()
        if any(server.tls for server in settings.servers):
            credentials.context()  # what cannot be used is told at once
        controller = None
        if settings.controller:
            token = os.environ.get(TOKEN_VARIABLE, "")
            controller = make_controller(settings.controller, token, settings.node, settings.spool)
        event(
            logging.INFO,
            "worker started",
            app=settings.app_name,
            slots=settings.slots,
            node=settings.node,
            servers=",".join(map(str, settings.servers)),
            digest=settings.digest[:12],
        )

        async def run() -> int:
            return await Supervisor(settings, controller, credentials).run()

        code = asyncio.run(run())
    except FleetdError as error:
        event(logging.CRITICAL, f"{error}")
        return error.exit_code
    event(logging.INFO, "worker ended", code=code)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetd worker", description="Run jobs from Gearman dispatchers.", allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--server",
        action="append",
        required=True,
        metavar="HOST:PORT",
        help="a dispatcher, tls://HOST:PORT where it speaks TLS; may be repeated",
    )
    add(
        "--app", type=Path, required=True, metavar="PATH", help="a folder with pyproject.toml or jobs.py, or a .py file"
    )
    add(
        "--slots",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="jobs at a time",
    )
    add("--pool", default="local", help="the pool this worker belongs to")
    add("--fleet", default="local", help="the fleet this worker belongs to")
    add("--app-name", default="", metavar="NAME", help="the app's name (default: its project's or file's name)")
    add(
        "--controller", default="", metavar="URL", help=f"where leases go; the join token is read from {TOKEN_VARIABLE}"
    )
    add("--node", default="", metavar="ID", help="this node's identity (default: POOL/PID.STARTTIME)")
    add("--order-key", default="", metavar="KEY", help="the key of the order that started this node")
    add("--job-limit", type=_seconds, metavar="SECONDS", help="the longest a job may run, if it does not say itself")
    add("--attempts", type=_positive, default=3, metavar="N", help="attempts before a job is dead (default: 3)")
    add("--spool", type=Path, metavar="DIR", help="where dead letters wait (default: below XDG_STATE_HOME)")
    add("--orphan-after", type=_seconds, default=600.0, metavar="SECONDS", help="idle and unheard for so long: end")
    add("--drain-deadline", type=_seconds, metavar="SECONDS", help="release what still runs so long after a TERM")
    add("--log-format", choices=("text", "json"), default="text")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    app = find_app(arguments.app)
    servers = tuple(dict.fromkeys(map(parse_address, arguments.server)))  # the same one twice is one
    return Settings(
        servers=servers,
        app=app.path,
        slots=arguments.slots,
        spool=(arguments.spool or _spool(arguments.fleet, arguments.pool)).absolute(),
        pool=arguments.pool,
        fleet=arguments.fleet,
        app_name=arguments.app_name or app.name,
        node=arguments.node or f"{arguments.pool}/{os.getpid()}.{start_time()}",
        digest=app.digest,
        controller=arguments.controller,
        order_key=arguments.order_key,
        job_limit_s=arguments.job_limit,
        attempts=arguments.attempts,
        orphan_after_s=arguments.orphan_after,
        drain_deadline_s=arguments.drain_deadline,
        log_format=arguments.log_format,
    )


def start_time() -> int:
    """When this process started, in clock ticks since the machine's start: with the pid, it names the process."""
    # The name of the program, field 2, may hold anything, spaces and brackets included: count from its end.
    return int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])


def _spool(fleet: str, pool: str) -> Path:
    """A folder for each pool, so that no letter goes to another fleet's controller."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    except RuntimeError:
        raise UsageError("--spool: there is neither XDG_STATE_HOME nor a home folder; say where") from None
    return state / "fleetd" / "dead" / _UNSAFE.sub("_", fleet) / _UNSAFE.sub("_", pool)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


_positive.__name__, _seconds.__name__ = "positive number", "number of seconds"  # argparse shows them
