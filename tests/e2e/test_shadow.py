"""`fleetd run --shadow` beside a live fleet, and by itself: it says what it would do, and nobody notices it."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fleetd.config import load
from fleetd.control.embedded import wanted
from tests import servers
from tests.e2e.fleet import Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path) as made:
        yield made


@contextlib.contextmanager
def shadow(naps: Fleet, text: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shadow with a policy of its own, ended at the end."""
    policy = naps.home / "other.yaml"
    policy.write_text(text)
    command = [sys.executable, "-m", "fleetd", "run", "--policy", str(policy), "--no-live", "--shadow"]
    with (
        (naps.home / "shadow.log").open("wb") as log,
        subprocess.Popen(command, env=naps.env, stdout=log, stderr=log) as process,
    ):
        try:
            naps.until("the shadow answers", lambda: asked(naps).returncode == 0 or process.poll() is not None)
            assert process.poll() is None, said(naps)
            yield process
        finally:
            process.terminate()
            process.wait(20)


def asked(naps: Fleet) -> subprocess.CompletedProcess[str]:
    return naps.fleetd("status", "--fleet", "e2e-shadow", "--json")


def said(naps: Fleet) -> str:
    return (naps.home / "shadow.log").read_text()


def would(naps: Fleet) -> list[str]:
    """What the shadow's journal says it would have done."""
    answer = naps.fleetd("journal", "--fleet", "e2e-shadow", "--last", "1000", "--json")
    texts = [json.loads(line)["text"] for line in answer.stdout.splitlines()]
    return [text for text in texts if text.startswith("would ")]


def test_beside_the_live_controller_it_sees_the_same_nodes_and_touches_none(naps):
    naps.start()
    assert naps.fleetd("wake", "local", "--count", "2").returncode == 0
    naps.until("two nodes are ready", lambda: len(naps.nodes("ready")) == 2)
    before = naps.nodes()
    with shadow(naps, naps.policy.read_text().replace("max: 4", "min: 3, max: 4")) as process:
        naps.until("it would launch one more", lambda: any("launch 1 in local for naps" in x for x in would(naps)))
        seen = json.loads(asked(naps).stdout)["nodes"]
        assert sorted(node["id"] for node in seen) == sorted(before)
        assert {node["phase"] for node in seen} == {"ready"}
        naps.submit(1.0, count=6)
        naps.until("the live fleet works on", lambda: len(naps.naps()) == 6)
        refused = naps.fleetd("drain", before[0], "--fleet", "e2e-shadow")
        assert (refused.returncode, "it touches nothing" in refused.stderr) == (2, True)
        assert naps.fleetd("status").returncode == 0, "who names no fleet means the live one"
        process.terminate()
        assert process.wait(20) == 0
        assert "nothing was touched" in said(naps)
    assert naps.status()["epoch"] == 1
    assert set(before) <= set(naps.nodes())


def test_by_itself_it_says_what_it_would_launch_and_starts_no_worker(naps):
    naps.submit(0.1, count=40)
    with shadow(naps, naps.policy.read_text()):
        naps.until("it would launch", lambda: any("in local for naps: " in line for line in would(naps)))
        assert json.loads(asked(naps).stdout)["nodes"] == []
    assert naps.naps() == []
    assert "no live controller lends its memory" in said(naps)
    assert not (naps.home / "state" / "e2e").exists(), "the live controller's folder is not its own"


def test_it_starts_no_embedded_dispatcher(naps):
    text, address = naps.policy.read_text(), f"127.0.0.1:{servers.free_port()}"
    source = text[text.index("{servers") : text.index("}}\napps")]
    with shadow(naps, text.replace(source, f'{{embedded: "{address}"}}')):
        naps.until("the queue is blind", lambda: json.loads(asked(naps).stdout)["queues"]["nap"]["blind"] != "")
        (dispatcher,) = wanted(load(naps.home / "other.yaml"), naps.home / "state" / "e2e")
        assert dispatcher.pids() == []


def test_a_shadow_that_is_to_drain_is_refused(naps):
    refused = naps.fleetd("run", "--policy", str(naps.policy), "--shadow", "--drain")
    assert (refused.returncode, refused.stderr) == (2, "fleetd: --drain: a shadow ends no worker; leave it out\n")
