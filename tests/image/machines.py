"""A machine without a disk: qemu without acceleration or privileges, its memory, its network card, its serial line."""

import contextlib
import functools
import http.server
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleetd.boot.manifest import Image
from fleetd.codecs.cpio import Entry, file, folder, pack
from tests import servers
from tests.worker.harness import until

MAC = "52:54:00:12:34:07"
HOST = "10.0.2.2"  # this machine, as a guest on qemu's own network sees it
OVMF = Path("/usr/share/OVMF")
SLOW_S = 240.0  # many times of what it takes on an idle machine


class Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and says nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep still."""


@contextlib.contextmanager
def serving(where: Path) -> Iterator[int]:
    """Serve a folder by plain HTTP on loopback."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(where)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def seed(args: Sequence[str], env: dict[str, str] | None = None, more: Sequence[Entry] = ()) -> bytes:
    """Return the second initrd: what this boot alone may know."""
    orders = json.dumps({"args": list(args), "env": env or {}}).encode()
    return pack([folder("fleetd", 0o700), file("fleetd/worker.json", orders, 0o400), *more])


def arguments(image: Image, port: int, *more: str) -> str:
    """Return the kernel's command line, as a boot service makes it."""
    layers = [
        text
        for what in ("base", "app")
        for text in (
            f"fleetd.{what}=http://{HOST}:{port}/{image.parts[what].name}",
            f"fleetd.{what}.sha256={image.parts[what].sha256}",
        )
    ]
    return " ".join([*image.arguments, f"fleetd.mac={MAC}", *layers, *more])


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that is on."""

    process: subprocess.Popen[bytes]
    serial: Path
    monitor: Path

    @property
    def said(self) -> str:
        """All that came over the serial line."""
        return self.serial.read_text("utf-8", "replace") if self.serial.exists() else ""

    def wait_said(self, text: str, limit_s: float = SLOW_S) -> None:
        """Wait for a text on the serial line, on a machine that is still on."""
        until(lambda: text in self.said or self.process.poll() is not None, limit_s, lambda: self.said[-3000:])
        assert text in self.said, self.said[-3000:]

    def wait_off(self, limit_s: float = SLOW_S) -> int:
        """Wait until it has turned itself off; returns qemu's exit code."""
        until(lambda: self.process.poll() is not None, limit_s, lambda: self.said[-3000:])
        return self.process.wait()

    def press_power_button(self) -> None:
        """Press it, by qemu's monitor."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.monitor))
            sock.settimeout(20)
            said = b""
            for command in (b"", b"system_powerdown\n"):  # what comes before its prompt, or after our end, is lost
                sock.sendall(command)
                while not said.endswith(b"(qemu) "):
                    said += sock.recv(4096)
                said = b""

    def peak(self) -> int:
        """Return the most memory, in bytes, that its process has had."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) << 10


@contextlib.contextmanager
def machine(where: Path, *options: str, memory: int = 192) -> Iterator[Machine]:
    """Turn a machine on until the end of the block; `options` say what it boots."""
    qemu = servers.find("qemu-system-x86_64")
    where.mkdir(parents=True, exist_ok=True)
    serial, monitor = where / "serial", where / "monitor"
    words = ["-accel", "tcg", "-m", str(memory), "-smp", "1", "-nodefaults", "-no-user-config", "-no-reboot"]
    words += ["-display", "none", "-serial", f"file:{serial}", "-monitor", f"unix:{monitor},server=on,wait=off"]
    process = subprocess.Popen([qemu, *words, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield Machine(process, serial, monitor)
    finally:
        process.kill()
        process.wait(20)


def direct(image: Image, where: Path, seed: bytes, command_line: str, room: Path) -> list[str]:
    """Return options with which qemu loads the kernel itself, as a quick firmware would."""
    room.mkdir(parents=True, exist_ok=True)
    (room / "initrd").write_bytes((where / image.parts["initrd"].name).read_bytes() + seed)
    card = ["-netdev", "user,id=n0", "-device", f"virtio-net-pci,netdev=n0,mac={MAC},romfile="]
    kernel = str(where / image.parts["kernel"].name)
    return ["-kernel", kernel, "-initrd", str(room / "initrd"), "-append", command_line, *card]


def by_network(script: str, *, uefi: bool, room: Path) -> list[str]:
    """Return options with which the firmware fetches an iPXE script, as a machine in a rack does."""
    card = ["-netdev", f"user,id=n0,tftp={room},bootfile={script}", "-device", f"virtio-net-pci,netdev=n0,mac={MAC}"]
    if not uefi:
        return [*card, "-boot", "n"]
    room.mkdir(parents=True, exist_ok=True)
    shutil.copy(OVMF / "OVMF_VARS_4M.fd", room / "vars")
    code = f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / 'OVMF_CODE_4M.fd'}"
    return [*card, "-drive", code, "-drive", f"if=pflash,unit=1,format=raw,file={room / 'vars'}"]
