"""Packets and knocking on a real segment: a network namespace with cables in it. Needs root, as a CI run has."""

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]


def test_a_segment_carries_packets_and_shows_who_is_on():
    if os.geteuid() != 0:
        pytest.skip("a network namespace needs root")
    command = ["unshare", "-n", sys.executable, "-m", "tests.rack.lan"]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    told = json.loads(run.stdout.splitlines()[-1])
    assert told == {
        "no route": "node07: its magic packet could not be sent to 255.255.255.255: Network is unreachable; "
        "there is no route there: give `broadcast`, the address of the rack's own subnet",
        "broadcast": [["52:54:00:12:34:07", "001122334455", "woken"]],
        "ethertype": [["52:54:00:12:34:07", "001122334455", "woken"]],
        "on": "answers",
        "nobody": "silent",
        "cable": "silent",
    }
