"""Process 1 of a node without disks: `python -m fleetd.worker.node`, which the image's init becomes.

What came with the boot is in /run/fleetd, for root alone: the single-use token, where it is exchanged, the pinned
certificate, and the worker's arguments. The token is exchanged for a credential, the worker runs as a user without
rights, and once it has ended because it was told to, or had nothing to do, the machine is turned off.

Promises: this process does not end, whatever happens, other than by turning the machine off: what is not expected is
said, and then the power goes. A worker that crashes is started anew after a while, a few times; its jobs go on
meanwhile. The power button drains the worker first; pressed again, its jobs go back at once. The standard library
alone.
"""

import ctypes
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from fleetd.errors import FleetdError, UsageError
from fleetd.worker.backoff import backoff_s
from fleetd.worker.credential import FILE_VARIABLE
from fleetd.worker.enrolled import enrol

RUN: Final = Path("/run/fleetd")
NET: Final = Path("/run/net")
OWN: Final = Path("/run/fleetd-worker")  # what the worker may write: its credential, renewed
KMSG: Final = Path("/dev/kmsg")
INPUTS: Final = Path("/dev/input")
USER: Final = 10001
MOST_LINE: Final = 900  # a longer one the kernel's log refuses
MOST_CRASHES: Final = 6  # in a row
STEADY_S: Final = 60.0
PAUSE_CAP_S: Final = 30.0
GONE_S: Final = 5.0
QUIET_S: Final = 0.3  # for the last packets to leave
SYSLOG_PORT: Final = 514
AROUND: Final = {
    "PATH": "/opt/fleetd/bin:/usr/bin:/bin",
    "HOME": "/var/lib/fleetd",
    "XDG_STATE_HOME": "/var/lib",
    "XDG_CACHE_HOME": "/var/cache",
    "LANG": "C.UTF-8",
}
_POWER_OFF: Final = 0x4321FEDC
_KEYS_TO_US: Final = 0  # Ctrl-Alt-Del becomes a SIGINT to process 1 instead of a reset
_PRESS: Final = struct.Struct("llHHi")  # seconds, microseconds, type, code, value
_KEY, _POWER, _DOWN = 1, 116, 1


@dataclass(frozen=True, slots=True)
class Orders:
    """What came with the boot."""

    args: tuple[str, ...]
    env: Mapping[str, str]
    token: str = ""
    controller: str = ""
    ca: str = ""


def read_orders(folder: Path) -> Orders:
    """Read what came with the boot; raises UsageError."""
    path = folder / "worker.json"
    try:
        told = json.loads(path.read_bytes())
        args = tuple(map(str, told["args"]))
        env = {str(name): str(value) for name, value in told.get("env", {}).items()}
        secrets = {name: _text(folder / file) for name, file in _SECRETS.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: no orders that can be read: {type(error).__name__}: {error}") from None
    if secrets["token"] and not (secrets["controller"] and secrets["ca"]):
        raise UsageError(f"{folder}: a token came without controller or ca.pem, so it cannot be exchanged")
    return Orders(args, env, **secrets)


_SECRETS: Final = {"token": "token", "controller": "controller", "ca": "ca.pem"}


def _text(path: Path) -> str:
    return path.read_text("utf-8").strip() if path.exists() else ""


@dataclass(slots=True)
class Log:
    """Lines for whoever watches: every console, and a syslog where one was named."""

    console: Path = KMSG
    syslog: tuple[str, int] | None = None

    def say(self, line: str, *, severity: int = 3) -> None:
        """Say one line; trouble on the way is nobody's."""
        with suppress(OSError), self.console.open("wb", buffering=0) as file:
            file.write(f"<3>fleetd: {line}".encode()[:MOST_LINE] + b"\n")  # without an end it waits for the next
        if self.syslog is not None:
            said = f"<{24 + severity}>1 - {socket.gethostname()} fleetd - - - {line}"
            with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(said.encode(), self.syslog)

    def pass_on(self, lines: Iterable[bytes]) -> None:
        """Say every line that the worker says."""
        for line in lines:
            self.say(line.decode("utf-8", "replace").rstrip("\n"), severity=6)


def syslog_of(command_line: str) -> tuple[str, int] | None:
    """Return the host and port that the kernel's command line names for a syslog."""
    for word in command_line.split():
        name, _, value = word.partition("=")
        if name == "fleetd.syslog" and value:
            host, _, port = value.partition(":")
            return host, int(port) if port.isdigit() else SYSLOG_PORT
    return None


@dataclass(slots=True)
class Node:
    """The machine's one task: a worker, until it has ended for good."""

    orders: Orders
    log: Log
    environ: Mapping[str, str]
    command: tuple[str, ...] = (sys.executable, "-P", "-m", "fleetd.worker")
    user: int | None = USER
    ending: bool = False
    _worker: subprocess.Popen[bytes] | None = None
    _address: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Keep the worker running until it is over."""
        crashes = 0
        while True:
            began = time.monotonic()
            code = self._work()
            if code == 0 or self.ending:
                self.log.say(f"the worker has ended with {code}")
                return
            crashes = 1 if time.monotonic() - began > STEADY_S else crashes + 1
            if crashes >= MOST_CRASHES:
                self.log.say(f"the worker ended with {code}, {crashes} times in a row: this machine gives up")
                return
            pause_s = backoff_s(crashes + 3, PAUSE_CAP_S)
            self.log.say(f"the worker ended with {code}; it is started again in {pause_s:.1f} s")
            time.sleep(pause_s)

    def end(self, why: str) -> None:
        """Drain the worker, then end; a second time, its jobs go back at once."""
        self.log.say(f"{why}, again: jobs go back now" if self.ending else f"{why}: the worker is to finish and end")
        self.ending = True
        if self._worker is not None:
            with suppress(ProcessLookupError):
                os.kill(self._worker.pid, signal.SIGTERM)

    def keep_address(self) -> None:
        """Have the address renewed for as long as this machine runs."""
        card, address = _text(NET / "interface"), _text(NET / "ip")
        if card:
            words = ["busybox", "udhcpc", "-f", "-i", card, "-r", address, "-s", str(NET / "dhcp")]
            self._address = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _work(self) -> int:
        """Run the worker to its end and return its exit code; bury whatever else ends meanwhile."""
        if self.ending:
            return 0
        who: dict[str, Any] = {} if self.user is None else {"user": self.user, "group": self.user, "extra_groups": []}
        worker = subprocess.Popen(
            [*self.command, *self.orders.args],
            env=dict(self.environ),
            cwd=self.environ.get("HOME", "/"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            **who,
        )
        self._worker = worker
        assert worker.stdout is not None
        threading.Thread(target=self.log.pass_on, args=(_lines(worker.stdout),), daemon=True).start()
        if self.ending:  # asked for while it was being started
            worker.terminate()
        while True:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            assert found is not None
            if found.si_pid == worker.pid:
                return worker.wait()
            os.waitpid(found.si_pid, 0)
            if self._address is not None and found.si_pid == self._address.pid:
                self.log.say("udhcpc ended; it is started again")
                self._address.returncode = 0
                time.sleep(1)
                self.keep_address()


def _lines(pipe: IO[bytes]) -> Iterable[bytes]:
    with pipe:
        yield from pipe


def environment(orders: Orders, own: Path, user: int | None = USER) -> dict[str, str]:
    """Return the worker's environment, with the credential that its token is exchanged for; raises FleetdError."""
    if not orders.token:
        return {**AROUND, **orders.env}
    credential = enrol(orders.controller, orders.token, orders.ca)
    own.mkdir(mode=0o700, exist_ok=True)
    path = own / "join"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(credential)
    if user is not None:
        for each in (own, path):
            os.chown(each, user, user)
    return {**AROUND, **orders.env, FILE_VARIABLE: str(path)}


def watch_button(node: Node, folder: Path = INPUTS) -> None:
    """End the node when somebody presses the power button. For a thread of its own."""
    handles = [os.open(path, os.O_RDONLY) for path in sorted(folder.glob("event*"))]
    while handles:
        for handle in select.select(handles, [], [])[0]:
            try:
                pressed = os.read(handle, _PRESS.size * 16)
            except OSError:  # the device is gone
                handles.remove(handle)
                continue
            for _, _, kind, code, value in _PRESS.iter_unpack(pressed):
                if (kind, code, value) == (_KEY, _POWER, _DOWN):
                    node.end("the power button")


def groups_for(user: int, root: Path = Path("/sys/fs/cgroup")) -> None:
    """Let the worker hold its slots to their memory: a control group that is its own."""
    with suppress(OSError):
        group = root / "fleetd"
        group.mkdir()
        (root / "cgroup.subtree_control").write_text("+memory")
        for path in (group, *group.glob("cgroup.*")):
            os.chown(path, user, user)


def power_off(log: Log) -> None:
    """End all that still runs, so that every connection is closed, and turn the machine off. Does not return."""
    for number, wait_s in ((signal.SIGTERM, GONE_S), (signal.SIGKILL, 1.0)):
        with suppress(ProcessLookupError):
            os.kill(-1, number)
        until = time.monotonic() + wait_s
        with suppress(ChildProcessError):
            while time.monotonic() < until:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(0.05)
    log.say("power off")
    time.sleep(QUIET_S)
    os.sync()
    ctypes.CDLL(None).reboot(_POWER_OFF)
    while True:  # whatever the firmware does now, process 1 must not end
        time.sleep(60)


def main() -> None:
    """Be process 1."""
    log = Log(syslog=syslog_of(Path("/proc/cmdline").read_text("ascii", "replace")))
    try:
        ctypes.CDLL(None).reboot(_KEYS_TO_US)
        orders = read_orders(RUN)
        node = Node(orders, log, environment(orders, OWN))
        log.say("enrolled" if orders.token else "no token came with this boot: the worker has its orders' environment")
        for name in _SECRETS.values():  # used, or of no more use
            (RUN / name).unlink(missing_ok=True)
        groups_for(USER)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda caught, _: node.end(signal.Signals(caught).name))
        node.keep_address()
        threading.Thread(target=watch_button, args=(node,), daemon=True).start()
        node.run()
    except FleetdError as error:
        log.say(f"{error}")
    except Exception as error:  # noqa: BLE001 - a process 1 that ends takes the kernel down, and says nothing
        log.say(f"unexpected: {type(error).__name__}: {error}")
    power_off(log)


if __name__ == "__main__":
    main()
