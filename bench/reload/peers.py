"""New code every few seconds, for each runtime in turn, by the way that its own documents give.

First the capacity is measured; at a share of it the same load then runs twice, first in peace, then with the code
changed on the disk and the runtime told of it again and again. A reload counts once a job has run by its code.
"""

import contextlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import processes
from bench.apps.reload.reload_job import LEDGER
from bench.apps.tally import BROKER
from bench.ledger import Verdict
from bench.reload import figures, release
from bench.reload.figures import Run, Sent, Waits
from bench.reload.subjects import Subject

SHARE: Final = 0.7
FIRST_S: Final = 6.0  # what the run that measures the capacity is meant to take
UP_S: Final = 60.0
QUIET_S: Final = 15.0  # no job has started for so long: what is missing is lost
END_S: Final = 30.0
LOOK_S: Final = 0.1


class RunError(Exception):
    """A run that gave no figure."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The same for every runtime."""

    slots: int = 4
    ms: float = 5.0
    seconds: float = 60.0
    every_s: float = 10.0
    seed: int = 1
    logs: Path | None = None  # keeps what each runtime wrote


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one runtime's jobs. `still_s`: the longest time in which no job started, by a reload's side."""

    subject: Subject
    capacity: float
    rate: float
    reloads: int
    reloaded: int
    verdict: Verdict
    calm: Waits
    swapped: Waits
    kept_up: float
    still_s: float
    notes: Sequence[str] = ()

    @property
    def pause_s(self) -> float:
        """What the reloads added at p99."""
        return self.swapped.p99 - self.calm.p99


@dataclass(slots=True)
class Stage:
    """One runtime at work: its programs, its books."""

    subject: Subject
    terms: Terms
    home: Path
    broker: str
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    number: int = 0
    loads: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def code(self) -> Path:
        """The folder whose code changes."""
        return self.home / "code"

    @property
    def ledger(self) -> Path:
        """What the jobs write."""
        return self.home / "ledger"

    def start(self) -> None:
        """Write the next code and start the programs."""
        self.write()
        for words in self.subject.commands(self.broker, self.code, self.terms.slots):
            self.programs.append(self._start(words))

    def write(self) -> None:
        """Change the code on the disk."""
        self.number += 1
        release.write(release.Release(self.number), self.code)

    def reload(self) -> None:
        """Change the code and tell the programs, as their documents say."""
        self.write()
        for program in self.programs:
            program.send_signal(self.subject.signal)
        if self.subject.how == "restart":
            self._renew()

    def _renew(self) -> None:
        """Start each anew as soon as it has ended. By this thread: they die with the one that started them."""
        old = dict(enumerate(self.programs))
        give_up_at = time.monotonic() + END_S
        while old:
            for at, program in list(old.items()):
                if program.poll() is None and time.monotonic() > give_up_at:
                    self.notes.append(f"{program.pid} did not end within {END_S:g} s of its TERM: killed")
                    program.kill()
                    program.wait()
                if program.poll() is not None:
                    self.programs[at] = self._start(list(map(str, program.args[1:])))  # type: ignore[index]
                    del old[at]
            time.sleep(0.01)

    def load(self, jobs: int, rate: float, name: str) -> subprocess.Popen[bytes]:
        """Start the sender."""
        self.loads += 1
        seed = self.terms.seed * 16 + self.loads  # uniques differ from load to load
        words = ["-m", "bench.reload.load", self.subject.sender, "--jobs", str(jobs), "--rate", f"{rate:.3f}"]
        words += ["--ms", f"{self.terms.ms:g}", "--seed", str(seed), "--out", str(self.home / name)]
        return self._start(words)

    def settled(self, sender: subprocess.Popen[bytes], name: str) -> tuple[list[Sent], list[Run]]:
        """Wait until the sender has ended and its jobs have run, or none has for a while."""
        if sender.wait(600):
            raise RunError(f"{self.subject.name}: jobs could not be queued: {self.tail()}")
        sent = figures.read_sent(self.home / name)
        wanted = {one.unique for one in sent}
        seen, at = -1, time.monotonic()
        while True:
            runs = [one for one in figures.read_runs(self.ledger) if one.unique in wanted]
            if len({one.unique for one in runs}) == len(wanted):
                time.sleep(1.0)  # a job run once more would show now
                return sent, [one for one in figures.read_runs(self.ledger) if one.unique in wanted]
            if len(runs) != seen:
                seen, at = len(runs), time.monotonic()
            if time.monotonic() - at > QUIET_S:
                return sent, runs
            time.sleep(0.5)

    def ran(self, number: int) -> bool:
        """Whether a job has run by this code."""
        return any(one.release == number for one in figures.read_runs(self.ledger))

    def keep_log(self) -> None:
        """Put the programs' log where it was asked for."""
        if self.terms.logs is not None:
            self.terms.logs.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.home / "log", self.terms.logs / f"{self.subject.name.replace(', ', '-')}.log")

    def tail(self) -> str:
        """The last words of its programs."""
        log = self.home / "log"
        return log.read_text("utf-8", "replace")[-2000:] if log.exists() else ""

    def _start(self, words: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = {
            BROKER: self.broker,
            LEDGER: str(self.ledger),
            "PYTHONPATH": f"{self.code}:{processes.ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",  # a source of the same second and size would pass for the old one
        }
        return processes.start(list(words), environment, self.home / "log")


@contextlib.contextmanager
def stage(subject: Subject, terms: Terms) -> Iterator[Stage]:
    """A broker and a place for one runtime; everything is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="fleetd-reload-") as folder, subject.server() as server:
        made = Stage(subject, terms, Path(folder), subject.url.format(server.address))
        release.write(release.Release(0), made.code)  # the sender may import it, too
        with processes.ended(made.programs):
            yield made


def capacity(subject: Subject, terms: Terms) -> float:
    """Return how many jobs a second it runs from a queue that is full before it starts."""
    jobs = int(subject.guess * FIRST_S)
    with stage(subject, terms) as made:
        sender = made.load(jobs, 0, "first")
        if sender.wait(120):
            raise RunError(f"{subject.name}: jobs could not be queued: {made.tail()}")
        made.start()
        _, runs = made.settled(sender, "first")
    if len(runs) < jobs:
        raise RunError(f"{subject.name}: {len(runs)} of {jobs} jobs ran: {made.tail()}")
    return figures.rate(runs)


def measure(subject: Subject, terms: Terms, say: Callable[[str], None]) -> Outcome:
    """Measure one runtime."""
    full = capacity(subject, terms)
    rate = full * SHARE
    jobs = int(rate * terms.seconds)
    say(f"{subject.name}: capacity {full:.0f} jobs/s; {jobs} jobs at {rate:.0f}/s, twice")
    with stage(subject, terms) as made:
        made.start()
        _warm(made)
        _, calm = made.settled(made.load(jobs, rate, "calm"), "calm")
        sender = made.load(jobs, rate, "swapped")
        begun = time.monotonic()
        reloads = _reload_often(made, sender)
        sent, runs = made.settled(sender, "swapped")
        reloaded = len({one.release for one in runs} - {min((one.release for one in runs), default=0)})
        if len({one.unique for one in runs}) < len(sent):
            made.notes.append(f"of the lost, {made.subject.held(made.broker)}")
        made.keep_log()
        still = figures.stillness(runs, begun + 1.0, max(one.due for one in sent))
        outcome = Outcome(
            subject,
            full,
            rate,
            reloads,
            reloaded,
            figures.judge(sent, runs),
            figures.waits(calm),
            figures.waits(runs),
            figures.kept_up(sent, runs),
            still,
            tuple(made.notes),
        )
    say(f"{subject.name}: {outcome.reloaded} of {outcome.reloads} reloads; {outcome.verdict}")
    say(f"  calm {outcome.calm}; with reloads {outcome.swapped}; nothing started for {outcome.still_s:.2f} s")
    return outcome


def _warm(made: Stage) -> None:
    """See each program up: jobs run."""
    sender = made.load(20 * made.terms.slots, 0, "warm-up")
    _, runs = made.settled(sender, "warm-up")
    if not runs:
        raise RunError(f"{made.subject.name}: no job runs: {made.tail()}")


def _reload_often(made: Stage, sender: subprocess.Popen[bytes]) -> int:
    """Reload at an even pace while the sender sends, but not at its very end; returns how often."""
    begun, every_s = time.monotonic(), made.terms.every_s
    count = 0
    while sender.poll() is None:
        due_s = every_s * (count + 0.5)
        if due_s < made.terms.seconds - every_s / 4 and time.monotonic() - begun >= due_s:
            made.reload()
            count += 1
        time.sleep(LOOK_S)
    return count
