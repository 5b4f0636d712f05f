"""Faults, each during a job, a drain and a swap of releases: what became of the job, and the event that proves each.

python -m bench faults [--dispatcher embedded|gearmand] [--only NAME] [--no-page]

Each scene is a dispatcher with a lasting queue, a worker with two slots, one victim in the background (or with a
client that waits) and twenty bystanders. The fault strikes while the victim runs; what is known of it is read from the
outside.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Final

from bench import page
from bench.faults.cases import FAULTS, MOMENTS, Fault, Moment
from bench.faults.scene import DEADLINE_S, Dispatcher, Scene, SceneError, scene
from bench.reload.report import renew, table
from fleetd.errors import FleetdError


@dataclass(frozen=True, slots=True)
class Row:
    """One scene's outcome."""

    fault: Fault
    moment: Moment
    foreground: bool
    fate: str
    bystanders: str
    proof: str
    good: bool


def play(fault: Fault, moment: Moment, dispatcher: Dispatcher, *, foreground: bool) -> Row:
    """Play one scene."""
    with scene(dispatcher, fault.options) as made:
        fault.before(made)
        made.start_worker()
        made.submit_bystanders()
        made.submit(fault.what, foreground=foreground)
        made.until("the victim runs", lambda: made.count("started") > 0)
        moment.begin(made)
        if moment.shown:
            made.see(moment.shown)
        at = len(made.log())
        fault.inflict(made)
        proof = made.see(fault.proof, at)
        fault.after(made)
        made.submit_bystanders()
        moment.end(made)
        made.settle(foreground=foreground)
        return _judge(made, fault, moment, proof, foreground=foreground)


def _judge(made: Scene, fault: Fault, moment: Moment, proof: str, *, foreground: bool) -> Row:
    starts, runs, letters = made.count("started"), made.count("ledger"), made.letters()
    often = [made.count("ledger", one) for one in made.bystanders]
    once, lost = sum(count == 1 for count in often), sum(count == 0 for count in often)
    fate, good = _fate(starts, runs, letters)
    if runs > 1:
        good = fault.twice
    if foreground:
        answer = made.answer
        fate = f"{answer.text or 'NO ANSWER'} after {answer.seconds:.1f} s; {fate}"
        good = bool(answer.text) and answer.seconds <= DEADLINE_S + 1 and runs <= 1 + fault.twice
    more = f", {len(often) - once - lost} twice" if len(often) - once - lost else ""
    more += f", {lost} LOST" if lost else ""
    good = good and not lost and (fault.twice or once == len(often))
    return Row(fault, moment, foreground, fate, f"{once} of {len(often)} once{more}", proof, good)


def _fate(starts: int, runs: int, letters: Sequence[str]) -> tuple[str, bool]:
    if runs and starts == 1:
        return "done once", True
    if runs:
        return f"started {starts} times, done {'once' if runs == 1 else f'{runs} times'}", True
    if letters:
        return f"dead letter: {'; '.join(letters)}", True
    return f"started {starts} times, never done, no dead letter", False


_METHOD: Final = f"""\
Each scene has a dispatcher with a lasting queue, a worker with two slots, a victim and twenty bystanders. The fault
strikes once the victim runs: in peace, while the worker drains (another takes its place afterwards), or while a new
generation imports. The slot's memory limit is 100 MB, the limit of the hung job 1.5 s (and 5 s of grace), the disk of
the spool 64 KB and full, the foreground client's deadline {DEADLINE_S:g} s. The dispatcher is killed and started anew
on its disk: what ran at that moment runs again. A job that crashes by itself does so each time, and is dead after its
attempts. The proof is the worker's own log line."""


def report(rows: Sequence[Row], dispatcher: Dispatcher, failed: Sequence[str]) -> str:
    """Return the block of the page."""
    cells = [
        [
            row.fault.name,
            row.moment.name,
            "foreground" if row.foreground else "background",
            _cell(row.fate),
            row.bystanders,
            f"`{_cell(row.proof)[:110]}`",
            "met" if row.good else "**missed**",
        ]
        for row in rows
    ]
    head = ["Fault", "during", "job", "what became of it", "bystanders", "proof", ""]
    met = sum(row.good for row in rows)
    parts = [page.machine(["fleetd"]), f"`python -m bench faults --dispatcher {dispatcher}`: {met} of {len(rows)} met."]
    parts += [table(head, cells), _METHOD, *failed]
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("`", "'").replace("\n", " ")


def main(argv: list[str]) -> int:
    """Play all scenes; 0 only where nothing was lost and every client had its answer."""
    parser = argparse.ArgumentParser(prog="bench faults", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--dispatcher", choices=("embedded", "gearmand"), default="embedded")
    parser.add_argument("--only", default="", metavar="NAME", help="of the faults, those whose name holds this")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, _end)
    rows: list[Row] = []
    failed: list[str] = []
    for fault in (one for one in FAULTS if given.only.lower() in one.name.lower()):
        for moment in MOMENTS:
            for foreground in (False, True):
                what = f"{fault.name} during {moment.name}, {'foreground' if foreground else 'background'}"
                try:
                    row = play(fault, moment, given.dispatcher, foreground=foreground)
                except (SceneError, FleetdError, RuntimeError, subprocess.SubprocessError) as error:
                    failed.append(f"Not played: {what}: {str(error).splitlines()[0]}")
                    print(f"{what}: NOT PLAYED: {error}", flush=True)
                    continue
                rows.append(row)
                verdict = "met" if row.good else "MISSED"
                print(f"{what}: {verdict}: {row.fate}; bystanders {row.bystanders}; {row.proof}", flush=True)
    text = report(rows, given.dispatcher, failed)
    print(text)
    if given.page:
        renew(f"faults-{given.dispatcher}", text, f"Faults ({given.dispatcher})")
    return 0 if rows and not failed and all(row.good for row in rows) else 1


def _end(_: int, __: FrameType | None) -> None:
    """Unwind, so that every server and worker is ended."""
    sys.exit(143)
