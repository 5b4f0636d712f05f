"""What an operator does at three in the morning, by the commands alone."""

import contextlib
import json
import signal
import subprocess
import sys
import time

import pytest

from tests.e2e.fleet import Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path) as made:
        yield made


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def woken(naps: Fleet, count: int) -> list[str]:
    naps.start()
    out(naps.fleetd("wake", "local", "--count", str(count)))
    naps.until(f"{count} nodes are ready", lambda: len(naps.nodes("ready")) == count)
    return naps.nodes("ready")


def test_tables_and_first_look_and_logs(naps):
    (node,) = woken(naps, 1)
    assert out(naps.fleetd("pools")).splitlines()[1].split()[:2] == ["local", "1"]
    assert out(naps.fleetd("nodes")).splitlines()[1].split()[:3] == [node, "naps", "ready"]
    assert json.loads(out(naps.fleetd("queues", "--json")))["nap"]["waiting"] == 0
    rows = json.loads(out(naps.fleetd("queues", "--url", f"gearman://{naps.server.address}", "--json")))
    assert rows == [{"queue": "nap", "waiting": 0, "running": 0, "workers": 1}]
    assert "slot" in out(naps.fleetd("logs", node))
    assert naps.fleetd("logs", "locl/1").stderr.startswith("fleetd: logs: no pool 'locl'; did you mean 'local'?")


def test_hold_pause_and_quarantine(naps):
    first, _ = woken(naps, 2)
    assert out(naps.fleetd("quarantine", first)).startswith(f"{first} is kept out of service")
    naps.until("it is quarantined", lambda: naps.nodes("quarantined") == [first])
    out(naps.fleetd("unquarantine", first))
    naps.until(
        "it is back, and one of three is too many", lambda: not naps.nodes("quarantined") and len(naps.nodes()) == 2
    )
    out(naps.fleetd("pause"))
    assert "the fleet is paused by an operator" in out(naps.fleetd("explain", "local"))
    out(naps.fleetd("resume"))
    out(naps.fleetd("hold", "local", "--for", "10m"))
    assert "local is held by an operator for" in out(naps.fleetd("explain", "local"))
    out(naps.fleetd("hold", "local", "--for", "0"))
    assert "held" not in out(naps.fleetd("explain", "local"))
    unknown = naps.fleetd("quarantine", "local/nothing")
    assert (unknown.returncode, "is no pool and no node" in unknown.stderr) == (2, True)


def test_dead_letters_are_listed_shown_retried_and_dropped(naps):
    jobs = naps.home / "app" / "jobs.py"
    poison = "\n@job('nap_poison')\ndef poison(payload):\n    raise ValueError('no good')\n"
    jobs.write_text(jobs.read_text() + poison)
    naps.policy.write_text(naps.policy.read_text().replace("match: nap,", 'match: "nap*",'))
    naps.start()
    argv = ("submit", "nap_poison", "--background", "--payload", "x", "--server", naps.server.address)
    out(naps.fleetd(*argv))
    naps.until("a dead letter", lambda: naps.status()["dead"] == 1)
    (letter,) = json.loads(out(naps.fleetd("dead", "list", "--json")))
    assert (letter["function"], letter["reason"]) == ("nap_poison", "ValueError: no good")
    assert "raise ValueError('no good')" in out(naps.fleetd("dead", "show", letter["id"]))
    assert out(naps.fleetd("dead", "retry", letter["id"])).startswith(f"{letter['id']}: submitted again: H:")
    naps.until("it failed again", lambda: [x["id"] for x in naps_dead(naps)] not in ([], [letter["id"]]))
    (again,) = naps_dead(naps)
    assert again["unique"] == letter["unique"]
    out(naps.fleetd("dead", "drop", again["id"]))
    assert naps_dead(naps) == []
    gone = naps.fleetd("dead", "show", letter["id"])
    assert (gone.returncode, "there is no letter" in gone.stderr) == (2, True)


def naps_dead(naps: Fleet) -> list[dict[str, str]]:
    return list(json.loads(out(naps.fleetd("dead", "list", "--json"))))


def test_journal_follows_and_explain_looks_back(naps):
    naps.start()
    command = [sys.executable, "-m", "fleetd", "journal", "--follow", "--json"]
    with subprocess.Popen(command, env=naps.env, stdout=subprocess.PIPE, text=True) as follow:
        try:
            before = time.time()
            out(naps.fleetd("wake", "local"))
            assert follow.stdout is not None
            texts = (json.loads(line)["text"] for line in follow.stdout)
            assert next(text for text in texts if "wants 1 nodes up" in text)
        finally:
            follow.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                follow.wait(5)
    naps.until("it is ready", lambda: len(naps.nodes("ready")) == 1)
    time.sleep(1.1)
    assert "launching 1" in json.loads(out(naps.fleetd("explain", "--at", "0s", "--json")))["app naps"] or (
        "holds at least 1" in json.loads(out(naps.fleetd("explain", "--at", "0s", "--json")))["pool local"]
    )
    early = naps.fleetd("explain", "--at", f"{time.time() - before + 3600:.0f}s", "--json")
    assert json.loads(out(early)) == {}


def test_doctor_finds_what_is_wrong_and_says_what_to_do(naps):
    good = naps.fleetd("doctor", "--policy", str(naps.policy))
    assert good.returncode == 0, good.stdout
    assert "ok   queue nap: 0 waiting, 0 running" in good.stdout
    naps.server.kill()
    bad = naps.fleetd("doctor", "--policy", str(naps.policy), "--json")
    assert bad.returncode == 1
    (failed,) = [finding for finding in json.loads(bad.stdout) if not finding["good"]]
    assert failed["what"].startswith("queue nap: ")
    assert failed["fix"] == "see that source main runs and is reachable from here"


def test_wake_without_a_controller_is_adopted_by_the_next(naps):
    done = out(naps.fleetd("wake", "local", "--direct", "--policy", str(naps.policy)))
    assert done.startswith("launched local/")
    node = done.split()[1].rstrip(";")
    naps.start()
    naps.until("the node is adopted and ready", lambda: naps.nodes("ready") == [node])
    refused = naps.fleetd("wake", "local", "--direct", "--policy", str(naps.policy))
    assert (refused.returncode, "another controller" in refused.stderr) == (1, True)
    assert f"launched {node}" in out(naps.fleetd("journal", "--last", "1000"))
    assert naps.nodes() == [node]
