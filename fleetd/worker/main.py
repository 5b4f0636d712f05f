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

_SIZE: Final = re.compile(r"([0-9]{1,12})([KMG]?)i?B?", re.IGNORECASE)
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
            controller = make_controller(settings.controller, token, settings.node, settings.app_name, settings.spool)
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
        "--app",
        type=Path,
        metavar="PATH",
        help="a folder with pyproject.toml or jobs.py, or a .py file; without it the controller says which release",
    )
    add(
        "--slots",
        type=_positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="jobs at a time",
    )
    add("--per-process", type=_positive, default=1, metavar="N", help="jobs that each of the slots runs at a time")
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
    add("--cache", type=Path, metavar="DIR", help="where releases are kept (default: below XDG_CACHE_HOME)")
    add(
        "--key", action="append", default=[], metavar="KEY", help="a public key: releases must be signed by one of them"
    )
    add("--overlap", type=_count, default=0, metavar="N", help="slots of a new generation at a time (default: all)")
    add("--health", type=_seconds, default=3.0, metavar="SECONDS", help="what a health check may take (default: 3)")
    add("--probation", type=_seconds, default=60.0, metavar="SECONDS", help="how long new code is on trial")
    add("--crashes", type=_positive, default=2, metavar="N", help="so many jobs that crash it turn new code back")
    add("--slot-memory", type=_size, default=0, metavar="SIZE", help="what a slot may use by itself, as 200MB")
    add("--recycle-jobs", type=_count, default=0, metavar="N", help="renew a slot after so many jobs")
    add("--recycle-after", type=_seconds, default=0.0, metavar="SECONDS", help="renew a slot of this age")
    add("--recycle-memory", type=_size, default=0, metavar="SIZE", help="renew a slot that has grown so large")
    return parser


def _settings(arguments: argparse.Namespace) -> Settings:
    app = find_app(arguments.app) if arguments.app else None
    if app is None and not (arguments.controller and arguments.app_name):
        raise UsageError("--app PATH is needed; or --controller and --app-name, for a release of the controller's")
    servers = tuple(dict.fromkeys(map(parse_address, arguments.server)))  # the same one twice is one
    return Settings(
        servers=servers,
        app=app.path if app else None,
        slots=arguments.slots,
        per_process=arguments.per_process,
        spool=(arguments.spool or _spool(arguments.fleet, arguments.pool)).absolute(),
        pool=arguments.pool,
        fleet=arguments.fleet,
        app_name=arguments.app_name or (app.name if app else ""),
        node=arguments.node or f"{arguments.pool}/{os.getpid()}.{start_time()}",
        digest=app.digest if app else "",
        controller=arguments.controller,
        order_key=arguments.order_key,
        job_limit_s=arguments.job_limit,
        attempts=arguments.attempts,
        orphan_after_s=arguments.orphan_after,
        drain_deadline_s=arguments.drain_deadline,
        log_format=arguments.log_format,
        cache=(arguments.cache or _base("XDG_CACHE_HOME", ".cache", "--cache") / "fleetd" / "releases").absolute(),
        keys=tuple(arguments.key),
        overlap=arguments.overlap,
        health_s=arguments.health,
        probation_s=arguments.probation,
        crashes=arguments.crashes,
        slot_memory=arguments.slot_memory,
        recycle_jobs=arguments.recycle_jobs,
        recycle_s=arguments.recycle_after,
        recycle_memory=arguments.recycle_memory,
    )


def start_time() -> int:
    """When this process started, in clock ticks since the machine's start: with the pid, it names the process."""
    # The name of the program, field 2, may hold anything, spaces and brackets included: count from its end.
    return int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])


def _spool(fleet: str, pool: str) -> Path:
    """A folder for each pool, so that no letter goes to another fleet's controller."""
    state = _base("XDG_STATE_HOME", ".local/state", "--spool")
    return state / "fleetd" / "dead" / _UNSAFE.sub("_", fleet) / _UNSAFE.sub("_", pool)


def _base(variable: str, below_home: str, option: str) -> Path:
    try:
        return Path(os.environ.get(variable) or Path.home() / below_home)
    except RuntimeError:
        raise UsageError(f"{option}: there is neither {variable} nor a home folder; say where") from None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _size(text: str) -> int:
    found = _SIZE.fullmatch(text)
    if not found:
        raise ValueError
    return int(found[1]) << 10 * " KMG".index(found[2].upper() or " ")


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise ValueError
    return value


# argparse shows the names
_positive.__name__, _count.__name__, _seconds.__name__ = "positive number", "whole number", "number of seconds"
_size.__name__ = "size like 200MB"
