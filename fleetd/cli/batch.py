"""`fleetd submit --batch`: one job for each line of a file, many at a time, with a progress bar and a line per result.

Promises: the file is read as it goes, and no more jobs are under way than `AT_ONCE`; each end is one line of JSON on
standard output, as soon as it is there; the bar is on standard error alone. With `keep_s` the jobs go on without this
command, and started anew with the same file it submits none of them twice and fetches what has ended meanwhile.
"""

import asyncio
import base64
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

from fleetd.client import AsyncClient, Files, JobTimeoutError, NotKeptError, Priority
from fleetd.errors import FleetdError, UsageError

AT_ONCE: Final = 256
EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """What is submitted, and how."""

    function: str
    file: Path | None  # None: standard input
    servers: list[str]
    wait_s: float
    priority: Priority
    keep_s: float | None = None


class Bar(Protocol):
    """What shows how far a batch is."""

    def step(self, *, failed: bool) -> None:
        """Count one job that ended."""


def run(batch: Batch) -> int:
    """Run a batch; returns how many jobs failed or did not end in time."""
    lines = _lines(batch.file)
    with _bar(_count(batch.file)) as bar:
        return asyncio.run(_run(batch, lines, bar))


async def _run(batch: Batch, lines: Iterator[tuple[int, bytes]], bar: Bar) -> int:
    failed = 0
    files = Files.from_environment()
    async with AsyncClient(batch.servers, files=files) as client:
        async for told in _ended(batch, lines, client):
            failed += told["state"] != "done"
            bar.step(failed=told["state"] != "done")
            print(json.dumps(told), flush=True)
    return failed


async def _ended(
    batch: Batch, lines: Iterator[tuple[int, bytes]], client: AsyncClient
) -> AsyncIterator[dict[str, Any]]:
    """Yield how each job ended, in the order of their ends."""
    under_way: set[asyncio.Task[dict[str, Any]]] = set()
    try:
        for number, payload in lines:
            under_way.add(asyncio.create_task(_one(batch, number, payload, client)))
            if len(under_way) >= AT_ONCE:
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield task.result()
        while under_way:
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                yield task.result()
    finally:
        for task in under_way:
            task.cancel()


async def _one(batch: Batch, number: int, payload: bytes, client: AsyncClient) -> dict[str, Any]:
    unique = sha256(f"{batch.function}\0{number}\0".encode() + payload).hexdigest()[:32]
    told: dict[str, Any] = {"line": number, "unique": unique}
    try:
        if batch.keep_s is None:
            result = await client.run(batch.function, payload, wait_s=batch.wait_s, priority=batch.priority)
        else:
            result = await _kept(batch, unique, payload, client)
    except JobTimeoutError as error:
        return told | {"state": "late", "error": str(error)}
    except FleetdError as error:
        return told | {"state": "failed", "error": str(error)}
    return told | {"state": "done", **_shown(result)}


async def _kept(batch: Batch, unique: str, payload: bytes, client: AsyncClient) -> bytes:
    """Submit a job unless an earlier start did, and wait for its end."""
    try:
        return await client.result(unique, function=batch.function)
    except JobTimeoutError:
        pass  # under way
    except NotKeptError:
        await client.submit(batch.function, payload, unique=unique, priority=batch.priority, keep_result_s=batch.keep_s)
    return await client.result(unique, function=batch.function, wait_s=batch.wait_s)


def _shown(result: bytes) -> dict[str, str]:
    try:
        return {"result": result.decode()}
    except UnicodeDecodeError:
        return {"result_base64": base64.b64encode(result).decode()}


def _lines(file: Path | None) -> Iterator[tuple[int, bytes]]:
    """Yield the payloads with their line's number; empty lines are none."""
    try:
        source = sys.stdin.buffer if file is None else file.open("rb")
    except OSError as error:
        raise UsageError(f"submit: --batch: {file}: {error.strerror}") from None
    with source:
        for number, line in enumerate(source, 1):
            if payload := line.rstrip(b"\r\n"):
                yield number, payload


def _count(file: Path | None) -> int | None:
    if file is None or not file.is_file():
        return None
    return sum(1 for _ in _lines(file))


@contextmanager
def _bar(total: int | None) -> Iterator[Bar]:
    """Give a bar: rich's on a terminal that has it, else a line of text a second."""
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ModuleNotFoundError:
            pass
        else:
            with Progress(console=Console(stderr=True)) as progress:
                yield _Rich(progress, total)
            return
    bar = _Plain(total)
    yield bar
    bar.say()


class _Rich:
    def __init__(self, progress: Any, total: int | None) -> None:
        self._progress, self._failed = progress, 0
        self._task = progress.add_task("jobs", total=total)

    def step(self, *, failed: bool) -> None:
        """Count one job that ended."""
        self._failed += failed
        text = f"jobs, {self._failed} failed" if self._failed else "jobs"
        self._progress.update(self._task, advance=1, description=text)


class _Plain:
    def __init__(self, total: int | None) -> None:
        self._total, self._done, self._failed, self._said_at = total, 0, 0, time.monotonic()

    def step(self, *, failed: bool) -> None:
        """Count one job that ended."""
        self._done += 1
        self._failed += failed
        if time.monotonic() - self._said_at >= 1.0:
            self.say()

    def say(self) -> None:
        """Say how far it is."""
        self._said_at = time.monotonic()
        of = "" if self._total is None else f" of {self._total}"
        failed = f", {self._failed} failed" if self._failed else ""
        print(f"fleetd: {self._done}{of} jobs have ended{failed}", file=sys.stderr, flush=True)
