import asyncio
import http.client
import json
import os
import re
import time
from pathlib import Path

import pytest

from fleetd.boot.machines import verdict
from fleetd.codecs.scope import CREDENTIAL_S
from fleetd.providers.rack.book import Wake
from fleetd.releases.sign import make_key
from tests.boot.rack import MAC, OTHER, STRANGER, Rack, make_image, serving

pytestmark = pytest.mark.slow


async def get(rack: Rack, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    def ask() -> tuple[int, bytes]:
        link = http.client.HTTPConnection("127.0.0.1", rack.port, timeout=10)
        link.putrequest(method, path, skip_accept_encoding=True)
        for name, value in headers.items():
            link.putheader(name, value)
        link.endheaders()
        answer = link.getresponse()
        content = answer.read()
        link.close()
        return answer.status, content

    return await asyncio.to_thread(ask)


async def script(rack: Rack, mac: str, query: str = "") -> str:
    code, content = await get(rack, f"/ipxe/{mac}{query}")
    assert code == 200
    return content.decode()


def unpack(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Read a newc archive as the kernel does: mode and content by name."""
    assert len(archive) % 512 == 0
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = archive[at + 110 : at + 110 + fields[11] - 1].decode()
        start = at + 110 + fields[11]
        start += -start % 4
        if name == "TRAILER!!!":
            return found
        found[name] = fields[1], archive[start : start + fields[6]]
        at = start + fields[6]
        at += -at % 4


async def test_a_woken_machine_gets_a_script_that_names_everything_and_each_part_is_there(tmp_path: Path) -> None:
    async with serving(tmp_path, arguments=("panic=30",), syslog="10.77.0.1:514") as rack:
        wake = rack.wake()
        text = await script(rack, "52-54-00-12-34-07", "?platform=efi")
        assert f"echo fleetd: booting {wake.node}" in text
        kernel = re.search(r"^kernel --name kernel (\S+) (.*) \|\| goto failed$", text, re.MULTILINE)
        assert kernel
        arguments = kernel[2].split()
        assert arguments[:3] == ["initrd=initrd0", "initrd=initrd1", "console=ttyS0"]
        assert {"quiet", "panic=30", "fleetd.syslog=10.77.0.1:514", f"fleetd.mac={MAC}"} <= set(arguments)
        named = dict(argument.partition("=")[::2] for argument in arguments)
        initrds = re.findall(r"^initrd --name initrd\d (\S+)", text, re.MULTILINE)
        addresses = {
            "kernel": kernel[1],
            "initrd": initrds[0],
            "base": named["fleetd.base"],
            "app": named["fleetd.app"],
        }
        for what, address in addresses.items():
            code, content = await get(rack, address.removeprefix(f"http://127.0.0.1:{rack.port}"))
            assert (code, content) == (200, rack.part(what).read_bytes())
        for what in ("base", "app"):
            assert named[f"fleetd.{what}.sha256"] == rack.image.parts[what].sha256
        seen = rack.book.sightings()[MAC]
        assert (seen.stage, seen.arch, seen.ip) == ("app", "uefi", "127.0.0.1")


async def test_the_second_initrd_holds_the_token_and_all_that_a_worker_needs_for_root_alone(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        wake = rack.wake()
        code, archive = await get(rack, f"/boot/{MAC}/seed")
        assert code == 200
        found = unpack(archive)
        assert {name: f"{mode:o}" for name, (mode, _) in found.items()} == {
            "fleetd": "40700",
            "fleetd/token": "100400",
            "fleetd/controller": "100400",
            "fleetd/ca.pem": "100400",
            "fleetd/worker.json": "100400",
        }
        assert found["fleetd/controller"][1].decode() == rack.enrol
        assert found["fleetd/ca.pem"][1].decode() == rack.pem()
        args = json.loads(found["fleetd/worker.json"][1])["args"]
        given = dict(zip(args[::2], args[1::2], strict=True))
        told = {"--node": wake.node, "--pool": "rack3", "--fleet": "shop", "--app-name": "photos", "--slots": "4"}
        assert given.items() >= told.items()
        assert (given["--controller"], given["--server"]) == ("http://10.77.0.1:8080", "10.77.0.1:4730")
        assert rack.book.redeem(found["fleetd/token"][1].decode(), rack.clock()).node == wake.node


@pytest.mark.parametrize(
    "spelling", ["52-54-00-12-34-07", "52:54:00:12:34:07", "52%3A54%3A00%3A12%3A34%3A07", "525400123407"]
)
async def test_a_mac_is_known_in_each_of_its_spellings(tmp_path: Path, spelling: str) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        assert "booting rack3/node07.1" in await script(rack, spelling.upper())


async def test_a_machine_that_nobody_woke_waits_then_goes_off_and_gets_no_token(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=600.0) as rack:
        rack.now = 1000.0
        assert "node07 waits until it is wanted" in await script(rack, MAC)
        assert (await get(rack, f"/boot/{MAC}/seed"))[0] == 403
        for rack.now in (1050.0, 1100.0, 1150.0):
            assert "chain" in await script(rack, MAC)
        for at in range(1200, 1600, 50):
            rack.now = float(at)
            assert "waits" in await script(rack, MAC)
        rack.now = 1600.0
        text = await script(rack, MAC)
        assert "nobody wanted node07 for 600 s: off" in text
        assert text.index("poweroff") < text.index("/off/kernel")
        assert (await get(rack, "/off/kernel"))[1] == rack.part("kernel").read_bytes()
        assert "init" in unpack((await get(rack, "/off/initrd"))[1])
        rack.now = 1610.0
        assert "waits" in await script(rack, MAC)  # switched on again, it waits anew


async def test_a_machine_that_was_away_in_between_waits_from_the_beginning(tmp_path: Path) -> None:
    async with serving(tmp_path, wait=100.0) as rack:
        for rack.now in (1000.0, 1050.0, 1111.0, 1200.0):
            assert "waits" in await script(rack, MAC)


async def test_a_waiting_machine_boots_as_soon_as_it_is_wanted(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        assert "waits" in await script(rack, MAC)
        rack.wake()
        assert "booting" in await script(rack, MAC)


async def test_an_unknown_machine_is_seen_and_never_boots(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        text = await script(rack, STRANGER)
        assert f"{STRANGER} is not admitted: fleetd rack admit {STRANGER}" in text
        assert "kernel" not in text
        for part in ("kernel", "initrd", "base", "app", "seed"):
            assert (await get(rack, f"/boot/{STRANGER}/{part}"))[0] == 403
        assert [seen.mac for seen in rack.book.pending()] == [STRANGER]
        rack.book.admit(STRANGER, "node99")
        rack.wake(STRANGER)
        assert "booting rack3/525400123499.1" in await script(rack, STRANGER)


async def test_a_machine_that_boots_again_by_itself_gets_no_second_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        first = unpack((await get(rack, f"/boot/{MAC}/seed"))[1])["fleetd/token"][1].decode()
        second = unpack((await get(rack, f"/boot/{MAC}/seed"))[1])["fleetd/token"][1].decode()
        assert first != second  # iPXE asked twice: the newest counts
        rack.book.redeem(second, rack.clock())
        assert (await get(rack, f"/boot/{MAC}/seed"))[0] == 403
        assert "waits" in await script(rack, MAC)


async def test_a_head_request_issues_no_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        assert (await get(rack, f"/boot/{MAC}/seed", "HEAD"))[0] == 403
        current = rack.book.current(MAC)
        assert current is not None
        assert current.token_sha256 is None


async def test_with_addresses_of_ours_a_token_is_given_to_the_machines_own_alone(tmp_path: Path) -> None:
    async with serving(tmp_path, dhcp="full") as rack:
        rack.wake()
        rack.wake(OTHER)
        assert (await get(rack, f"/boot/{MAC}/seed"))[0] == 403  # node07 is 10.77.0.17, and this is 127.0.0.1
        assert (await get(rack, f"/boot/{OTHER}/seed"))[0] == 200  # of node08 no address is known
        assert "asked for from 127.0.0.1, which is not 10.77.0.17" in rack.book.reports()[0][2]


@pytest.mark.parametrize(
    "path",
    [
        "/boot/{mac}/../../image.json",
        "/boot/{mac}/..%2f..%2fetc%2fpasswd",
        "/boot/{mac}/%2e%2e",
        "/boot/{mac}/image.json",
        "/boot/{mac}/",
        "/boot/..%2f/kernel",
        "/loader/../image.json",
        "/loader/%2e%2e%2fimage.json",
        "/loader/undionly.kpxe%00",
        "//etc/passwd",
        "/ipxe/",
        "/ipxe/%00",
        "/ipxe/52-54-00-12-34",
        "/ipxe/53-54-00-12-34-07",
        "/",
        "/off/app",
    ],
)
async def test_there_is_nothing_but_what_is_on_the_list(tmp_path: Path, path: str) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        code, content = await get(rack, path.format(mac=MAC))
        assert code == 404
        assert len(content) < 200
        assert (await get(rack, f"/ipxe/{MAC}", "PUT"))[0] == 405


async def test_a_corrupted_layer_is_never_served_and_is_again_once_it_is_put_right(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        path = rack.part("base")
        right = path.read_bytes()
        path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        assert (await get(rack, f"/boot/{MAC}/base"))[0] == 503
        assert "the image is not fit to boot" in await script(rack, MAC)
        assert f"{path}: is not what the manifest says (SHA-256" in "\n".join(rack.said)
        path.write_bytes(right[:-1])
        assert (await get(rack, f"/boot/{MAC}/base"))[0] == 503
        path.write_bytes(right)
        assert await get(rack, f"/boot/{MAC}/base") == (200, right)
        assert "booting" in await script(rack, MAC)


async def test_a_file_changed_in_place_with_its_time_put_back_is_noticed(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        path = rack.part("app")
        assert (await get(rack, f"/boot/{MAC}/app"))[0] == 200
        stat = path.stat()
        time.sleep(0.01)
        with path.open("r+b") as file:
            file.write(b"evil")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert (await get(rack, f"/boot/{MAC}/app"))[0] == 503


async def test_a_new_image_is_taken_up_and_a_transfer_under_way_ends_with_the_old_one(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        old = rack.part("base").read_bytes()
        link = http.client.HTTPConnection("127.0.0.1", rack.port, timeout=10)
        await asyncio.to_thread(link.request, "GET", f"/boot/{MAC}/base")
        answer = await asyncio.to_thread(link.getresponse)
        begun = await asyncio.to_thread(answer.read, 10)
        rack.image = make_image(tmp_path / "image")
        assert (await get(rack, f"/boot/{MAC}/base"))[1] == rack.part("base").read_bytes()
        assert begun + await asyncio.to_thread(answer.read) == old
        link.close()
        assert rack.image.parts["base"].sha256 in await script(rack, MAC)


async def test_an_image_that_nobody_vouches_for_boots_no_machine(tmp_path: Path) -> None:
    mine, other = make_key(tmp_path / "mine.key"), make_key(tmp_path / "other.key")
    async with serving(tmp_path, keys=(mine,)) as rack:
        rack.wake()
        assert "the image is not fit" in await script(rack, MAC)
        make_image(tmp_path / "image", key=tmp_path / "other.key")
        assert "the image is not fit" in await script(rack, MAC)
        make_image(tmp_path / "image", key=tmp_path / "mine.key")
        assert "booting" in await script(rack, MAC)
        assert other != mine


async def test_a_missing_image_is_said_with_what_to_do_and_machines_wait(tmp_path: Path) -> None:
    async with serving(tmp_path, image="elsewhere") as rack:
        rack.wake()
        assert "the image is not fit" in await script(rack, MAC)
        assert (await get(rack, "/healthz"))[0] == 503
        assert any("make an image with `fleetd image build`" in line for line in rack.said)


async def test_a_reload_is_taken_up_and_an_address_that_is_taken_is_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as rack:
        rack.wake()
        rack.change(arguments=("quick=1",))
        async with asyncio.timeout(10):
            while "quick=1" not in await script(rack, MAC):
                await asyncio.sleep(0.05)
        taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
        port = taken.sockets[0].getsockname()[1]
        rack.change(listen=f"127.0.0.1:{port}")
        async with asyncio.timeout(10):
            while not any(f"127.0.0.1:{port}" in line for line in rack.said):
                await asyncio.sleep(0.05)
        assert "is the address on this host?" in rack.said[-1]
        taken.close()


@pytest.mark.parametrize(
    ("wake", "waited_s", "what"),
    [
        (None, 0.0, "wait"),
        (None, 600.0, "off"),
        ({}, 0.0, "boot"),
        ({}, 6000.0, "boot"),
        ({"until": 999.0}, 0.0, "wait"),
        ({"at": 1001.0}, 0.0, "wait"),
        ({"used_at": 990.0}, 0.0, "wait"),
        ({"stop_at": 990.0}, 0.0, "wait"),
        ({"stop_at": 990.0}, 600.0, "off"),
    ],
)
def test_what_a_machine_is_to_do(wake: dict[str, float] | None, waited_s: float, what: str) -> None:
    fields = {"at": 900.0, "until": 1200.0, **(wake or {})}
    given = None if wake is None else Wake(MAC, 1, "rack3/node07.1", "k", "photos", **fields)  # type: ignore[arg-type]
    assert verdict(given, 1000.0, waited_s, 600.0) == what


def test_a_credential_outlives_an_hour_without_the_controller() -> None:
    assert CREDENTIAL_S / 2 >= 3600
