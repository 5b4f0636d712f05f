"""The mains of machines that are processes: switched on by a real magic packet, by a command, or by hand.

Each `Outlet` is a machine: an address, a password where its card asks for one, and the command that is its life (a
stand-in, qemu). The daemon listens for packets on UDP and, as root, on an interface (whatever carries the packet: UDP,
EtherType 0x0842, broadcast or not), and for commands on HTTP: `python powerd.py URL on|off|status MAC` is the client,
which is what a `command:` of an inventory or a BMC's hook calls. Machines end with the process that holds the daemon.
"""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1
_ETH_P_ALL = 0x0003
_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 263, 1, 1
# The kernel counts the thread that started a process as its parent, so that one must last.
_SPAWNER = ThreadPoolExecutor(1, "mains")


@dataclass
class Outlet:
    """One machine. `plugged` False: its cable is cut, it hears nothing; `log` takes what it writes."""

    mac: str
    command: Sequence[str]
    secureon: str = ""
    log: Path | None = None
    env: dict[str, str] = field(default_factory=dict)
    plugged: bool = True
    starts: int = 0
    process: "subprocess.Popen[bytes] | None" = None
    turn: threading.Lock = field(default_factory=threading.Lock)

    @property
    def on(self) -> bool:
        """Whether it runs; a machine that ended by itself is off."""
        return self.process is not None and self.process.poll() is None

    def switch_on(self) -> None:
        """Start it, unless it runs or has no power."""
        with self.turn:
            if self.on or not self.plugged:
                return
            self.process = _SPAWNER.submit(self._start).result(30)
            self.starts += 1

    def _start(self) -> "subprocess.Popen[bytes]":
        out: Any = self.log.open("ab") if self.log else subprocess.DEVNULL
        try:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.env},
                preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
            )
        finally:
            if self.log:
                out.close()

    def cut(self) -> None:
        """Take its power away."""
        with self.turn:
            if self.process is not None:
                self.process.kill()
                self.process.wait(10)

    def soft_off(self) -> None:
        """Ask it to end by itself, as its worker does on the last order; whatever it takes."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()


class PowerDaemon:
    """Holds the outlets and listens. `heard`: every magic packet, as (mac, password in hex, what became of it)."""

    def __init__(
        self, outlets: Sequence[Outlet], *, host: str = "127.0.0.1", port: int = 0, interface: str = ""
    ) -> None:
        self.outlets = {outlet.mac: outlet for outlet in outlets}
        self.heard: list[tuple[str, str, str]] = []
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._udp.bind((host, port))
        self.port: int = self._udp.getsockname()[1]
        self._sockets = [self._udp] + ([_tap(interface)] if interface else [])
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._closing = threading.Event()
        self._threads = [threading.Thread(target=self._listen, args=(one,), daemon=True) for one in self._sockets]
        self._threads.append(threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True))
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cut every machine's power and listen no more."""
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        for one in self._sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        for one in self._sockets:
            one.close()
        for outlet in self.outlets.values():
            outlet.cut()

    def add(self, outlet: Outlet) -> Outlet:
        """Plug in one more machine."""
        self.outlets[outlet.mac] = outlet
        return outlet

    def control(self, verb: str, mac: str = "{mac}") -> list[str]:
        """Return the command that switches a machine (or asks for its state): for an inventory, or a BMC's hook."""
        return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), self.url, verb, mac]

    def wait(self, mac: str, *, on: bool, limit_s: float = 30.0) -> None:
        """Wait until a machine is on, or off."""
        deadline = time.monotonic() + limit_s
        while self.outlets[mac].on is not on:
            assert time.monotonic() < deadline, f"{mac} is not {'on' if on else 'off'}; heard: {self.heard}"
            time.sleep(0.02)

    def hear(self, frame: bytes) -> None:
        """Do what a card does: look for its address sixteen times, wherever it is."""
        found = _magic(frame)
        if found is None:
            return
        mac, password = found
        outlet = self.outlets.get(mac)
        if outlet is None:
            became = "nobody here"
        elif outlet.secureon and password != outlet.secureon.replace(":", ""):
            became = "wrong password"
        elif not outlet.plugged:
            became = "unplugged"
        else:
            became = "is on already" if outlet.on else "woken"
            outlet.switch_on()
        self.heard.append((mac, password, became))

    def _listen(self, listener: socket.socket) -> None:
        listener.settimeout(0.2)
        while not self._closing.is_set():
            try:
                self.hear(listener.recv(65536))
            except TimeoutError:
                continue
            except OSError:
                return


def _magic(frame: bytes) -> tuple[str, str] | None:
    """Find a packet without the code under test."""
    at = -1
    while (at := frame.find(b"\xff" * 6, at + 1)) >= 0:
        mac = frame[at + 6 : at + 12]
        if len(mac) == 6 and frame[at + 6 : at + 102] == mac * 16 and mac != b"\xff" * 6:
            rest = frame[at + 102 :]
            return mac.hex(":"), rest[:6].hex() if len(rest) >= 6 else ""
    return None


def _tap(interface: str) -> socket.socket:
    """Hear everything on an interface, also what is meant for others."""
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    tap.bind((interface, _ETH_P_ALL))
    wanted = struct.pack("IHH8s", socket.if_nametoindex(interface), _PACKET_MR_PROMISC, 0, b"")
    tap.setsockopt(_SOL_PACKET, _PACKET_ADD_MEMBERSHIP, wanted)
    return tap


def _handler(daemon: PowerDaemon) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_POST(self) -> None:
            _, mac, verb = self.path.split("/")
            outlet = daemon.outlets.get(mac)
            if outlet is None:
                self.send_error(404)
                return
            match verb:
                case "on":
                    outlet.switch_on()
                case "off":
                    outlet.cut()
                case "soft":
                    outlet.soft_off()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"on" if outlet.on else b"off")

    return Handler


def main() -> int:
    """Be the client: 0 done or on, 1 off, 2 no such machine, 3 no daemon.

    `chassis` is how ipmi_sim asks: by the further words `get power` and `set power 1`, or `0`.
    """
    url, verb, mac, *more = sys.argv[1:]
    if verb != "chassis":
        return _tell(url, verb, mac)
    if more[0] == "get":
        print(f"power:{1 - _tell(url, 'status', mac)}")
        return 0
    return _tell(url, "off" if more[2] == "0" else "on", mac)


def _tell(url: str, verb: str, mac: str) -> int:
    try:
        with urllib.request.urlopen(f"{url}/{mac}/{verb}", b"", timeout=10) as answer:
            state = answer.read()
    except urllib.error.HTTPError as error:
        print(f"the power daemon answered {error.code}")
        return 2
    except OSError as error:
        print(f"no power daemon: {error}")
        return 3
    return 1 if verb == "status" and state == b"off" else 0


if __name__ == "__main__":
    sys.exit(main())
