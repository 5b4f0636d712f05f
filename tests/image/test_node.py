"""The node image as machines boot it: qemu without acceleration or privileges, the real gearmand, plain HTTP.

Each test waits for something that happened: a line on the serial console, an answer to a job, qemu's own end.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetd.boot.debian import make_root
from fleetd.boot.image import Wanted, build_image
from fleetd.boot.manifest import check_parts, load_image
from fleetd.boot.recipe import read_recipe
from fleetd.errors import FleetdError
from tests import servers
from tests.image import images, machines
from tests.image.images import APP, Built, built
from tests.image.machines import HOST
from tests.worker.harness import Client, status, until

# One process for all of them: what they look at takes minutes to build.
pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.xdist_group("node-image")]
__all__ = ["built"]
MIB = 1 << 20
IPXE = """#!ipxe
kernel http://{host}:{port}/{kernel} initrd=initrd initrd=seed {line}
initrd --name initrd http://{host}:{port}/{initrd}
initrd --name seed http://{host}:{port}/seed
boot
"""


@pytest.fixture
def client(gearmand: servers.Server) -> Iterator[Client]:
    """A client of the test's own dispatcher."""
    client = Client(gearmand.port)
    yield client
    client.close()


@contextlib.contextmanager
def booted(
    built: Built, room: Path, *args: str, memory: int = 192, more: str = "", folder: Path | None = None
) -> Iterator[machines.Machine]:
    """Turn a machine on that boots the image and runs a worker with these arguments."""
    with machines.serving(folder or built.folder) as port:
        seed = machines.seed(args, {"FLEETD_JOIN_TOKEN": f"local/local.{'0' * 64}"}) if args else b""
        line = machines.arguments(built.image, port, *more.split())
        options = machines.direct(built.image, built.folder, seed, line, room)
        with machines.machine(room / "machine", *options, memory=memory) as machine:
            yield machine


def test_image_is_signed_whole_and_small(built: Built) -> None:
    image = load_image(built.folder, (built.public,))
    check_parts(built.folder, image)
    sizes = {what: part.size / MIB for what, part in image.parts.items()}
    print({what: round(size, 1) for what, size in sizes.items()}, round(image.over_the_wire() / MIB, 1))
    assert sizes["base"] <= 40
    assert image.over_the_wire() <= 60 * MIB
    assert {name.split("_")[0] for name in image.packages} >= {"python3", "ca-certificates", "busybox-static"}
    assert any(name.startswith(f"linux-image-{image.kernel}_") for name in image.packages)


def test_a_spoiled_part_or_manifest_is_refused(built: Built, tmp_path: Path) -> None:
    for what in ("kernel", "initrd", "base", "app"):
        folder = images.spoiled(built, what, tmp_path / what)
        with pytest.raises(FleetdError, match=f"{what}-.*its SHA-256 is"):
            check_parts(folder, load_image(folder, (built.public,)))
    manifest = folder / "image.json"
    manifest.write_text(manifest.read_text().replace("panic=30", "panic=31"))
    with pytest.raises(FleetdError, match="its signature is wrong"):
        load_image(folder, (built.public,))


def test_two_builds_are_the_same(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another folder, another time, another umask, one processor; and what needs no root by another user."""
    elsewhere = tmp_path / "else where"
    (elsewhere / "temporary").mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(elsewhere / "temporary"))
    monkeypatch.setattr("tempfile.tempdir", None)
    recipe = shutil.copytree(built.recipe, elsewhere / "recipe")
    for path in recipe.rglob("*"):
        os.utime(path, (1e9, 1e9))
    before = os.umask(0o077)
    try:
        wanted = Wanted(elsewhere / "image", built.wheels, built.key, processors=1)
        again = build_image(read_recipe(recipe), wanted, print)  # held to the list of the first build
    finally:
        os.umask(before)
    assert again == built.image
    assert (elsewhere / "image" / "image.json.sig").read_bytes() == (built.folder / "image.json.sig").read_bytes()


def test_another_user_makes_the_same_layers(built: Built, tmp_path_factory: pytest.TempPathFactory) -> None:
    with_root = tmp_path_factory.mktemp("with-root")
    root = make_root(read_recipe(built.recipe), with_root / "debian")
    room = Path("/var/tmp") / f"fleetd-test-{os.getpid()}"
    script = (
        "import sys; from pathlib import Path; from fleetd.boot import layers, program, recipe\n"
        "tar, wheels, folder, room = map(Path, sys.argv[1:])\n"
        "layers.squash(program.make_program(wheels, room)[0], room / 'app')\n"
        "layers.squash(tar, room / 'base', recipe.read_recipe(folder).left_out)\n"
    )
    try:
        room.mkdir()
        shutil.copytree(built.wheels, room / "wheels")
        shutil.copytree(built.recipe, room / "recipe")
        shutil.copy(root.tar, room / "root.tar")
        (room / "room").mkdir()
        os.chown(room / "room", 10001, 10001)
        command = [sys.executable, "-c", script, room / "root.tar", room / "wheels", room / "recipe", room / "room"]
        subprocess.run([str(word) for word in command], check=True, user=10001, group=10001, extra_groups=[])
        for what in ("app", "base"):
            assert (room / "room" / what).stat().st_uid == 10001
            assert (room / "room" / what).read_bytes() == (built.folder / built.image.parts[what].name).read_bytes()
    finally:
        shutil.rmtree(room)


def test_a_machine_boots_works_drains_by_its_button_and_is_off(
    built: Built, gearmand: servers.Server, client: Client, tmp_path: Path
) -> None:
    heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    heard.bind(("127.0.0.1", 0))
    syslog = f"fleetd.syslog={HOST}:{heard.getsockname()[1]}"
    began = time.monotonic()
    with booted(
        built, tmp_path, "--server", f"{HOST}:{gearmand.port}", "--app", APP, "--slots", "1", more=syslog
    ) as box:
        for what in ("base", "app"):
            box.wait_said(f"the {what} layer is what it should be: SHA-256 {built.image.parts[what].sha256}")
        verified = time.monotonic() - began
        client.submit("who", b"work")
        assert client.end(limit_s=machines.SLOW_S).args[-1] == b"10001 has work"
        worked = time.monotonic() - began
        client.submit("nap", b"4")
        until(lambda: status(gearmand.port)["nap"][1] == 1, 60, lambda: box.said[-2000:])
        box.press_power_button()
        assert client.end(limit_s=60).args[-1] == b"slept"  # the job that ran is finished first
        assert box.wait_off() == 0
        print(f"layers verified {verified:.1f} s, first job {worked:.1f} s after power on")
        assert "the power button: the worker is to finish and end" in box.said
        assert "fleetd: power off" in box.said
    assert status(gearmand.port)["who"][2] == 0  # every connection was closed: no ghost of a worker
    lines = _all(heard)
    assert any("the base layer is what it should be" in line for line in lines), lines  # init's own
    assert any("slot started" in line for line in lines), lines
    assert all(line.startswith("<") for line in lines)


def _all(heard: socket.socket) -> list[str]:
    """Everything that came and waits, one datagram each."""
    lines = []
    heard.settimeout(0)
    with heard, contextlib.suppress(BlockingIOError):
        while True:
            lines.append(heard.recv(4096).decode())
    return lines


def test_a_spoiled_layer_is_refused_before_it_is_mounted(
    built: Built, gearmand: servers.Server, tmp_path: Path
) -> None:
    folder = images.spoiled(built, "app", tmp_path / "spoiled")
    args = ("--server", f"{HOST}:{gearmand.port}", "--app", APP)
    with booted(built, tmp_path, *args, folder=folder) as box:
        box.wait_said("the app layer is not what it should be: its SHA-256 is")
        assert box.wait_off() == 0
        assert "the base layer is what it should be" in box.said
        assert "worker started" not in box.said
        assert "it is not used" in box.said


def test_without_orders_a_machine_says_so_and_goes_off(built: Built, tmp_path: Path) -> None:
    with booted(built, tmp_path) as box:
        box.wait_said("no orders came with this boot")
        assert box.wait_off() == 0
        assert "layer" not in box.said


def test_idle_and_without_a_controller_it_goes_off_by_itself(
    built: Built, gearmand: servers.Server, client: Client, tmp_path: Path
) -> None:
    nobody = f"http://{HOST}:{servers.free_port()}"
    args = ("--server", f"{HOST}:{gearmand.port}", "--app", APP, "--slots", "1", "--controller", nobody)
    with booted(built, tmp_path, *args, "--orphan-after", "8") as box:
        client.submit("nap", b"12")  # longer than it may be idle: it works on
        assert client.end(limit_s=machines.SLOW_S).args[-1] == b"slept"
        assert box.process.poll() is None
        assert box.wait_off() == 0
        assert "no controller for" in box.said
        assert "fleetd: power off" in box.said


@pytest.mark.parametrize("uefi", [False, True], ids=["bios", "uefi"])
def test_firmware_boots_it_with_both_initrds(
    *, uefi: bool, built: Built, gearmand: servers.Server, client: Client, tmp_path: Path
) -> None:
    if uefi and not machines.OVMF.exists():
        servers.find("ovmf")
    folder = shutil.copytree(built.folder, tmp_path / "served")
    (folder / "seed").write_bytes(machines.seed(["--server", f"{HOST}:{gearmand.port}", "--app", APP, "--slots", "1"]))
    with machines.serving(folder) as port:
        names = {what: part.name for what, part in built.image.parts.items()}
        line = machines.arguments(built.image, port)
        (folder / "boot.ipxe").write_text(IPXE.format(host=HOST, port=port, line=line, **names))
        options = machines.by_network(f"http://{HOST}:{port}/boot.ipxe", uefi=uefi, room=tmp_path / "firmware")
        with machines.machine(tmp_path / "machine", *options, memory=512 if uefi else 256) as box:
            client.submit("who", b"work")
            assert client.end(limit_s=machines.SLOW_S).args[-1] == b"10001 has work"
            box.press_power_button()
            assert box.wait_off() == 0
