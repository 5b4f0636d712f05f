"""A rack's LAN of the tests' own: a bridge `rack0` in a network namespace, with cards of others in it. Needs root."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import servers

SERVER = "10.77.0.1"
NODE_MAC = "52:54:00:12:34:07"
STRANGER_MAC = "52:54:00:12:34:99"


@dataclass
class Lan:
    """Namespaces by the part that they play; `rack` holds the bridge."""

    folder: Path
    names: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def plug(self, who: str, address: str = "", mac: str = "") -> None:
        """Join a namespace of its own to the LAN, its card being `card0`."""
        self.names[who] = f"fleetd-{os.getpid()}-{who}"
        ip("netns", "add", self.names[who])
        end = f"v{len(self.names)}p{os.getpid() % 100000}"
        ip(
            "-n",
            self.names["rack"],
            "link",
            "add",
            end,
            "type",
            "veth",
            "peer",
            "name",
            "card0",
            "netns",
            self.names[who],
        )
        ip("-n", self.names["rack"], "link", "set", end, "master", "rack0", "up")
        if mac:
            ip("-n", self.names[who], "link", "set", "card0", "address", mac)
        ip("-n", self.names[who], "link", "set", "lo", "up")
        ip("-n", self.names[who], "link", "set", "card0", "up")
        if address:
            ip("-n", self.names[who], "address", "add", address, "dev", "card0")

    def inside(self, who: str, *command: str) -> list[str]:
        """Return a command line that runs in a namespace."""
        return [servers.find("ip"), "netns", "exec", self.names[who], *command]

    def run(self, who: str, *command: str, timeout_s: float = 30) -> str:
        """Run a command to its end and return what it said."""
        return self.end(self.inside(who, *command), 0, timeout_s)

    def end(self, words: Sequence[str], code: int, timeout_s: float = 60) -> str:
        """Run a command line to its end, which must be this code, and return what it said."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def log(self, who: str) -> str:
        """Return what the commands that were started have said."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"{who}-*.log")))

    def start(self, who: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a command that goes on."""
        log = (self.folder / f"{who}-{len(self.running)}.log").open("wb")
        process = subprocess.Popen(self.inside(who, *command), stdout=log, stderr=subprocess.STDOUT)
        log.close()
        self.running.append(process)
        return process

    def dnsmasq(self, who: str, conf: str) -> subprocess.Popen[bytes]:
        """Have dnsmasq test a configuration, and run it."""
        path = self.folder / f"{who}-{len(self.running)}.conf"
        path.write_text(conf)
        program = servers.find("dnsmasq")
        subprocess.run([program, "--test", f"--conf-file={path}"], check=True, capture_output=True)
        own = [
            f"--dhcp-leasefile={path}.leases",
            f"--pid-file={path}.pid",
            "--log-facility=-",
            "--log-dhcp",
            "--user=root",
        ]
        process = self.start(who, program, "--keep-in-foreground", f"--conf-file={path}", *own)
        log = self.folder / f"{who}-{len(self.running) - 1}.log"
        end = time.monotonic() + 10
        while b"started" not in log.read_bytes():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.02)
        return process

    def ask(self, who: str, **question: object) -> list[dict[str, object]]:
        """Ask for DHCP as firmware would; return the answers (tests/boot/firmware.py)."""
        said = self.run(who, sys.executable, "-m", "tests.boot.firmware", json.dumps(question))
        answers: list[dict[str, object]] = json.loads(said)
        return answers


@contextlib.contextmanager
def made(folder: Path) -> Iterator[Lan]:
    """A LAN with the rack's server on it, and nobody else."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("a network namespace needs root and iproute2")
    lan = Lan(folder)
    try:
        lan.names["rack"] = f"fleetd-{os.getpid()}-rack"
        ip("netns", "add", lan.names["rack"])
        inside = ("-n", lan.names["rack"])
        ip(*inside, "link", "add", "rack0", "type", "bridge", "forward_delay", "0")
        ip(*inside, "link", "set", "rack0", "up")
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "address", "add", f"{SERVER}/24", "dev", "rack0")
        yield lan
    finally:
        for process in lan.running:
            process.terminate()
        for process in lan.running:
            process.wait(10)
        for name in lan.names.values():
            subprocess.run([servers.find("ip"), "netns", "delete", name], check=False, capture_output=True)


def ip(*words: str) -> None:
    """Run `ip`."""
    done = subprocess.run([servers.find("ip"), *words], capture_output=True, text=True, check=False)
    if "Operation not permitted" in done.stderr:
        pytest.skip(f"no network namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
