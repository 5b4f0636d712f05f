"""The systemd units: systemd finds no fault in them, and they say what keeps workers and jobs alive."""

import configparser
import os
import subprocess
from pathlib import Path

import pytest

from fleetd.worker.main import _parser
from tests import servers

UNITS = Path(__file__).parents[2] / "manifests" / "systemd"
NAMES = ("fleetd.service", "fleetd-worker@.service", "fleetd-dispatcher.service")


def read(name: str) -> dict[str, dict[str, str]]:
    """Return a unit's sections. A key that is there twice is an error here; systemd would take a list for one."""
    parser = configparser.ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text())
    return {section: dict(parser[section]) for section in parser.sections()}


def service(name: str) -> dict[str, str]:
    return read(name)["Service"]


def test_every_unit_is_looked_at() -> None:
    assert sorted(path.name for path in UNITS.iterdir()) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "kill", "restart"),
    [
        ("fleetd.service", "process", "always"),
        ("fleetd-worker@.service", "mixed", "on-failure"),
        ("fleetd-dispatcher.service", "control-group", "always"),
    ],
)
def test_a_stop_reaches_whom_it_should_and_an_end_is_followed_by_a_start(name: str, kill: str, restart: str) -> None:
    unit = service(name)
    assert (unit["KillMode"], unit["Restart"]) == (kill, restart)
    assert read(name)["Unit"]["StartLimitIntervalSec"] == "0"
    assert read(name)["Install"]["WantedBy"] == "multi-user.target"
    assert (unit["User"], unit["StateDirectoryMode"], unit["UMask"]) == ("fleetd", "0700", "0077")


def test_the_controller_reloads_by_hup_and_keeps_its_state_in_its_folder() -> None:
    unit = service("fleetd.service")
    assert unit["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert unit["Environment"] == f"FLEETD_STATE=%S/{unit['StateDirectory']}"
    assert unit["ExecStart"].split()[1:4] == ["run", "--policy", "/etc/fleetd/policy.yaml"]


def test_nothing_that_workers_need_is_taken_from_the_controller() -> None:
    unit = service("fleetd.service")
    absent = ("PrivateTmp", "ProtectHome", "PrivateDevices", "MemoryDenyWriteExecute", "RestrictNamespaces")
    assert not {*absent, "SystemCallFilter", "RestrictAddressFamilies", "DynamicUser"} & unit.keys()
    assert unit["ProtectSystem"] == "full"
    assert unit["OOMPolicy"] == service("fleetd-worker@.service")["OOMPolicy"] == "continue"


def test_a_worker_releases_its_jobs_before_systemd_kills_it() -> None:
    unit = service("fleetd-worker@.service")
    words = unit["ExecStart"].split()
    settings = _parser().parse_args([*words[3:-1], "--server", "127.0.0.1:4730", "--app", "photos"])
    assert (words[1:3], words[-1]) == (["-m", "fleetd.worker"], "$FLEETD_WORKER_ARGS")
    assert settings.drain_deadline == 110.0
    assert settings.drain_deadline + 5 < float(unit["TimeoutStopSec"])
    assert str(settings.spool).startswith(f"%S/{unit['StateDirectory']}/")


def test_a_workers_token_stands_in_a_file_and_on_no_command_line() -> None:
    unit = service("fleetd-worker@.service")
    assert unit["EnvironmentFile"] == "/etc/fleetd/worker-%i.env"
    assert "token" not in unit["ExecStart"].lower()


def test_the_dispatcher_listens_on_this_machine_alone_until_told_otherwise() -> None:
    unit = service("fleetd-dispatcher.service")
    assert unit["ExecStart"].split()[1:] == [
        *("dispatcher", "--listen", "127.0.0.1:4730"),
        *("--data", f"%S/{unit['StateDirectory']}"),
    ]


@pytest.mark.real
def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    """With programs that are here: a unit of a missing program is a fault of the machine, not of the unit."""
    command = servers.find("systemd-analyze")
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    paths = []
    for name in NAMES:
        text = (UNITS / name).read_text().replace("/opt/fleetd/bin/fleetd", str(program))
        path = tmp_path / name.replace("@.", "@photos.")
        path.write_text(text.replace("/opt/fleetd/bin/python", str(program)))
        paths.append(str(path))
    done = subprocess.run(
        [command, "verify", "--man=no", *paths],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LC_ALL": "C"},
    )
    ours = [line for line in done.stderr.splitlines() if "fleetd" in line or str(tmp_path) in line]
    assert (done.returncode, ours) == (0, []), done.stderr
