"""BMCs for tests, real ones but for the iron: sushy-tools speaks Redfish, OpenIPMI's ipmi_sim speaks IPMI.

Both switch the machines of a power daemon. Run as a program (`python bmcs.py CONFIG PORT`) this is the Redfish one:
sushy-tools with its fake driver, whose switch is the daemon's instead of a pending random second.
"""

import contextlib
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests import servers
from tests.rack.powerd import PowerDaemon

USER, PASSWORD = "root", "calvin"


@contextlib.contextmanager
def redfish(
    folder: Path, daemon: PowerDaemon, names: Mapping[str, str], certificate: tuple[Path, Path]
) -> Iterator[str]:
    """Serve one BMC for several machines, MAC by name; yields its address. `certificate` and its key are given."""
    import bcrypt  # noqa: PLC0415 - sushy-tools brings it

    secret = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    (folder / "htpasswd").write_text(f"{USER}:{secret}\n")
    systems = [
        {"uuid": name, "name": name, "power_state": "Off", "nics": [{"mac": mac, "ip": ""}]}
        for name, mac in names.items()
    ]
    config = folder / "emulator.conf"
    given = {
        "SUSHY_EMULATOR_AUTH_FILE": str(folder / "htpasswd"),
        "SUSHY_EMULATOR_STATE_DIR": str(folder),
        "SUSHY_EMULATOR_FAKE_SYSTEMS": systems,
        "SUSHY_EMULATOR_SSL_CERT": str(certificate[0]),
        "SUSHY_EMULATOR_SSL_KEY": str(certificate[1]),
        "SUSHY_EMULATOR_LISTEN_IP": "127.0.0.1",
        "POWER_DAEMON": daemon.url,
    }
    config.write_text("".join(f"{key} = {value!r}\n" for key, value in given.items()))
    port = servers.free_port()
    command = [sys.executable, "-m", "tests.rack.bmcs", str(config), str(port)]
    with _running(command, folder / "emulator.log"):
        _wait_for(port, folder / "emulator.log")
        yield f"https://localhost:{port}"


@contextlib.contextmanager
def ipmi(folder: Path, daemon: PowerDaemon, mac: str) -> Iterator[int]:
    """Serve a machine's BMC; yields its UDP port on 127.0.0.1."""
    program = servers.find("ipmi_sim")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    control = " ".join(daemon.control("chassis", mac))
    (folder / "lan.conf").write_text(
        f"""name "bmc"
set_working_mc 0x20
  startlan 1
    addr 127.0.0.1 {port}
    priv_limit admin
    allowed_auths_callback none md2 md5 straight
    allowed_auths_user none md2 md5 straight
    allowed_auths_operator none md2 md5 straight
    allowed_auths_admin none md2 md5 straight
    guid a123456789abcdefa123456789abcdef
  endlan
  chassis_control "{control}"
  user 1 true "" "" user 10
  user 2 true "{USER}" "{PASSWORD}" admin 10
"""
    )
    (folder / "bmc.emu").write_text(
        "mc_setbmc 0x20\nmc_add 0x20 0 no-device-sdrs 0x23 9 8 0x9f 0x1291 0xf02\n"
        "sel_enable 0x20 100 0x0a\nmc_enable 0x20\n"
    )
    state = folder / "state"
    state.mkdir()
    command = [program, "-n", "-c", str(folder / "lan.conf"), "-f", str(folder / "bmc.emu"), "-s", str(state)]
    with _running(command, folder / "ipmi_sim.log"):
        time.sleep(0.3)  # it has no way to say that it listens
        yield port


@contextlib.contextmanager
def _running(command: list[str], log: Path) -> Iterator[None]:
    with (
        log.open("wb") as out,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=servers._die_with_parent,  # noqa: PLW1509
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            process.kill()


def _wait_for(port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


def main() -> None:
    """Be the Redfish BMC."""
    from sushy_tools.emulator import main as emulator  # noqa: PLC0415 - only this program needs it
    from sushy_tools.emulator.resources.systems import fakedriver  # noqa: PLC0415

    class Driver(fakedriver.FakeDriver):  # type: ignore[misc]
        def _switch(self, identity: str, verb: str) -> str:
            mac = self._get(identity)["nics"][0]["mac"]
            with urllib.request.urlopen(f"{self._config['POWER_DAEMON']}/{mac}/{verb}", b"", timeout=10) as answer:
                return str(answer.read().decode())

        def get_power_state(self, identity: str) -> str:
            return {"on": "On", "off": "Off"}[self._switch(identity, "status")]

        def set_power_state(self, identity: str, state: str) -> None:
            self._switch(identity, "on" if "On" in state else "off")

    fakedriver.FakeDriver = Driver
    config, port = sys.argv[1:3]
    sys.argv = ["sushy-emulator", "--fake", "--config", config, "--port", port]
    emulator.main()


if __name__ == "__main__":
    main()
