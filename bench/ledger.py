"""The checker: compares what a client submitted with what jobs wrote into the ledger. Knows nothing of fleetd.

python -m bench.ledger SUBMITTED LEDGER KILLS

SUBMITTED: a unique a line, as the client was told "taken". LEDGER: "UNIQUE PID" a line, appended by the job itself.
KILLS: a pid a line, of every process that was killed. A unique that is not in the ledger is lost. One that is there
twice is excused only if a process that ran it was killed. Exits 1 where anything is lost, or doubled without excuse.
"""

import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of the jobs; the tuples hold uniques."""

    submitted: int
    done: int
    lost: tuple[str, ...]
    excused: tuple[str, ...]
    doubled: tuple[str, ...]
    unknown: tuple[str, ...]

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled without a recorded kill, or run that nobody submitted."""
        return not (self.lost or self.doubled or self.unknown)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{self.submitted} submitted, {self.done} done, {len(self.lost)} lost, {len(self.doubled)} run twice "
            f"without a recorded kill, {len(self.excused)} run twice with one, {len(self.unknown)} never submitted"
        )


def check(submitted: list[str], ledger: list[str], kills: list[str]) -> Verdict:
    """Compare the lines of the three files."""
    killed = set(kills)
    runs: dict[str, list[str]] = defaultdict(list)
    for line in ledger:
        unique, pid = line.split()
        runs[unique].append(pid)
    wanted = set(submitted)
    twice = sorted(unique for unique, pids in runs.items() if len(pids) > 1)
    excused = tuple(unique for unique in twice if len([pid for pid in runs[unique] if pid not in killed]) <= 1)
    return Verdict(
        submitted=len(wanted),
        done=len(wanted & runs.keys()),
        lost=tuple(sorted(wanted - runs.keys())),
        excused=excused,
        doubled=tuple(unique for unique in twice if unique not in excused),
        unknown=tuple(sorted(runs.keys() - wanted)),
    )


def check_files(submitted: Path, ledger: Path, kills: Path) -> Verdict:
    """Compare three files."""
    return check(*(path.read_text().split("\n")[:-1] for path in (submitted, ledger, kills)))


def main(argv: list[str]) -> int:
    """Print the verdict; 0 only where it is good."""
    if len(argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    verdict = check_files(*map(Path, argv))
    print(verdict)
    for unique in (*verdict.lost, *verdict.doubled, *verdict.unknown)[:20]:
        print(f"  {unique}")
    return 0 if verdict.good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
