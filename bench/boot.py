"""The boot service beside nginx: many machines that boot at the same time, each fetching kernel, initrd and layers.

Both serve the same files on loopback to the same client, in turns; what counts is the ratio, and the memory that the
service has used at its peak. The client discards what it gets unread, so that it is not it that is measured.
"""

import argparse
import asyncio
import hashlib
import http.client
import os
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fleetd.boot.manifest import PARTS, Image
from tests import servers
from tests.boot.rack import MAC, make_image, serving

MIB = 1 << 20
SIZES = {"kernel": 14 * MIB, "initrd": 2 * MIB, "base": 37 * MIB, "app": 2 * MIB}
CHUNK = 256 * 1024
NGINX = """
worker_processes auto; daemon off; pid {folder}/pid; error_log {folder}/error;
events {{ worker_connections 2048; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100;
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port} backlog=1024; root {root}; }}
}}
"""


@dataclass(slots=True)
class Machine:
    """A machine on its way through what it has to fetch."""

    sock: socket.socket
    paths: list[str]
    head: bytearray = field(default_factory=bytearray)
    left: int = 0
    got: int = 0

    def ask(self) -> None:
        """Ask for the next file."""
        self.head.clear()
        self.sock.sendall(f"GET {self.paths.pop(0)} HTTP/1.1\r\nHost: boot\r\n\r\n".encode())

    def take(self, room: bytearray) -> bool:
        """Take what has come; returns whether all is there."""
        if self.left:
            count = self.sock.recv_into(room, min(self.left, CHUNK), socket.MSG_TRUNC)
            if not count:
                raise ConnectionError("the server hung up")
            self.left -= count
            self.got += count
        else:
            self._take_head()
        if self.left or not self.head:
            return False
        if not self.paths:
            return True
        self.ask()
        return False

    def _take_head(self) -> None:
        seen = self.sock.recv(4096, socket.MSG_PEEK)
        end = seen.find(b"\r\n\r\n")
        if end < 0:
            raise ConnectionError(f"no head of an answer: {seen[:80]!r}")
        self.head += self.sock.recv(end + 4)
        lines = self.head.decode("latin-1").lower().split("\r\n")
        if " 200" not in lines[0]:
            raise ConnectionError(lines[0])
        self.left = int(next(line.partition(":")[2] for line in lines if line.startswith("content-length:")))


def boot_all(port: int, paths: Sequence[str], machines: int) -> float:
    """Let machines boot at the same time; returns bytes a second of all together."""
    began, total = time.monotonic(), 0
    room = bytearray(CHUNK)
    with selectors.DefaultSelector() as selector:
        for _ in range(machines):
            machine = Machine(socket.create_connection(("127.0.0.1", port)), list(paths))
            selector.register(machine.sock, selectors.EVENT_READ, machine)
            machine.ask()
        while selector.get_map():
            for key, _ in selector.select(30):
                if key.data.take(room):
                    total += key.data.got
                    selector.unregister(key.data.sock)
                    key.data.sock.close()
    return total / (time.monotonic() - began)


def check(port: int, paths: Sequence[str], image: Image) -> None:
    """See that what is served is the image."""
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for what, path in zip(PARTS, paths, strict=True):
        link.request("GET", path)
        found = hashlib.sha256(link.getresponse().read()).hexdigest()
        assert found == image.parts[what].sha256, f"{what} is not what it should be"
    link.close()


@contextmanager
def nginx(folder: Path, root: Path) -> Iterator[int]:
    """Run Debian's nginx, as many workers as there are processors, on files of ours."""
    port = servers.free_port()
    folder.mkdir()
    (folder / "conf").write_text(NGINX.format(folder=folder, port=port, root=root))
    for path in (folder, root, root.parent):
        path.chmod(0o755)
    process = subprocess.Popen([servers.find("nginx"), "-c", str(folder / "conf"), "-e", str(folder / "error")])
    try:
        yield _answers(port)
    finally:
        process.terminate()
        process.wait(10)


@contextmanager
def service(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the boot service in a process of its own; yields its port and its process id."""
    command = [sys.executable, "-m", "bench.boot", "--serve", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process.pid
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


async def serve(folder: Path) -> None:
    """Be the process that is measured."""
    async with serving(folder, make=False) as rack:
        print(rack.port, flush=True)
        await asyncio.Event().wait()


def _answers(port: int) -> int:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        time.sleep(0.05)
    raise SystemExit("nginx does not listen")


def _peak(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024


def measure(machines: int, rounds: int) -> int:
    """Measure and print the table of docs/benchmarks-rack.md; 1 where a target is missed."""
    room = Path(tempfile.mkdtemp(prefix="fleetd-boot-"))
    try:
        image = make_image(room / "image", SIZES)
        size = image.over_the_wire()
        with nginx(room / "nginx", room / "image") as theirs, service(room) as (ours, pid):
            plain = [f"/{image.parts[what].name}" for what in PARTS]
            named = [f"/boot/{MAC}/{what}" for what in PARTS]
            check(theirs, plain, image)
            check(ours, named, image)
            idle = _peak(pid)
            speeds: dict[str, list[float]] = {"nginx": [], "fleetd boot": []}
            for _ in range(rounds):
                speeds["nginx"].append(boot_all(theirs, plain, machines))
                speeds["fleetd boot"].append(boot_all(ours, named, machines))
            peak = _peak(pid)
    finally:
        shutil.rmtree(room)
    return report(machines, size, speeds, (idle, peak))


def report(machines: int, size: int, speeds: dict[str, list[float]], memory: tuple[int, int]) -> int:
    """Print what was found."""
    middle = {name: statistics.median(found) for name, found in speeds.items()}
    ratios = [ours / theirs for ours, theirs in zip(speeds["fleetd boot"], speeds["nginx"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"{machines} machines at the same time, {size / MIB:.0f} MiB each, {os.cpu_count()} processors, loopback\n")
    print("| server | MB/s, median | of each round |\n|---|---|---|")
    for name, found in speeds.items():
        print(f"| {name} | {middle[name] / 1e6:.0f} | {', '.join(f'{one / 1e6:.0f}' for one in found)} |")
    print(f"\nratio: {ratio:.2f} (rounds: {', '.join(f'{one:.2f}' for one in ratios)}); target: at least 0.5")
    print(
        f"memory of the service: {memory[0] / 1e6:.0f} MB idle, {memory[1] / 1e6:.0f} MB at its peak; target: under 150"
    )
    return int(ratio < 0.5 or memory[1] > 150e6)


def main(argv: list[str]) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(prog="bench boot", description=__doc__)
    parser.add_argument("--machines", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(argv)
    if given.serve:
        asyncio.run(serve(given.serve))
        return 0
    return measure(given.machines, given.rounds)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
