"""Files through the controller's store: a large one to a worker and back, killed half way; deadlines; a batch.

python -m bench files [--size MIB] [--jobs N] [--no-page]

A controller, its worker of two slots, gearmand and a client, each a process of its own, on one machine and one disk.
`dd … conv=fsync` of the same file runs in the same run, before and after, as what the disk gives. The client is ended
by SIGKILL half way up, the slot half way down; both go on where they were. Each claim of the page is checked; the exit
code is 1 where one does not hold.
"""

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from bench.page import PAGE, machine, renew
from fleetd.client import Client, Files, JobTimeoutError, UnreachableError
from tests.blobs.rig import Rig, rig

DOC: Final = PAGE.parent / "benchmarks-files.md"
TITLE: Final = "# Files\n"
MIB: Final = 1024 * 1024
MOST_RSS_MB: Final = 200
LEAST_SHARE: Final = 0.3
MOST_LATE_MS: Final = 100.0
BARE: Final = "nothing: a bare timer"
CLIENT = """
import sys, time
from pathlib import Path
from fleetd.client import Client, Files
server, url, token, file, into = sys.argv[1:]
begun = time.time()
with Client(server, files=Files(url, token)) as client:
    print("begun", flush=True)
    handle = client.submit("timed", file=Path(file), keep_result_s=3600)
    sent = time.time()
    print("sent", sent - begun, handle.unique, flush=True)
    for state in client.follow(handle, wait_s=3600, every_s=0.05):
        pass
    ended = time.time()
    client.result(handle, into=Path(into))
    print("back", ended - begun, time.time() - begun, flush=True)
print("rss", open("/proc/self/status").read().partition("VmHWM:")[2].split()[0], flush=True)
"""
JOB = """
@job
def timed(file: File, ctx: Context) -> Path:
    note(f"begun {os.getpid()} {time.time()}")
    path = file.path
    note(f"fetched {os.getpid()} {time.time()}")
    return path
"""
ASK = """
import sys
from fleetd.client import Client, Files
server, url, token, unique = sys.argv[1:]
with Client(server, files=Files(url, token)) as client:
    print(len(client.result(unique, function="echo")))
"""


class Trip(NamedTuple):
    """Seconds of one file there and back, by leg, and the peaks of memory in MB."""

    up: float
    down: float
    answer: float
    home: float
    whole: float
    client_mb: float
    slot_mb: float
    controller_mb: float


def dd(source: Path, target: Path, size: int) -> float:
    """Return how many MB a second dd brings to the disk."""
    target.unlink(missing_ok=True)
    begun = time.perf_counter()
    subprocess.run(["dd", f"if={source}", f"of={target}", "bs=1M", "conv=fsync", "status=none"], check=True)
    took = time.perf_counter() - begun
    target.unlink()
    return size / 1e6 / took


def made(path: Path, size: int) -> Path:
    """Write a file of random bytes and bring it to the disk."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
        file.flush()
        os.fsync(file.fileno())
    return path


def peak_mb(pid: int) -> float:
    """Return a process's peak of resident memory."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmHWM:")[2].split()[0]) / 1024


def client(of: Rig, file: Path, into: Path) -> subprocess.Popen[str]:
    """Start a client that sends a file and gets it back."""
    told = of.files
    command = [sys.executable, "-c", CLIENT, of.server.address, told.url, told.token, str(file), str(into)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def trip(of: Rig, file: Path, into: Path) -> Trip:
    """Send a file there and back, and measure."""
    before, begun = len(of.notes()), time.time()
    process = client(of, file, into)
    said = dict(line.split(" ", 1) for line in process.communicate(timeout=900)[0].splitlines() if " " in line)
    up = float(said["sent"].split()[0])
    marks = [line.split() for line in of.notes()[before:]]
    taken, fetched = (float(line[2]) for line in marks if line[0] in ("begun", "fetched"))
    ended, whole = map(float, said["back"].split())
    started = begun + (taken - begun - up if taken - begun > up else 0)  # the client's own start-up is nobody's leg
    assert of.process is not None
    slot = int(marks[-1][1])
    peaks = float(said["rss"]) / 1024, peak_mb(slot), peak_mb(of.process.pid)
    return Trip(up, fetched - taken, started + ended - fetched, whole - ended, whole, *peaks)


def same(one: Path, other: Path) -> bool:
    """Whether two files are alike."""
    return subprocess.run(["cmp", "-s", str(one), str(other)], check=False).returncode == 0


def killed_client(of: Rig, file: Path, into: Path, size: int) -> tuple[int, int]:
    """Kill a client half way up; return what was there then, and what the next one's first bytes added to."""
    data, known = of.home / "state" / "files" / "files" / "data", set(_blobs(of))
    process = client(of, file, into)
    wait(lambda: any(blob.stat().st_size > size // 2 for blob in set(_blobs(of)) - known))
    process.send_signal(signal.SIGKILL)
    process.wait()
    (blob,) = set(data.iterdir()) - known
    time.sleep(0.5)
    there, least = blob.stat().st_size, size
    again = client(of, file, into)
    while again.poll() is None and blob.stat().st_size < size:
        least = min(least, blob.stat().st_size)
        time.sleep(0.005)
    assert again.wait(900) == 0
    assert same(file, into)
    return there, least


def killed_slot(of: Rig, file: Path, into: Path, size: int) -> tuple[int, int]:
    """Kill a slot half way down; return what it had, and the least that was there from then on."""
    (room,) = (of.home / "state" / "files").rglob("jobs")
    before = len(of.notes())
    process = client(of, file, into)
    parts: Callable[[], list[Path]] = lambda: list(room.glob(".*.part"))  # noqa: E731
    wait(lambda: any(part.stat().st_size > size // 2 for part in parts()))
    (part,) = parts()
    pid = next(int(line.split()[1]) for line in of.notes()[before:] if line.startswith("begun"))
    os.kill(pid, signal.SIGKILL)
    there, least = part.stat().st_size, size
    while part.exists() and (now := part.stat().st_size) < size:
        least = min(least, now)
        time.sleep(0.005)
    assert process.wait(900) == 0
    assert same(file, into)
    assert sum(line.startswith("begun") for line in of.notes()[before:]) == 2, "the job began twice, and ended once"
    return there, least


def _blobs(of: Rig) -> list[Path]:
    return list((of.home / "state" / "files" / "files" / "data").iterdir())


def wait(seen: Callable[[], bool], limit_s: float = 120.0) -> None:
    """Wait for something to be so."""
    deadline = time.monotonic() + limit_s
    while not seen():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@contextmanager
def silent() -> Iterator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield int(listener.getsockname()[1])


def late(of: Rig, file: Path, tries: int = 20) -> dict[str, list[float]]:
    """Return by how many milliseconds errors came after their deadlines: the worst places to wait in."""
    found: dict[str, list[float]] = {}
    with silent() as port:
        mute = Files(f"http://127.0.0.1:{port}", "token")
        places: dict[str, Callable[[float], object]] = {
            "a job that runs": lambda s: good.run("steps", b"100 0.1", wait_s=s),
            "a job that nobody takes": lambda s: good.run("nobody", wait_s=s),
            "a dispatcher that says nothing": lambda s: deaf.run("echo", wait_s=s),
            "a store that says nothing": lambda s: dumb.submit("echo", file=file, wait_s=s),
            "a file on its way up": lambda s: good.run("digest", file=file, wait_s=s),
            "a kept result": lambda s: good.result(handle, wait_s=s),
        }
        with of.client() as good, Client(f"127.0.0.1:{port}") as deaf, Client(of.server.address, files=mute) as dumb:
            handle = good.submit("nobody", keep_result_s=600)
            for at in range(tries):  # what the machine itself does to a deadline just now
                begun = time.perf_counter()
                threading.Event().wait(0.2 + at * 0.01)
                found.setdefault(BARE, []).append(1e3 * (time.perf_counter() - begun - 0.2 - at * 0.01))
            for name, call in places.items():
                for at in range(tries):
                    limit_s = 0.2 + at * 0.01
                    begun = time.perf_counter()
                    try:
                        call(limit_s)
                    except (JobTimeoutError, UnreachableError):
                        found.setdefault(name, []).append(1e3 * (time.perf_counter() - begun - limit_s))
    return found


def batch(of: Rig, jobs: int, *options: str) -> tuple[float, int, int]:
    """Submit a batch by the command; return its seconds, results, and lines of progress."""
    path = of.home / f"batch{len(options)}"
    path.write_text("".join(f"job {number}\n" for number in range(jobs)))
    command = [sys.executable, "-m", "fleetd", "submit", "echo", "--batch", str(path), "--server", of.server.address]
    env = {**of.env, "FLEETD_URL": of.url, "FLEETD_TOKEN": of.files.token}
    begun = time.perf_counter()
    run = subprocess.run(
        [*command, "--wait", "600", *options], env=env, capture_output=True, text=True, check=True, timeout=900
    )
    progress = re.findall(r"fleetd: (\d+) of \d+ jobs have ended", run.stderr)
    assert progress
    assert int(progress[-1]) == jobs
    return time.perf_counter() - begun, run.stdout.count('"state": "done"'), len(progress)


def restarted(of: Rig, jobs: int) -> int:
    """Kill a client that has submitted jobs, and have others ask for each by its unique; return how many are found."""
    told = of.files
    script = (
        "import sys, time\nfrom fleetd.client import *\nserver, url, token, jobs = sys.argv[1:]\n"
        "client = Client(server, files=Files(url, token))\n"
        "batch = [Submission('echo', b'x' * number, f'mine{number}') for number in range(int(jobs))]\n"
        "client.submit_many(batch, keep_result_s=600)\nprint('in', flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, of.server.address, told.url, told.token, str(jobs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.kill()
    process.wait()
    assert of.process is not None
    with of.client() as client:
        return sum(
            client.result(f"mine{number}", function="echo", wait_s=60) == b"x" * number for number in range(jobs)
        )


def main(argv: list[str]) -> int:
    """Measure, print, and renew the page."""
    parser = argparse.ArgumentParser(prog="bench files", description=__doc__)
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="of the file (default 2048)")
    parser.add_argument("--jobs", type=int, default=10_000, help="of the batch (default 10000)")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given = parser.parse_args(argv)
    size = given.size * MIB
    with tempfile.TemporaryDirectory(prefix="fleetd-files-") as folder:
        home = Path(folder)
        file, into = made(home / "file", size), home / "into"
        with rig(home / "rig", "  most: 100GB\n  keep: 1h", more=JOB) as of:
            first_dd = dd(file, home / "dd", size)
            found = trip(of, file, into)
            good = same(file, into)
            second_dd = dd(file, home / "dd", size)
            up, down = killed_client(of, copied(file), into, size), killed_slot(of, copied(file), into, size)
            excess = late(of, file)
            plain, kept = batch(of, given.jobs), batch(of, given.jobs // 10, "--keep", "600")
            there = restarted(of, 200)
    disk = min(first_dd, second_dd)
    text, fit = report(found, size, (first_dd, second_dd), (up, down), excess)
    fit = fit and good and disk > 0 and plain[1] == given.jobs and kept[1] == given.jobs // 10 and there == 200
    text += f"""
## Many jobs

| | jobs | seconds | a second | lines of progress |
|---|---|---|---|---|
| `fleetd submit --batch` | {given.jobs:,} | {plain[0]:.1f} | {given.jobs / plain[0]:,.0f} | {plain[2]} |
| the same with `--keep` | {given.jobs // 10:,} | {kept[0]:.1f} | {given.jobs / 10 / kept[0]:,.0f} | {kept[2]} |

A client submitted 200 jobs with their ends kept and was ended by SIGKILL; another one, which knew the uniques alone,
found {there} results.
"""
    print(text)
    if given.page:
        renew("files", f"{machine(['uvicorn', 'starlette'])}\n\n{text}", "", DOC, TITLE)
    return int(not fit)


def copied(file: Path) -> Path:
    """Return the same file as another one: it was not sent before."""
    os.utime(file)
    return file


def report(
    found: Trip,
    size: int,
    disk: tuple[float, float],
    kills: tuple[tuple[int, int], tuple[int, int]],
    excess: dict[str, list[float]],
) -> tuple[str, bool]:
    """Return the page's text, and whether all of it is as promised."""
    mb, slow = size / 1e6, min(disk)
    legs = {
        "client to store": found.up,
        "store to worker": found.down,
        "worker to store": found.answer,
        "store to client": found.home,
    }
    rows = [f"| {name} | {s:.1f} | {mb / s:,.0f} | {mb / s / slow:.2f} |" for name, s in legs.items()]
    share = 2 * mb / found.whole / slow
    rows.append(f"| there and back | {found.whole:.1f} | {2 * mb / found.whole:,.0f} | **{share:.2f}** |")
    (up, up_least), (down, down_least) = kills
    worst = max(max(values) for name, values in excess.items() if name != BARE)
    late_rows = "\n".join(f"| {name} | {len(values)} | {max(values):.0f} |" for name, values in excess.items())
    fit = share >= LEAST_SHARE and max(found.client_mb, found.slot_mb, found.controller_mb) < MOST_RSS_MB
    fit = fit and worst < MOST_LATE_MS and up_least >= up and down_least >= down
    nl = "\n"
    text = f"""\
`python -m bench files`: a file of {size // MIB:,} MiB (random bytes) from a client to a worker and back, by the
controller's own store on the same disk, with SHA-256 at each step: sender, store and receiver. `dd bs=1M conv=fsync` of
the same file wrote {disk[0]:.0f} MB/s before and {disk[1]:.0f} MB/s after; the shares are of the slower one. There and
back is twice the file, in the time from the client's start to the last byte at home; each byte is written to the disk
four times in it.

| leg | seconds | MB/s | of dd |
|---|---|---|---|
{nl.join(rows)}

| process | peak of resident memory |
|---|---|
| client | {found.client_mb:.0f} MB |
| slot | {found.slot_mb:.0f} MB |
| controller | {found.controller_mb:.0f} MB |

## Killed half way

- The client was ended by SIGKILL with {up / 1e6:,.0f} MB in the store. The next one went on from there: the store never
  had less ({up_least / 1e6:,.0f} MB at least), and the file came back alike.
- The slot was ended by SIGKILL with {down / 1e6:,.0f} MB on its node. The job's next attempt went on from there (the
  least seen after it: {down_least / 1e6:,.0f} MB), and the file came back alike.

## Deadlines

By how much the error came later than the deadline of 0.2 to 0.4 s, at worst. At most {MOST_LATE_MS:.0f} ms is promised.

| what was waited for | tries | ms, at worst |
|---|---|---|
{late_rows}
"""
    return text, fit


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
