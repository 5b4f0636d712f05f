"""`fleetd rack` beside a controller's book, and `fleetd wol-relay` as the program that it is."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from fleetd.cli.entry import run
from fleetd.providers.rack.book import Book
from fleetd.providers.rack.inventory import Machine
from fleetd.providers.rack.power import switch_of
from fleetd.providers.rack.shapes import Relay
from tests.rack.powerd import Outlet, PowerDaemon

ONE, TWO, NEW = "52:54:00:12:34:07", "52:54:00:12:34:08", "52:54:00:00:00:99"


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Book]:
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path))
    book = Book(tmp_path / "shop", "rack3")
    book.know({ONE: "node07", TWO: "node08"})
    yield book
    book.close()


def fleetd(capsys, *argv: str) -> tuple[int, str]:
    try:
        code = run(["rack", *argv])
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr()
    return code, told.out + told.err


def rows(capsys) -> dict[str, tuple[str, str]]:
    code, out = fleetd(capsys, "list", "--json")
    assert code == 0
    return {row["machine"]: (row["state"], row["why"]) for row in json.loads(out)}


def test_list_follows_a_machine_through_its_life(book, capsys):
    now = time.time()
    assert rows(capsys) == {"node07": ("off", ""), "node08": ("off", "")}
    wake = book.wake(ONE, "1-1", "photos", now - 50, 300.0)
    book.sent(wake, now - 50)
    assert rows(capsys)["node07"] == ("booting", "was told 1 times")
    book.see(ONE, "kernel", "10.77.0.17", "x86_64", now - 40)
    assert rows(capsys)["node07"] == ("booting", "came as far as 'kernel'")
    book.up(wake, now - 10)
    assert rows(capsys)["node07"] == ("up", "runs photos")
    code, out = fleetd(capsys, "list")
    assert code == 0
    assert re.search(r"rack3/node07 +up +\d+s +1 +40 s  52:54:00:12:34:07  runs photos", out)
    book.stopping(wake, now, 60.0)
    assert rows(capsys)["node07"] == ("going", "was told to go off")
    book.end(ONE, "stopped", now)
    book.failed(TWO, "rebooted by itself", now + 600)
    book.see(ONE, "script", "", "", now)
    assert rows(capsys) == {
        "node07": ("waits", "is on, and waits to be wanted"),
        "node08": ("kept out", "for 10m: rebooted by itself"),
    }


def test_an_unknown_machine_is_scanned_admitted_and_forgotten(book, capsys):
    assert "nobody unknown has asked" in fleetd(capsys, "scan")[1]
    book.see(NEW, "script", "10.77.0.99", "x86_64", time.time() - 5)
    code, out = fleetd(capsys, "scan")
    assert code == 0
    assert re.fullmatch(rf"{NEW}  10.77.0.99       x86_64     5s ago  fleetd rack admit {NEW} --name NAME\n", out)
    assert json.loads(fleetd(capsys, "scan", "--json")[1])[0]["mac"] == NEW
    assert fleetd(capsys, "admit", NEW.upper().replace(":", "-"), "--name", "node09") == (
        0,
        f'{NEW} is rack3/node09 from now on; in the inventory: node09: {{mac: "{NEW}"}}\n',
    )
    assert rows(capsys)["node09"] == ("waits", "is on, and waits to be wanted")
    assert fleetd(capsys, "scan", "--json") == (0, "[]\n")
    assert fleetd(capsys, "forget", "rack3/node09") == (0, f"{NEW} is admitted no longer\n")
    assert "node09" not in rows(capsys)


def test_a_machine_that_is_kept_out_is_freed(book, capsys):
    book.failed(ONE, "fell silent", time.time() + 600)
    assert fleetd(capsys, "free", "node07") == (0, "rack3/node07 may be woken again\n")
    assert fleetd(capsys, "free", ONE) == (0, f"rack3/{ONE} was not kept out\n")


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["admit", "52:54"], "fleetd: expected six bytes as in 52:54:00:12:34:07, got '52:54'\n"),
        (["admit", "01:00:5e:00:00:01"], "fleetd: '01:00:5e:00:00:01' is the address of a group, not of a machine: "),
        (["admit", NEW, "--name", "node07"], f"fleetd: rack3: node07 is {ONE} already; give {NEW} another --name\n"),
        (["admit", NEW, "--name", "a b"], "fleetd: --name: expected letters, digits and '-', as in node07, got 'a b'"),
        (["free", "node7"], "fleetd: node7: no such machine in rack3; did you mean 'node07'?\n"),
        (["list", "--pool", "rack4"], "fleetd: --pool: no rack 'rack4' here; there are: rack3; did you mean 'rack3'?"),
        (["list", "--fleet", "x"], "fleetd: no rack of fleet 'x' was served here yet (looked in "),
        (["forget", "52:54:00:00:00:01"], "fleetd: 52:54:00:00:00:01: was neither admitted nor seen; "),
    ],
)
def test_what_is_wrong_is_one_line(book, capsys, argv, line):
    code, out = fleetd(capsys, *argv)
    assert code in (1, 2)
    assert out.startswith(line)
    assert out.count("\n") == 1


def test_where_there_are_several_racks_one_is_to_be_named(book, tmp_path, capsys):
    Book(tmp_path / "other", "rack3").close()
    assert fleetd(capsys, "admit", NEW) == (
        2, "fleetd: several racks here (rack3 of other, rack3 of shop); say which with --pool and --fleet\n",
    )  # fmt: skip
    assert fleetd(capsys, "admit", NEW, "--fleet", "shop")[0] == 0
    assert set(rows(capsys)) == {"node07", "node08", "m525400000099"}


# ── the relay


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
async def test_the_relay_wakes_for_who_has_its_key(tmp_path: Path, end: signal.Signals) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 40 + "\n")
    with PowerDaemon([Outlet(ONE, ["sleep", "60"], secureon="00:11:22:33:44:55")]) as daemon:
        words = ["--listen", "127.0.0.1:0", "--key-file", str(key), "--mac", ONE.upper(), "--broadcast", "127.0.0.1"]
        command = [sys.executable, "-m", "fleetd", "wol-relay", *words, "--port", str(daemon.port)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
            assert relay.stdout is not None
            try:
                address = relay.stdout.readline().rpartition(" ")[2].strip()
                given = Relay(address=address, key=SecretStr("k" * 40))
                await switch_of(Machine("node07", ONE, secureon="00:11:22:33:44:55", relay=given)).on()
                daemon.wait(ONE, on=True)
                assert relay.stdout.readline() == f"{ONE}: woken\n"
            finally:
                relay.send_signal(end)
            assert relay.wait(10) == 0


@pytest.mark.parametrize(
    ("argv", "environ", "line"),
    [
        (["--listen", "8090"], "k" * 40, "fleetd: --listen: expected HOST:PORT, as in 10.20.0.2:8090, got '8090'"),
        (["--listen", "127.0.0.1:0"], "", "fleetd: wol-relay: a key of 16 characters or more is needed: --key-file, "),
        (["--listen", "127.0.0.1:0"], "short", "fleetd: wol-relay: a key of 16 characters or more is too short: "),
        (["--listen", "203.0.113.7:1"], "k" * 40, "fleetd: --listen 203.0.113.7:1: cannot listen there: "),
        (["--listen", "127.0.0.1:0", "--mac", "x"], "k" * 40, "fleetd: expected six bytes as in 52:54:00:12:34:07"),
    ],
)
def test_a_relay_without_a_key_or_a_place_does_not_start(capsys, monkeypatch, argv, environ, line):
    monkeypatch.setitem(os.environ, "FLEETD_RELAY_KEY", environ)
    try:
        code = run(["wol-relay", *argv])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code in (1, 2)
    err = capsys.readouterr().err
    assert err.startswith(line)
    assert err.count("\n") == 1
