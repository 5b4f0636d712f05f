"""The faults and the moments they strike in: each fault is inflicted, then proven by a line of the worker's log."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from bench import processes
from bench.faults.scene import SLOW_IMPORT_S, Scene

SLOT_MEMORY: Final = "100MB"
HUNG_LIMIT_S: Final = "1.5"
Act = Callable[[Scene], None]


@dataclass(frozen=True, slots=True)
class Fault:
    """`what` the victim does once it gets its word. `inflict` brings the fault, `proof` is the line that shows it.

    `after` is what follows once it is seen. `twice`: what ran when it struck may run again, which no runtime without
    transactions can prevent: its answer is lost. `before` prepares the place.
    """

    name: str
    inflict: Act
    proof: str
    what: str = "wait"
    options: tuple[str, ...] = ()
    before: Act = lambda _: None
    after: Act = lambda _: None
    twice: bool = False


def _go(scene: Scene) -> None:
    (scene.home / "go").touch()


def _signal(number: signal.Signals) -> Act:
    def inflict(scene: Scene) -> None:
        os.kill(scene.victim_pid(), number)
        _go(scene)  # for the next run of it

    return inflict


def _kill_generation(scene: Scene) -> None:
    """SIGKILL the process that slots are forked from: the oldest one, where two are there."""
    pids = [one.pid for one in processes.tree([scene.worker]) if one.name == "fleetd-gen"]
    os.kill(min(pids), signal.SIGKILL)


def _lose_dispatcher(scene: Scene) -> None:
    """SIGKILL it, start it anew on its disk, then let the victim end: a busy slot hears of the loss only then."""
    assert scene.server is not None
    scene.server.kill()
    scene.serve()
    _go(scene)


def _fill(scene: Scene) -> None:
    """Give the spool a disk of 64 KB and fill it."""
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(scene.spool)]
    subprocess.run(command, check=True, timeout=10)
    scene.serving.callback(subprocess.run, ["umount", "-l", str(scene.spool)], check=False, timeout=10)
    with contextlib.suppress(OSError), (scene.spool / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


def _free(scene: Scene) -> None:
    (scene.spool / "filler").unlink()


FAULTS: Final = (
    Fault("SIGKILL of the slot", _signal(signal.SIGKILL), r"job crashed.*SIGKILL"),
    Fault("SIGKILL of the generation", _kill_generation, r"generation ended.*code=-9|ended with.*-9", after=_go),
    Fault(
        "SIGSTOP of the slot",
        _signal(signal.SIGSTOP),
        r"ran longer than its limit",
        options=("--job-limit", HUNG_LIMIT_S),
    ),
    Fault(
        "out of memory",
        _go,
        r"its limit of [0-9]+ MB|SIGKILL",
        what="allocate",
        options=("--slot-memory", SLOT_MEMORY),
    ),
    Fault("segmentation fault", _go, r"SIGSEGV", what="segfault"),
    Fault("full disk", _go, r"dead letter cannot be kept", what="fail", before=_fill, after=_free),
    Fault("lost dispatcher", _lose_dispatcher, r"dispatcher lost|result lost with its dispatcher", twice=True),
)


@dataclass(frozen=True, slots=True)
class Moment:
    """When the fault strikes. `begin` brings the moment about and `shown` proves it; `end` sees it to its end."""

    name: str
    begin: Act
    shown: str
    end: Act


def _drain(scene: Scene) -> None:
    scene.worker.send_signal(signal.SIGTERM)


def _drained(scene: Scene) -> None:
    """The drained worker ends well, and another takes its place."""
    code = scene.worker.wait(40)
    if code:
        raise RuntimeError(f"the drained worker ended with {code}")
    scene.start_worker()


def _swap(scene: Scene) -> None:
    scene.write_app(2, SLOW_IMPORT_S)
    scene.worker.send_signal(signal.SIGHUP)


def _swapped(scene: Scene) -> None:
    scene.see(r"generation took over|generation refused")


MOMENTS: Final = (
    Moment("a job", lambda _: None, "", lambda _: None),
    Moment("a drain", _drain, r"stopping: running jobs are finished first", _drained),
    Moment("a swap", _swap, r"generation comes", _swapped),
)
