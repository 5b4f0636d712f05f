"""The worker's command line.

Promises: a wrong argument or an app that cannot be served is one clear line on stderr and an exit code of its own; the
exit code after a drain, a release or an order to stop is 0.
"""

import argparse
import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.credentials import read_credentials
from fleetd.errors import FleetdError, UsageError
from fleetd.worker.app import find_app
from fleetd.worker.arguments import base, count, default_spool, positive, seconds, size, start_time
from fleetd.worker.children import TOKEN_VARIABLE
from fleetd.worker.credential import find_token
from fleetd.worker.imds import URL, Imds
from fleetd.worker.lease import make_controller
from fleetd.worker.logs import event, set_up
from fleetd.worker.settings import Settings
from fleetd.worker.supervisor import Supervisor
from fleetd.worker.ticket import leave_ticket


def main(argv: Sequence[str]) -> int:
    """Run a worker until it is told to stop; returns the exit code."""
    if "--exec" in argv:  # any other program: a command line of its own
        from fleetd.worker import foreign_main  # noqa: PLC0415 - a worker of ours needs none of it

        return foreign_main.main(argv)
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
            token, kept = find_token()
            home = settings.controller, token, settings.node, settings.app_name, settings.spool
            controller = make_controller(*home, kept=kept)
            leave_ticket(settings.spool, token)
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
        prog="fleetd worker",
        description="Run jobs from Gearman dispatchers.",
        epilog="Any other worker is supervised by --exec PROGRAM [WORD...]; --help --exec tells its options.",
        allow_abbrev=False,
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
        type=positive,
        default=len(os.sched_getaffinity(0)),
        metavar="N",
        help="jobs at a time",
    )
    add("--per-process", type=positive, default=1, metavar="N", help="jobs that each of the slots runs at a time")
    add("--pool", default="local", help="the pool this worker belongs to")
    add("--fleet", default="local", help="the fleet this worker belongs to")
    add("--app-name", default="", metavar="NAME", help="the app's name (default: its project's or file's name)")
    add(
        "--controller", default="", metavar="URL", help=f"where leases go; the join token is read from {TOKEN_VARIABLE}"
    )
    add("--node", default="", metavar="ID", help="this node's identity (default: POOL/PID.STARTTIME)")
    add("--order-key", default="", metavar="KEY", help="the key of the order that started this node")
    add("--job-limit", type=seconds, metavar="SECONDS", help="the longest a job may run, if it does not say itself")
    add("--attempts", type=positive, default=3, metavar="N", help="attempts before a job is dead (default: 3)")
    add("--spool", type=Path, metavar="DIR", help="where dead letters wait (default: below XDG_STATE_HOME)")
    add("--orphan-after", type=seconds, default=600.0, metavar="SECONDS", help="idle and unheard for so long: end")
    add("--drain-deadline", type=seconds, metavar="SECONDS", help="release what still runs so long after a TERM")
    add(
        "--watch-instance",
        nargs="?",
        const=URL,
        default="",
        metavar="URL",
        help=f"on EC2: fence when the metadata service says that this instance goes (default: {URL})",
    )
    add("--log-format", choices=("text", "json"), default="text")
    add("--cache", type=Path, metavar="DIR", help="where releases are kept (default: below XDG_CACHE_HOME)")
    add(
        "--key", action="append", default=[], metavar="KEY", help="a public key: releases must be signed by one of them"
    )
    add("--overlap", type=count, default=0, metavar="N", help="slots of a new generation at a time (default: all)")
    add("--health", type=seconds, default=3.0, metavar="SECONDS", help="what a health check may take (default: 3)")
    add("--probation", type=seconds, default=60.0, metavar="SECONDS", help="how long new code is on trial")
    add("--crashes", type=positive, default=2, metavar="N", help="so many jobs that crash it turn new code back")
    add("--slot-memory", type=size, default=0, metavar="SIZE", help="what a slot may use by itself, as 200MB")
    add("--recycle-jobs", type=count, default=0, metavar="N", help="renew a slot after so many jobs")
    add("--recycle-after", type=seconds, default=0.0, metavar="SECONDS", help="renew a slot of this age")
    add("--recycle-memory", type=size, default=0, metavar="SIZE", help="renew a slot that has grown so large")
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
        spool=(arguments.spool or default_spool(arguments.fleet, arguments.pool)).absolute(),
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
        watch_instance=Imds(arguments.watch_instance).url if arguments.watch_instance else "",
        cache=(arguments.cache or base("XDG_CACHE_HOME", ".cache", "--cache") / "fleetd" / "releases").absolute(),
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
