"""From an EC2 instance that has just booted to its worker: `python -m fleetd.worker.instance CONFIG`.

Promises: nothing secret is in CONFIG. The instance shows what AWS has signed of it, is given the credential of its own
node and the worker's arguments, and becomes that worker; started again, it is the same one without asking. A copy of
its disk on another instance is another node. What cannot be is one line, and an end. The standard library alone.
"""

import argparse
import asyncio
import http.client
import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.codecs.lease import split_token
from fleetd.errors import FleetdError, ProtocolError, UnreachableError, UsageError
from fleetd.worker.backoff import backoff_s
from fleetd.worker.credential import FILE_VARIABLE, write_token
from fleetd.worker.enrolled import PATH, RefusedError
from fleetd.worker.imds import URL, Imds
from fleetd.worker.lease import Channel
from fleetd.worker.logs import event, set_up

ID: Final = "/latest/meta-data/instance-id"
IDENTITY: Final = "/latest/dynamic/instance-identity"
HOME: Final = "/var/lib/fleetd-worker"
ASK_S: Final = 10.0
TRY_S: Final = 600.0  # the controller may be starting anew, and may not have seen this instance yet
BACKOFF_CAP_S: Final = 10.0
STOP_S: Final = 110.0  # what still runs so long after a TERM goes back: before systemd and EC2 lose patience


@dataclass(frozen=True, slots=True)
class Config:
    """What the user data says: where the controller is, and whose instance this is."""

    controller: str
    fleet: str
    pool: str


@dataclass(frozen=True, slots=True)
class Enrolled:
    """What the controller answered, but for the credential, which is kept by itself."""

    instance: str
    node: str
    app: str
    key: str
    arguments: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Enrol and become the worker; returns only where that cannot be."""
    parser = argparse.ArgumentParser(prog="fleetd.worker.instance", description="Start this instance's worker.")
    parser.add_argument("config", type=Path, metavar="CONFIG", help="JSON: controller, fleet, pool")
    parser.add_argument("--imds", default=URL, metavar="URL", help=f"the metadata service (default: {URL})")
    parser.add_argument("--home", type=Path, metavar="DIR", help=f"for state (default: STATE_DIRECTORY, {HOME})")
    parser.add_argument("--try-for", type=float, default=TRY_S, metavar="SECONDS", help=f"default: {TRY_S:.0f}")
    arguments = parser.parse_args(argv)
    home = arguments.home or Path(os.environ.get("STATE_DIRECTORY") or HOME)
    set_up("text")
    try:
        config = read_config(arguments.config)
        enrolled = asyncio.run(ready(config, Imds(arguments.imds), home, arguments.try_for))
    except FleetdError as error:
        event(logging.CRITICAL, f"{error}")
        return error.exit_code
    os.environ[FILE_VARIABLE] = str(home / "token")
    command = [sys.executable, "-m", "fleetd.worker", *words(config, enrolled, home, arguments.imds)]
    sys.stderr.flush()
    os.execv(sys.executable, command)  # noqa: S606 - this process becomes the worker
    return 0


def read_config(path: Path) -> Config:
    """Read what the user data wrote; raises UsageError."""
    try:
        raw = json.loads(path.read_text())
        return Config(**{name: str(raw[name]) for name in Config.__dataclass_fields__})
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path}: must be JSON with {', '.join(Config.__dataclass_fields__)}") from None


def words(config: Config, enrolled: Enrolled, home: Path, imds: str) -> list[str]:
    """Return the worker's command line. The policy's part may say anything but who and where this is."""
    own = ["--fleet", config.fleet, "--pool", config.pool, "--controller", config.controller, "--node", enrolled.node]
    own += ["--app-name", enrolled.app, "--order-key", enrolled.key, "--watch-instance", imds]
    own += ["--spool", str(home / "spool"), "--cache", str(home / "cache"), "--drain-deadline", f"{STOP_S:g}"]
    return [*enrolled.arguments, *own]


async def ready(config: Config, imds: Imds, home: Path, try_s: float = TRY_S) -> Enrolled:
    """Return who this is, from the disk or the controller; raises RefusedError, UsageError and UnreachableError."""
    failures, until = 0, time.monotonic() + try_s
    while True:
        try:
            instance = await imds.text(ID)
            if not instance:
                raise UnreachableError("the metadata service does not say which instance this is")  # noqa: TRY301
            return _kept(home, instance) or await _enrol(config, imds, home, instance)
        except UnreachableError as error:
            failures += 1
            if failures == 1:
                event(logging.WARNING, f"not enrolled yet: {error}")
            pause_s = backoff_s(failures, BACKOFF_CAP_S)
            if time.monotonic() + pause_s > until:
                raise
        await asyncio.sleep(pause_s)


def _kept(home: Path, instance: str) -> Enrolled | None:
    """Return what a start before this one was told, unless the disk is a copy of another instance's."""
    try:
        raw = json.loads((home / "enrolled.json").read_text())
        found = Enrolled(**{**raw, "arguments": tuple(raw["arguments"])})
        split_token((home / "token").read_text().strip())
    except (OSError, ValueError, KeyError, TypeError, ProtocolError):
        return None
    return found if found.instance == instance else None


async def _enrol(config: Config, imds: Imds, home: Path, instance: str) -> Enrolled:
    proof = {
        "pool": config.pool,
        "document": await imds.text(f"{IDENTITY}/document"),
        "signature": "".join((await imds.text(f"{IDENTITY}/signature")).split()),
    }
    status, content = await asyncio.to_thread(_ask, config.controller, json.dumps(proof).encode())
    answer = _answer(status, content)
    try:
        split_token(answer["credential"])
        named = {name: str(answer[name]) for name in ("node", "app", "key")}
        found = Enrolled(instance, **named, arguments=tuple(map(str, answer["arguments"])))
    except (KeyError, TypeError, AttributeError, ProtocolError):
        raise RefusedError(f"{config.controller}: answered what is no enrolment; is it a fleetd controller?") from None
    _keep(home, found, str(answer["credential"]))
    event(logging.INFO, "enrolled", node=found.node, app=found.app)
    return found


def _keep(home: Path, found: Enrolled, token: str) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        write_token(home / "token", token)
        (home / "enrolled.json").write_text(json.dumps(asdict(found)))
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None


def _ask(controller: str, body: bytes) -> tuple[int, bytes]:
    channel = Channel(controller, ASK_S)
    try:
        status, _, content = channel.call("POST", PATH, {"Content-Type": "application/json"}, body)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UnreachableError(f"{controller}: {type(error).__name__}: {error}") from None
    finally:
        channel.abort()
    return status, content


def _answer(status: int, content: bytes) -> dict[str, Any]:
    """Return an answer's content. Raises UnreachableError where asking again may help, RefusedError where not."""
    raw: Any = {}
    with suppress(ValueError, RecursionError):
        raw = json.loads(content)
    said = " ".join(str(raw.get("error", "") if isinstance(raw, dict) else "").split())[:300] or f"answered {status}"
    if status >= 500 or status in (408, 429):
        raise UnreachableError(said)
    if status != 200 or not isinstance(raw, dict):
        raise RefusedError(f"not enrolled: {said}")
    return raw


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
