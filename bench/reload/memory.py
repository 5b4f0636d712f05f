"""What slots over a heavy app cost, and what a swap of it costs more: at once, and slot by slot.

Own memory is what a process shares with nobody (USS). The whole is the sum of the shares (PSS) of the supervisor and
everything below it, looked at all through the swap.
"""

import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from bench import processes
from bench.processes import ROOT
from fleetd.client import Client
from tests.dispatchers.embedded.serving import embedded

APP: Final = ROOT / "bench" / "apps" / "reload_heavy.py"
SLOTS: Final = 16
UP_S: Final = 60.0
SETTLE_S: Final = 2.0
LOOK_S: Final = 0.02
MB: Final = 1e6
# numpy's OpenBLAS starts threads when it is imported, and what has threads cannot be forked.
ENVIRONMENT: Final = {"OPENBLAS_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class Weights:
    """In bytes: of an idle slot its own memory; of the whole worker before, at the height of, and after a swap."""

    overlap: int
    slots: tuple[int, ...]
    before: int
    peak: int
    after: int
    seconds: float
    looks: int

    @property
    def more(self) -> float:
        """What the swap cost more at its height, as a share."""
        return self.peak / self.before - 1.0


def weigh(overlap: int, say: Callable[[str], None], slots: int = SLOTS) -> Weights:
    """Start a worker, let it come to rest, swap its app, and look all the time."""
    with tempfile.TemporaryDirectory(prefix="fleetd-weigh-") as folder, embedded() as server:
        home = Path(folder)
        app, log = home / "heavy.py", home / "log"
        _write(app, 1)
        words = ["-m", "fleetd.worker", "--app", str(app), "--slots", str(slots), "--overlap", str(overlap)]
        words += ["--server", server.address, "--spool", str(home / "spool")]
        worker: list[subprocess.Popen[bytes]] = []
        with processes.ended(worker):
            worker.append(processes.start(words, ENVIRONMENT, log))
            _until(log, lambda text: text.count("slot started") >= slots, worker)
            _answers(server.address, 1, slots)
            time.sleep(SETTLE_S)
            own = tuple(processes.memory(pid).own for pid in _slots(worker))
            before = _whole(worker)
            _write(app, 2)
            begun = time.monotonic()
            worker[0].send_signal(signal.SIGHUP)
            peak, looks = before, 0
            while "generation took over" not in log.read_text() or len(_slots(worker)) != slots:
                peak, looks = max(peak, _whole(worker)), looks + 1
                if time.monotonic() - begun > UP_S:
                    raise TimeoutError(f"no swap within {UP_S:g} s: {log.read_text()[-2000:]}")
                time.sleep(LOOK_S)
            seconds = time.monotonic() - begun
            _answers(server.address, 2, slots)
            time.sleep(SETTLE_S)
            found = Weights(overlap, own, before, peak, _whole(worker), seconds, looks)
    say(
        f"overlap {overlap}: own memory of an idle slot {median(own) / MB:.1f} MB, at most {max(own) / MB:.1f} MB; "
        f"the whole {before / MB:.0f} MB, at its height {found.peak / MB:.0f} MB ({found.more:+.0%}), "
        f"after {found.after / MB:.0f} MB; {seconds:.1f} s, {looks} looks"
    )
    return found


def _write(app: Path, number: int) -> None:
    code, count = re.subn(r"^RELEASE: int = 0$", f"RELEASE: int = {number}", APP.read_text(), flags=re.MULTILINE)
    assert count == 1
    draft = app.with_suffix(".new")
    draft.write_text(code)
    draft.replace(app)


def _answers(address: str, number: int, slots: int) -> None:
    """See each slot's code by its answers: every one runs a job or so."""
    with Client(address) as client:
        said = {client.run("look", wait_s=10).split()[0] for _ in range(4 * slots)}
    assert said == {str(number).encode()}, said


def _slots(worker: list[subprocess.Popen[bytes]]) -> list[int]:
    return [process.pid for process in processes.tree(worker) if process.name.startswith("fleetd-slot")]


def _whole(worker: list[subprocess.Popen[bytes]]) -> int:
    total = 0
    for process in processes.tree(worker):
        try:
            total += processes.memory(process.pid).share
        except (OSError, KeyError):  # it ended meanwhile
            continue
    return total


def _until(log: Path, seen: Callable[[str], bool], worker: list[subprocess.Popen[bytes]]) -> None:
    give_up_at = time.monotonic() + UP_S
    while not (log.exists() and seen(log.read_text())):
        if time.monotonic() > give_up_at or worker[0].poll() is not None:
            raise TimeoutError(f"the slots do not come up: {log.read_text()[-2000:]}")
        time.sleep(0.05)
