"""Loads on a fleet: sent by a process of their own, waited for to the last job, and judged."""

import contextlib
import itertools
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import processes
from bench.apps.tally import BROKER
from bench.ledger import Verdict
from bench.reload import figures
from bench.reload.figures import Run, Sent, Waits
from bench.reload.fleet import FLEET, CampaignError, Fleet
from fleetd.cli.remote import call
from fleetd.errors import FleetdError

QUIET_S: Final = 20.0  # nothing has run for so long: what is missing is lost
SEND_S: Final = 1800.0


@dataclass(slots=True)
class Load:
    """One load under way. `revived`: jobs that were dead letters and were let run again, with the reason."""

    fleet: Fleet
    name: str
    sender: subprocess.Popen[bytes]
    revived: dict[str, str] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        """What the sender notes."""
        return self.fleet.home / self.name

    def settle(self) -> "Books":
        """Wait until every job has run. As an operator would, let dead letters run again once nothing else moves."""
        if self.sender.wait(SEND_S):
            raise CampaignError(f"jobs could not be queued: {(self.fleet.home / 'senders').read_text()[-2000:]}")
        wanted = {one.unique for one in figures.read_sent(self.file)}
        seen, at = -1, time.monotonic()
        while time.monotonic() - at < QUIET_S:
            done = len({one.unique for one in figures.read_runs(self.fleet.ledger)} & wanted)
            if done == len(wanted):
                time.sleep(2.0)  # a job run once more would show now
                break
            if done != seen:
                seen, at = done, time.monotonic()
            else:
                self._revive()
            time.sleep(1.0)
        sent = figures.read_sent(self.file)
        runs = [one for one in figures.read_runs(self.fleet.ledger) if one.unique in wanted]
        return account(sent, runs, self.revived)

    def _revive(self) -> None:
        letters = call("GET", "/v1/dead?last=1000", FLEET)["letters"]
        for letter in letters:
            with contextlib.suppress(FleetdError):  # tried again a second later
                call("POST", "/v1/dead", FLEET, id=letter["id"], act="retry")
                self.revived[str(letter["unique"])] = str(letter["reason"])
        if "embedded" in self.fleet.source:
            self.revived |= revive_embedded(self.fleet.server)


@dataclass(frozen=True, slots=True)
class Books:
    """What became of one load. `waits` leave those out that were let run again; `lag` is the sender's own lateness."""

    sent: Sequence[Sent]
    runs: Sequence[Run]
    verdict: Verdict
    waits: Waits
    kept_up: float
    lag: Waits
    revived: dict[str, str]


def account(sent: Sequence[Sent], runs: Sequence[Run], revived: Mapping[str, str]) -> Books:
    """Return the books of a load."""
    return Books(
        sent,
        runs,
        figures.judge(sent, runs),
        figures.waits(runs, revived),
        figures.kept_up(sent, runs),
        figures.lag(sent),
        dict(revived),
    )


def books(*loads: Books) -> Books:
    """Return the books of several loads as those of one."""
    return account(
        [one for load in loads for one in load.sent],
        [one for load in loads for one in load.runs],
        {unique: reason for load in loads for unique, reason in load.revived.items()},
    )


def send(fleet: Fleet, name: str, *, jobs: int, rate: float, ms: float, seed: int, even: bool = False) -> Load:
    """Start a load; rate 0 is all at once."""
    words = ["-m", "bench.reload.load", "reload_fleetd", "--jobs", str(jobs), "--rate", f"{rate:.3f}"]
    words += ["--ms", f"{ms:g}", "--seed", str(seed), "--out", str(fleet.home / name), *(["--even"] if even else [])]
    environment = {**fleet.environment, BROKER: fleet.server}
    return Load(fleet, name, processes.start(words, environment, fleet.home / "senders"))


def revive_embedded(server: str) -> dict[str, str]:
    """Let the embedded dispatcher's own dead letters run again; returns their reasons, by unique."""
    host, _, port = server.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=2.0) as line:
        line.sendall(b"dead\n")
        with line.makefile("r") as answers:
            rows = [row.rstrip().split("\t") for row in itertools.takewhile(lambda said: said.rstrip() != ".", answers)]
            if rows:
                line.sendall(b"dead retry all\n")
                answers.readline()
        return {row[2]: row[-1] for row in rows}
    return {}
