"""Each way to switch a machine, against the real thing: packets, programs, sushy-tools, ipmi_sim, a relay."""

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from fleetd.codecs.magic import RelayRequest, open_answer, sign_request
from fleetd.errors import ProviderError
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import redfish as redfish_module
from fleetd.providers.rack.power import switch_of
from fleetd.providers.rack.power.relay import RelayAgent
from fleetd.providers.rack.probe import knock
from fleetd.providers.rack.shapes import Command, Ipmi, Power, Redfish, Relay
from tests import certificates, servers
from tests.rack import bmcs
from tests.rack.powerd import Outlet, PowerDaemon

pytestmark = pytest.mark.slow

MAC = "52:54:00:12:34:07"
SLEEP = ["sleep", "60"]
KEY = "k" * 40


@pytest.fixture
def daemon() -> Iterator[PowerDaemon]:
    with PowerDaemon([Outlet(MAC, SLEEP)]) as daemon:
        yield daemon


def machine(daemon: PowerDaemon, **given: object) -> Machine:
    made = {"name": "node07", "mac": MAC, "ip": "10.77.0.17", "broadcast": "127.0.0.1", "port": daemon.port}
    return Machine(**made | given)  # type: ignore[arg-type]


# ── packets


async def test_a_packet_wakes_and_cannot_do_more(daemon: PowerDaemon) -> None:
    switch = switch_of(machine(daemon))
    await switch.on()
    daemon.wait(MAC, on=True)
    assert (switch.tells, switch.cuts, await switch.state()) == (False, False, None)
    with pytest.raises(ProviderError, match=r"^node07: wake-on-LAN switches nothing off: its worker does, or a BMC$"):
        await switch.off()


async def test_the_cards_password_decides(daemon: PowerDaemon) -> None:
    daemon.outlets[MAC].secureon = "00:11:22:33:44:55"
    for password in ("", "00:11:22:33:44:56"):
        await switch_of(machine(daemon, secureon=password)).on()
    await switch_of(machine(daemon, secureon="00:11:22:33:44:55")).on()
    daemon.wait(MAC, on=True)
    assert [became for _, _, became in daemon.heard] == ["wrong password", "wrong password", "woken"]
    assert "11:22" not in repr(machine(daemon, secureon="00:11:22:33:44:55"))


async def test_a_source_that_is_not_ours_is_said_in_one_line(daemon: PowerDaemon) -> None:
    with pytest.raises(ProviderError) as caught:
        await switch_of(machine(daemon, source="203.0.113.7")).on()
    assert str(caught.value) == (
        "node07: its magic packet could not be sent to 127.0.0.1: Cannot assign requested address; "
        "`source` is no address of this machine"
    )


# ── programs


def hook(**words: object) -> Power:
    return Power(command=Command(**words))  # type: ignore[arg-type]


async def test_programs_switch_and_tell(daemon: PowerDaemon) -> None:
    power = hook(on=daemon.control("on"), off=daemon.control("off"), status=daemon.control("status"))
    switch = switch_of(machine(daemon, power=power))
    assert (switch.tells, switch.cuts, await switch.state()) == (True, True, "off")
    await switch.on()
    await switch.on()
    assert await switch.state() == "on"
    await switch.off()
    assert await switch.state() == "off"
    assert daemon.outlets[MAC].starts == 1


async def test_words_are_filled_and_no_shell_reads_them(daemon: PowerDaemon, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write = ["python3", "-c", "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:]))", str(out)]
    await switch_of(machine(daemon, power=hook(on=[*write, "{name}", "{mac}/{ip}", "$(id); `id`"]))).on()
    assert out.read_text() == repr(["node07", f"{MAC}/10.77.0.17", "$(id); `id`"])


@pytest.mark.parametrize(
    ("on", "line"),
    [
        (["false"], "node07: its `on` command ended with 1"),
        (["sh", "-c", "echo no; echo luck >&2; exit 7"], "node07: its `on` command ended with 7: no luck"),
        (["no-such-program"], "node07: its `on` command: no-such-program cannot be run: No such file or directory"),
    ],
)
async def test_a_program_that_fails_is_one_line(daemon: PowerDaemon, on: list[str], line: str) -> None:
    with pytest.raises(ProviderError) as caught:
        await switch_of(machine(daemon, power=hook(on=on))).on()
    assert str(caught.value) == line


async def test_a_program_that_hangs_is_ended_with_what_it_started(daemon: PowerDaemon, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    words = ["sh", "-c", f"sleep 60 & echo $! > {mark}; wait"]
    with pytest.raises(ProviderError, match=r"^node07: its `on` command took longer than 0.5 s$"):
        await switch_of(machine(daemon, power=hook(on=words, timeout=0.5))).on()
    await asyncio.sleep(0.1)
    stat = Path(f"/proc/{int(mark.read_text())}/stat")
    assert not stat.exists() or stat.read_text().split()[2] == "Z"


async def test_a_status_of_another_kind_tells_nothing(daemon: PowerDaemon) -> None:
    assert await switch_of(machine(daemon, power=hook(status=["sh", "-c", "exit 5"]))).state() is None


# ── a relay


@pytest.fixture
async def relay(daemon: PowerDaemon):
    said: list[str] = []
    agent = RelayAgent(KEY.encode(), frozenset({MAC}), ("127.0.0.1", daemon.port), said.append)
    server = await agent.serve("127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    yield f"{host}:{port}", agent, said
    server.close()
    await server.wait_closed()


async def test_a_relay_sends_the_packet_in_its_own_network(daemon: PowerDaemon, relay) -> None:
    address, _, said = relay
    daemon.outlets[MAC].secureon = "00:11:22:33:44:55"
    given = Relay(address=address, key=SecretStr(KEY))
    await switch_of(machine(daemon, relay=given, secureon="00:11:22:33:44:55", broadcast="255.255.255.255")).on()
    daemon.wait(MAC, on=True)
    assert said == [f"{MAC}: woken"]


async def test_a_relay_refuses_who_is_not_on_its_list_and_whom_it_does_not_know(daemon: PowerDaemon, relay) -> None:
    address, _, said = relay
    stranger = replace(machine(daemon), mac="52:54:00:12:34:08", relay=Relay(address=address, key=SecretStr(KEY)))
    with pytest.raises(ProviderError) as caught:
        await switch_of(stranger).on()
    assert str(caught.value) == (
        f"node07: the relay at {address} did not send the packet: 52:54:00:12:34:08 is not on its list (--mac)"
    )
    with pytest.raises(ProviderError, match=r"^node07: the relay at .*: the relay's answer is not one$"):
        await switch_of(machine(daemon, relay=Relay(address=address, key=SecretStr("x" * 40)))).on()
    assert said[-1] == "refused: relay: the signature is wrong: the two have different keys"
    assert daemon.heard == []


def test_a_request_that_was_sent_before_is_refused(daemon: PowerDaemon) -> None:
    agent = RelayAgent(KEY.encode(), frozenset(), ("127.0.0.1", daemon.port), lambda _: None)
    request = RelayRequest(MAC, "", "", time.time(), secrets.token_hex(16))
    line = sign_request(KEY.encode(), request)
    first, second = agent.answer(line, time.time()), agent.answer(line, time.time())
    assert open_answer(KEY.encode(), request, first) == ""
    assert open_answer(KEY.encode(), request, second) == "this request was sent before"
    assert agent.answer(line, time.time() + 61) == b""


async def test_a_relay_that_is_not_there_or_mute_is_one_line(daemon: PowerDaemon, monkeypatch) -> None:
    given = Relay(address=f"127.0.0.1:{servers.free_port()}", key=SecretStr(KEY))
    with pytest.raises(ProviderError, match=r"^node07: the relay at 127.0.0.1:\d+ cannot be reached: Connect"):
        await switch_of(machine(daemon, relay=given)).on()
    monkeypatch.setattr("fleetd.providers.rack.power.relay.LIMIT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        given = Relay(address=f"127.0.0.1:{mute.getsockname()[1]}", key=SecretStr(KEY))
        with pytest.raises(ProviderError, match=r"does not answer within 0 s$"):
            await switch_of(machine(daemon, relay=given)).on()


# ── Redfish


@pytest.fixture
def redfish(daemon: PowerDaemon, tmp_path: Path) -> Iterator[Redfish]:
    (tmp_path / "pki").mkdir()
    made = certificates.make(tmp_path / "pki")
    daemon.add(Outlet("52:54:00:12:34:08", SLEEP))
    names = {"node07": MAC, "node08": "52:54:00:12:34:08"}
    with bmcs.redfish(tmp_path, daemon, names, (Path(made.pem("server")), Path(made.key("server")))) as url:
        password = SecretStr(bmcs.PASSWORD)
        yield Redfish(url=url, user=bmcs.USER, password=password, system="{name}", verify=made.pem("ca"))


@pytest.mark.slow
async def test_redfish_switches_and_tells(daemon: PowerDaemon, redfish: Redfish) -> None:
    switch = switch_of(machine(daemon, power=Power(redfish=redfish)))
    assert (switch.tells, switch.cuts, await switch.state()) == (True, True, "off")
    await switch.on()
    await switch.on()
    assert await switch.state() == "on"
    assert (daemon.outlets[MAC].on, daemon.outlets["52:54:00:12:34:08"].on) == (True, False)
    await switch.off()
    await switch.off()
    assert await switch.state() == "off"
    await switch.close()


@pytest.mark.slow
async def test_what_redfish_refuses_is_one_line_without_the_password(daemon: PowerDaemon, redfish: Redfish) -> None:
    cases: dict[str, dict[str, object]] = {
        "refuses `user` and `password`": {"password": SecretStr("wrong-password")},
        "give `system`, one of: node07, node08": {"system": ""},
        "its certificate is not trusted: give `verify`": {"verify": "true"},
        "cannot be reached": {"url": f"http://127.0.0.1:{servers.free_port()}"},
    }
    for words, change in cases.items():
        with pytest.raises(ProviderError) as caught:
            await switch_of(machine(daemon, power=Power(redfish=redfish.model_copy(update=change)))).state()
        assert str(caught.value).startswith(f"node07: Redfish at {change.get('url', redfish.url)}: ")
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "wrong-password" not in str(caught.value)
    assert await switch_of(machine(daemon, power=Power(redfish=redfish.model_copy(update={"verify": "false"})))).state()


@pytest.mark.slow
async def test_a_bmc_that_is_mute_holds_up_nobody_for_longer_than_its_limit(daemon: PowerDaemon, monkeypatch) -> None:
    monkeypatch.setattr(redfish_module, "LIMIT_S", 0.5)
    monkeypatch.setattr(redfish_module, "CALL_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        given = Redfish(url=f"http://127.0.0.1:{mute.getsockname()[1]}")
        with pytest.raises(ProviderError, match=r"^node07: Redfish at .*: no answer within 0 s$"):
            await switch_of(machine(daemon, power=Power(redfish=given))).state()


# ── IPMI


@pytest.mark.real
@pytest.mark.slow
async def test_ipmi_switches_and_tells(daemon: PowerDaemon, tmp_path: Path) -> None:
    with bmcs.ipmi(tmp_path, daemon, MAC) as port:
        given = Ipmi(host="127.0.0.1", port=port, user=bmcs.USER, password=SecretStr(bmcs.PASSWORD))
        switch = switch_of(machine(daemon, power=Power(ipmi=given)))
        assert (switch.tells, switch.cuts, await switch.state()) == (True, True, "off")
        await switch.on()
        await asyncio.to_thread(daemon.wait, MAC, on=True)
        assert await switch.state() == "on"
        await switch.off()
        await asyncio.to_thread(daemon.wait, MAC, on=False)
        deadline = time.monotonic() + 10
        while await switch.state() != "off":
            assert time.monotonic() < deadline
        wrong = given.model_copy(update={"password": SecretStr("wrong-password")})
        with pytest.raises(ProviderError, match=r"^node07: IPMI at 127.0.0.1: ") as caught:
            await switch_of(machine(daemon, power=Power(ipmi=wrong))).state()
        assert "password" in str(caught.value)
        assert "wrong-password" not in str(caught.value)


@pytest.mark.slow
async def test_an_ipmi_bmc_that_is_not_there_is_one_line_and_its_process_ends(daemon: PowerDaemon, monkeypatch) -> None:
    monkeypatch.setattr("fleetd.providers.rack.power.ipmi.LIMIT_S", 1.0)
    given = Ipmi(host="127.0.0.1", port=servers.free_port())
    with pytest.raises(ProviderError, match=r"^node07: IPMI at 127.0.0.1: "):
        await switch_of(machine(daemon, power=Power(ipmi=given))).state()
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    lines = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children if Path(f"/proc/{child}").exists()]
    assert not any(b"ipmi_call" in line for line in lines)


def test_what_a_way_needs_and_is_not_there_is_said_with_the_command_that_brings_it(daemon, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "wakeonlan", None)
    monkeypatch.delitem(sys.modules, "fleetd.providers.rack.power.wol", raising=False)
    with pytest.raises(ProviderError, match=r"^node07: wol needs wakeonlan: run: pip install 'fleetd\[rack\]'$"):
        switch_of(machine(daemon))


# ── knocking


async def test_only_a_port_that_opens_is_an_answer_on_loopback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await knock("127.0.0.1", server.getsockname()[1]) == "answers"
    assert await knock("127.0.0.1", servers.free_port()) == "silent"
    assert await knock("", 9) == "unknown"


async def test_a_black_hole_is_silence() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)  # noqa: FBT003 - its only argument
            one.connect_ex(("127.0.0.1", port))
        assert await knock("127.0.0.1", port, 0.3) == "silent"
        for one in held:
            one.close()


def test_the_daemons_client_speaks_by_exit_codes(daemon: PowerDaemon) -> None:
    codes = []
    for verb, mac in (("status", MAC), ("on", MAC), ("status", MAC), ("off", MAC), ("on", "52:54:00:00:00:99")):
        codes.append(os.spawnv(os.P_WAIT, sys.executable, daemon.control(verb, mac)))
    assert codes == [1, 0, 0, 0, 2]
