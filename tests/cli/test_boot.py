"""`fleetd boot` as a person meets it: what it prints, and one line for each mistake."""

import json
from pathlib import Path

import pytest

from fleetd.cli.entry import run
from fleetd.providers.rack.book import Book
from tests.boot.rack import SECRET, make_image

POLICY = """
version: 1
fleet: shop
controller: {listen: "10.77.0.1:8080", join: {env: TEST_JOIN}}
sources: {main: {gearman: {servers: ["10.77.0.1:4730"]}}}
apps: {photos: {release: {path: app}}}
queues: {photos: {app: photos, source: main, match: "*", objective: {wait: 30s}}}
pools:
"""


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("TEST_JOIN", SECRET)
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "jobs.py").write_text("")
    return tmp_path


def policy(room: Path, *racks: str, **boot: str) -> str:
    lines = []
    for number, name in enumerate(racks):
        net = f"10.{77 + number}.0"
        given = {"listen": f"{net}.1:8081", "url": f"http://{net}.1:8081", "interface": "rack0", "dhcp": "full"}
        given |= {"subnet": f"{net}.0/24", "image": "images/1"} | boot
        machines = {f"node{number}": {"mac": f"52:54:00:12:34:0{number}", "ip": f"{net}.17"}}
        (room / f"{name}.yaml").write_text(json.dumps({"boot": given, "machines": machines}))
        lines.append(f"  {name}: {{rack: {{inventory: {name}.yaml}}, apps: [photos], slots: 4, max: 2, price: 0.03/h}}")
    if not racks:
        lines.append("  here: {process: {}, apps: [photos], slots: 1, max: 1, price: 0}")
    (room / "fleetd.yaml").write_text(POLICY + "\n".join(lines) + "\n")
    return str(room / "fleetd.yaml")


def fleetd(*words: str) -> int:
    try:
        return run(list(words))
    except SystemExit as end:
        return int(end.code or 0)


def test_dnsmasqs_configuration_names_the_machines_admitted_ones_too(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = policy(room, "rack3")
    book = Book(room / "state" / "shop", "rack3")
    book.admit("52:54:00:12:34:99", "node99")
    book.close()
    assert fleetd("boot", "dnsmasq", "-p", path) == 0
    printed = capsys.readouterr().out
    assert "dhcp-host=52:54:00:12:34:00,10.77.0.17,node0\n" in printed
    assert "dhcp-host=52:54:00:12:34:99,node99\n" in printed
    assert fleetd("boot", "-p", path, "dnsmasq", "--kea", "--tftp", "/srv") == 0
    assert json.loads(capsys.readouterr().out)["Dhcp4"]["subnet4"][0]["subnet"] == "10.77.0.0/24"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ((("rack3", "rack4"), {}, ()), "has several racks (rack3, rack4); say which with --rack"),
        ((("rack3",), {}, ("--rack", "rack4")), "--rack rack4: no such rack; there are: rack3; did you mean 'rack3'?"),
        ((("rack3",), {}, ("--isc", "--kea")), "--kea: one kind of server at a time; leave --isc out"),
        ((("rack3",), {"dhcp": "none"}, ()), "rack3: boot.dhcp: is none; say full, or proxy"),
        ((("rack3",), {"listen": "127.0.0.1:1"}, ()), "boot.listen: 127.0.0.1 is not within the rack's subnet"),
        (((), {}, ()), "no rack boots from here: none has `boot` in its inventory"),
    ],
)
def test_a_mistake_is_one_line(
    room: Path,
    capsys: pytest.CaptureFixture[str],
    given: tuple[tuple[str, ...], dict[str, str], tuple[str, ...]],
    line: str,
) -> None:
    racks, boot, words = given
    assert fleetd("boot", "dnsmasq", "-p", policy(room, *racks, **boot), *words) == 2
    said = capsys.readouterr()
    assert line in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


def test_without_a_policy_or_without_a_rack_there_is_nothing_to_serve(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fleetd("boot") == 2
    assert "boot: needs --policy FILE" in capsys.readouterr().err
    path = policy(room)
    assert fleetd("boot", "-p", path) == 2
    assert "has no rack to boot" in capsys.readouterr().err


def test_show_tells_the_fingerprint_and_what_is_wrong_with_the_image(
    room: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = policy(room, "rack3")
    assert fleetd("boot", "show", "-p", path, "--json") == 0
    (first,) = json.loads(capsys.readouterr().out)
    assert len(first["fingerprint"]) == 95
    assert str(room / "images" / "1") in first["image"]
    (room / "images").mkdir()
    make_image(room / "images" / "1")
    assert fleetd("boot", "show", "-p", path) == 0
    printed = capsys.readouterr().out
    assert first["fingerprint"] in printed
    assert "1 MiB a boot" in printed
    assert "enrols at https://10.77.0.1:8082" in printed


def test_the_doctor_ends_with_1_where_something_is_wrong(room: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = policy(room, "rack3", dhcp="none", subnet="127.0.0.0/24", listen="127.0.0.1:8081")
    (room / "rack3.yaml").write_text((room / "rack3.yaml").read_text().replace("10.77.0.17", "127.0.0.17"))
    assert fleetd("boot", "doctor", "-p", path) == 1
    printed = capsys.readouterr().out
    assert "BAD   rack3: " in printed
    assert "good  rack3: boot.listen: 127.0.0.1:8081 is an address of this host" in printed
