"""The main job from end to end: a rush of pictures, a fleet that grows for it and shrinks after it.

python -m examples.rush [--photos DIR] [--jobs 400] [--dispatcher gearmand]

Runs `fleetd run` with examples/rush-hour.yaml on a dispatcher of its own on loopback, submits a thumbnail job for
each picture, waits until every node has gone, and closes with one line. Everything it made is in a temporary folder.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from examples.webscript import upload
from fleetd.cli.remote import call
from fleetd.client import Client, Submission
from fleetd.errors import FleetdError, UsageError

HERE = Path(__file__).parent
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
PICTURES = 24
SIDE = 2400
START_S = 10.0
LIMIT_S = 300.0


def main() -> int:
    """Run the rush; returns 0 only where nothing was lost or run twice."""
    parser = argparse.ArgumentParser(description="A rush of pictures, end to end.")
    parser.add_argument("--photos", type=Path, help="a folder of photos; default: generated ones")
    parser.add_argument("--jobs", type=int, default=400, help="thumbnails to make (default 400)")
    parser.add_argument(
        "--dispatcher", choices=("embedded", "gearmand"), default="embedded", help="fleetd's own (default), or gearmand"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetd-rush-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        photos = _photos(given.photos, home)
        port, source = _free_port(), ""
        if given.dispatcher == "gearmand":
            source = stack.enter_context(_gearmand(port))
        os.environ.update(FLEETD_STATE=str(home / "state"), THUMBNAILS_LEDGER=str(home / "ledger"))
        controller = stack.enter_context(_fleetd(_policy(home, source or f'{{embedded: "127.0.0.1:{port}"}}')))
        _await_port(port)
        submitted = _rush(port, photos, home, given.jobs)
        peak = _watch(controller, home / "ledger", set(submitted))
        return _account(submitted, home / "ledger", peak)


def _photos(folder: Path | None, home: Path) -> list[Path]:
    if folder is not None:
        found = sorted(path for path in folder.expanduser().rglob("*") if path.suffix.lower() in SUFFIXES)
        if not found:
            raise UsageError(f"{folder}: there are no pictures in it ({', '.join(sorted(SUFFIXES))})")
        return found
    made = []
    for at in range(PICTURES):
        picture = Image.effect_mandelbrot((SIDE, SIDE * 3 // 4), (-2.2 + at / 20, -1.2, 0.8, 1.2), 24 + at)
        made.append(home / f"photo{at:02}.jpg")
        picture.save(made[-1], quality=90)
    return made


@contextlib.contextmanager
def _gearmand(port: int) -> Iterator[str]:
    """A gearmand on loopback; yields what the policy says of it."""
    path = shutil.which("gearmand", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        raise UsageError("gearmand is missing. Run: sudo apt-get install gearman-job-server")
    command = [path, "--listen=127.0.0.1", f"--port={port}", "--log-file=stderr"]
    with _ended(subprocess.Popen(command, stderr=subprocess.DEVNULL), signal.SIGTERM):
        yield f'{{servers: ["127.0.0.1:{port}"]}}'


def _await_port(port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise FleetdError(f"no dispatcher answers on port {port}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def _fleetd(policy: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "fleetd", "run", "--policy", str(policy), "--drain"]
    with _ended(subprocess.Popen(command), signal.SIGINT) as process:
        yield process


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes], number: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    """End the process when leaving, kindly at first."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _policy(home: Path, source: str) -> Path:
    """Write the example's policy with this run's dispatcher, and the app's folder by its whole path."""
    text = (HERE / "rush-hour.yaml").read_text()
    for old, new in (("gearman: embedded", f"gearman: {source}"), ("path: thumbnails", f"path: {HERE / 'thumbnails'}")):
        assert old in text, f"examples/rush-hour.yaml no longer says {old!r}"
        text = text.replace(old, new)
    path = home / "rush-hour.yaml"
    path.write_text(text)
    return path


def _rush(port: int, photos: list[Path], home: Path, jobs: int) -> dict[str, float]:
    """Submit all jobs, most at once, a web page's among them; return when each was submitted, by its unique."""
    out = home / "thumbnails"
    out.mkdir()
    submitted: dict[str, float] = {}
    with Client([f"127.0.0.1:{port}"]) as client:
        for wave in range(0, jobs, max(1, jobs // 8)):
            batch = []
            for at in range(wave, min(jobs, wave + max(1, jobs // 8))):
                unique = uuid.uuid4().hex
                order = {"photo": str(photos[at % len(photos)]), "out": str(out / f"{at}.jpg")}
                batch.append(Submission("thumbnail", json.dumps(order).encode(), unique))
                submitted[unique] = time.time()
            client.submit_many(batch)
            time.sleep(0.25)
        upload(client, photos[0], out / "web.jpg", patience_s=20.0)
    return submitted


def _watch(controller: subprocess.Popen[bytes], ledger: Path, wanted: set[str]) -> int:
    """Wait until every job is in the ledger and every node has gone; return the most nodes that were ready."""
    peak, deadline = 0, time.monotonic() + LIMIT_S
    while controller.poll() is None and time.monotonic() < deadline:
        time.sleep(0.5)
        with contextlib.suppress(FleetdError):
            picture = call("GET", "/v1/status")
            peak = max(peak, sum(pool["ready"] for pool in picture["pools"].values()))
            done = {line.split()[0] for line in _lines(ledger)}
            if wanted <= done and not picture["nodes"]:
                break
    return peak


def _lines(ledger: Path) -> list[str]:
    return ledger.read_text().splitlines() if ledger.exists() else []


def _account(submitted: dict[str, float], ledger: Path, peak: int) -> int:
    runs: Counter[str] = Counter()
    waits = []
    for unique, started in (line.split() for line in _lines(ledger)):
        if unique in submitted:
            runs[unique] += 1
            waits.append(max(0.0, float(started) - submitted[unique]))
    waits.sort()
    lost, twice = len(submitted) - len(runs), sum(count > 1 for count in runs.values())
    p95 = waits[int(0.95 * (len(waits) - 1))] if waits else float("nan")
    print(
        f"{len(runs)} jobs run, {lost} lost, {twice} run twice, p95 wait {p95:.1f} s; "
        f"the fleet grew to {peak} workers and shrank to none"
    )
    return 0 if not lost and not twice else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FleetdError as problem:
        sys.exit(f"rush: {problem}")
    except KeyboardInterrupt:
        sys.exit(130)
