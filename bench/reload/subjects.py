"""What is reloaded: each runtime with its own broker, its command line, and how its documents say to load new code.

All run the same job (bench/apps/reload/reload_job.py), from a folder on their path whose code changes on the disk.
"""

import contextlib
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import redis

from tests import servers
from tests.dispatchers.embedded.serving import embedded

Server = contextlib.AbstractContextManager[servers.Server]
Commands = Callable[[str, Path, int], list[list[str]]]
How = Literal["restart", "HUP"]
OURS: Final = "fleetd"


@dataclass(frozen=True, slots=True)
class Subject:
    """`commands(broker, code, slots)` start it. Restart: TERM to each process, started anew as soon as it has ended.

    `guess` is how many jobs a second it may run, to size the first run by.
    """

    name: str
    sender: str
    commands: Commands
    how: How
    guess: int
    acknowledged: str
    server: Callable[[], Server] = servers.redis
    url: str = "redis://{}/0"

    @property
    def signal(self) -> signal.Signals:
        """What it is told by."""
        return signal.SIGHUP if self.how == "HUP" else signal.SIGTERM

    def held(self, broker: str) -> str:
        """Tell what the broker still holds: the length of each of its keys."""
        if not broker.startswith("redis:"):
            return "what the dispatcher holds was not asked"
        with redis.Redis.from_url(broker) as line:
            sizes = {"list": line.llen, "set": line.scard, "hash": line.hlen, "zset": line.zcard}
            kinds = [(key.decode(), line.type(key).decode()) for key in line.scan_iter()]
            return "Redis holds " + (", ".join(f"{key} {sizes[kind](key)}" for key, kind in kinds if kind in sizes))


def _script(name: str) -> str:
    """The installed command: some runtimes start themselves anew by the words that they were started with."""
    return str(Path(sys.executable).with_name(name))


def _celery(module: str) -> Commands:
    words = [_script("celery"), "-A", f"bench.apps.{module}", "worker", "-P", "prefork", "--without-mingle"]
    return lambda _, __, slots: [[*words, "-c", str(slots)]]


def _rq(broker: str, _: Path, slots: int) -> list[list[str]]:
    return [["-m", "rq.cli", "worker", "--quiet", "-u", broker, "record"]] * slots


def _dramatiq(_: str, __: Path, slots: int) -> list[list[str]]:
    return [[_script("dramatiq"), "bench.apps.reload_dramatiq", "-p", str(slots), "-t", "1"]]


def _fleetd(broker: str, code: Path, slots: int) -> list[list[str]]:
    words = ["-m", "fleetd.worker", "--app", str(code), "--slots", str(slots), "--server", broker]
    return [[*words, "--spool", str(code.parent / "spool")]]


def _ours(name: str, how: How, server: Callable[[], Server]) -> Subject:
    return Subject(name, "reload_fleetd", _fleetd, how, 700, "late", server=server, url="{}")


SUBJECTS: Final = (
    _ours(f"{OURS}, HUP", "HUP", embedded),
    _ours(f"{OURS} on gearmand, HUP", "HUP", servers.gearmand),
    _ours(f"{OURS}, restart", "restart", embedded),
    Subject("Celery, restart", "reload_celery", _celery("reload_celery"), "restart", 600, "early (its default)"),
    Subject("Celery, HUP", "reload_celery", _celery("reload_celery"), "HUP", 600, "early (its default)"),
    Subject("Celery acks_late, restart", "reload_celery_late", _celery("reload_celery_late"), "restart", 600, "late"),
    Subject("Celery acks_late, HUP", "reload_celery_late", _celery("reload_celery_late"), "HUP", 600, "late"),
    Subject("RQ, restart", "reload_rq", _rq, "restart", 80, "none: marked failed"),
    Subject("dramatiq, HUP", "reload_dramatiq", _dramatiq, "HUP", 400, "late"),
)
