"""The command line of a foreign worker: `python -m fleetd.worker … --exec PROGRAM [WORD…]`.

Promises: as in `main`; all that follows `--exec` is the program's own, but for `{node}` and `{slots}` in it, which
become this node's name and its slots.
"""

import argparse
import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError, UsageError
from fleetd.worker.arguments import default_spool, positive, seconds, size, start_time
from fleetd.worker.credential import find_token
from fleetd.worker.foreign import Foreign
from fleetd.worker.foreign_probe import KINDS
from fleetd.worker.foreign_settings import ForeignSettings
from fleetd.worker.lease import make_controller
from fleetd.worker.logs import event, set_up

EXEC: Final = "--exec"
SIGNALS: Final = ("TERM", "INT", "QUIT", "HUP", "USR1", "USR2", "TSTP", "CONT", "WINCH", "KILL")


def main(argv: Sequence[str]) -> int:
    """Supervise a program until told to stop; returns the exit code."""
    at = list(argv).index(EXEC)
    arguments = _parser().parse_args(argv[:at])
    set_up(arguments.log_format, pool=arguments.pool)
    try:
        settings = _settings(arguments, argv[at + 1 :])
        controller = None
        if settings.controller:
            token, kept = find_token()
            home = settings.controller, token, settings.node, settings.app_name, settings.spool
            controller = make_controller(*home, kept=kept)
        event(logging.INFO, "worker started", app=settings.app_name, slots=settings.slots, node=settings.node)

        async def run() -> int:
            return await Foreign(settings, controller).run()

        code = asyncio.run(run())
    except FleetdError as error:
        event(logging.CRITICAL, f"{error}")
        return error.exit_code
    event(logging.INFO, "worker ended", code=code)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetd worker",
        usage="fleetd worker [OPTIONS] --exec PROGRAM [WORD...]",
        description="Run any other worker under a lease; {node} and {slots} in its words are filled in.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--slots", type=positive, default=len(os.sched_getaffinity(0)), metavar="N", help="jobs that it runs at a time")
    add("--pool", default="local", help="the pool this worker belongs to")
    add("--fleet", default="local", help="the fleet this worker belongs to")
    add("--app-name", default="", metavar="NAME", help="the app's name (default: the program's)")
    add("--controller", default="", metavar="URL", help="where leases go; the join token is read from the environment")
    add("--node", default="", metavar="ID", help="this node's identity (default: POOL/PID.STARTTIME)")
    add("--order-key", default="", metavar="KEY", help="the key of the order that started this node")
    add("--spool", type=Path, metavar="DIR", help="where this worker's files are (default: below XDG_STATE_HOME)")
    add("--server", action="append", default=[], metavar="HOST:PORT", help="a dispatcher, for `--probe gearman`")
    add("--orphan-after", type=seconds, default=600.0, metavar="SECONDS", help="idle and unheard for so long: end")
    add(
        "--drain-signal",
        action="append",
        choices=SIGNALS,
        help="tells it to finish; again: the next after the deadline",
    )
    add("--undo-signal", choices=SIGNALS, help="takes the first of them back (default: it is started anew)")
    add("--drain-deadline", type=seconds, metavar="SECONDS", help="how long it may take after the first signal")
    add("--probe", action="append", default=[], metavar="WORD", help=f"who tells how busy it is: {', '.join(KINDS)}")
    add("--watch", action="append", type=Path, default=[], metavar="PATH", help="a change there starts it anew")
    add("--memory", type=size, default=0, metavar="SIZE", help="what one slot may use, as 200MB; held by the kernel")
    add("--recycle-after", type=seconds, default=0.0, metavar="SECONDS", help="renew it at this age")
    add("--recycle-memory", type=size, default=0, metavar="SIZE", help="renew it once a slot holds so much")
    add("--log-format", choices=("text", "json"), default="text")
    return parser


def _settings(arguments: argparse.Namespace, words: Sequence[str]) -> ForeignSettings:
    if not words:
        raise UsageError("--exec: nothing follows; give the program and its words, as --exec celery -A shop worker")
    node = arguments.node or f"{arguments.pool}/{os.getpid()}.{start_time()}"
    filled = {"{node}": node.replace("/", "-"), "{slots}": str(arguments.slots)}
    command = [_fill(word, filled) for word in words]
    if shutil.which(command[0]) is None:
        raise UsageError(f"--exec: {command[0]}: no such program here; install it, or correct `exec`")
    names = arguments.drain_signal or ["TERM"]
    if "KILL" in names[:-1]:
        raise UsageError("--drain-signal KILL: nothing can follow it; it is the last")
    return ForeignSettings(
        command=tuple(command),
        slots=arguments.slots,
        spool=(arguments.spool or default_spool(arguments.fleet, arguments.pool)).absolute(),
        pool=arguments.pool,
        fleet=arguments.fleet,
        app_name=arguments.app_name or Path(command[0]).name,
        node=node,
        controller=arguments.controller,
        order_key=arguments.order_key,
        servers=tuple(arguments.server),
        ladder=tuple(signal.Signals[f"SIG{name}"] for name in names),
        undo=signal.Signals[f"SIG{arguments.undo_signal}"] if arguments.undo_signal else None,
        drain_deadline_s=arguments.drain_deadline,
        probe=_probe(arguments.probe),
        watch=tuple(path.absolute() for path in arguments.watch),
        orphan_after_s=arguments.orphan_after,
        log_format=arguments.log_format,
        memory=arguments.memory,
        recycle_s=arguments.recycle_after,
        recycle_memory=arguments.recycle_memory,
    )


def _probe(words: Sequence[str]) -> tuple[str, ...]:
    if words and (words[0] not in KINDS or len(words) < 2):
        kinds = "celery URL, rq URL, gearman GLOB..., command WORD..., http URL; each word by a --probe of its own"
        raise UsageError(f"--probe {' '.join(words)}: expected {kinds}")
    if words and words[0] in ("celery", "rq", "http") and len(words) > 2:
        raise UsageError(f"--probe {words[0]}: takes one URL")
    return tuple(words)


def _fill(word: str, filled: dict[str, str]) -> str:
    for mark, value in filled.items():
        word = word.replace(mark, value)
    return word
