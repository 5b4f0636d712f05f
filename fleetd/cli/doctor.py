"""`fleetd doctor`: looks at everything a fleet needs and says what is wrong and what to do. Changes nothing."""

import asyncio
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Final

from fleetd.cli.remote import call, state_folder
from fleetd.config import load
from fleetd.control.outlook import Outlook
from fleetd.control.watch import TIMEOUT_S
from fleetd.control.wiring import Home, adapter, make_adapters
from fleetd.core.election import Seat
from fleetd.core.model import Blind, Policy
from fleetd.errors import FleetdError, UnreachableError
from fleetd.worker.app import AppError, find_app

LEAST_FREE: Final = 200 * 1024 * 1024
Finding = tuple[bool, str, str]  # (good, what was looked at and found, what to do)


def examine(path: Path) -> list[Finding]:
    """Return the findings, good ones too. Raises PolicyError where the policy itself is wrong."""
    policy = load(path)
    return [
        (True, f"policy {path}: good", ""),
        *_machine(policy),
        *_apps(policy),
        *asyncio.run(_adapters(policy)),
        *asyncio.run(_leader(policy)),
        _controller(policy),
    ]


def _machine(policy: Policy) -> list[Finding]:
    folder = state_folder(policy.fleet)
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    ticks = time.clock_gettime(time.CLOCK_REALTIME)
    return [
        (sys.platform == "linux", f"system: {sys.platform}", "workers need Linux"),
        (
            os.access(there, os.W_OK),
            f"state folder {folder}: may be written",
            f"give your user {there}, or set FLEETD_STATE",
        ),
        (
            free > LEAST_FREE,
            f"disk of {there}: {free // 2**20} MiB free",
            "make room: the journal cannot be written when full",
        ),
        (ticks > 1.7e9, "clock: set", "set the clock: schedules and the journal go by it"),
    ]


def _apps(policy: Policy) -> list[Finding]:
    findings: list[Finding] = []
    for app in policy.apps.values():
        if app.path is None:
            found = shutil.which(app.exec[0]) is not None
            findings.append((found, f"app {app.name}: {app.exec[0]}", f"install {app.exec[0]}, or correct `exec`"))
            continue
        try:
            jobs = sorted(name for name, _ in find_app(Path(app.path)).entries)
        except AppError as error:
            findings.append((False, f"app {app.name}: {error}", "correct the app's folder or its pyproject.toml"))
        else:
            findings.append((True, f"app {app.name}: {', '.join(jobs) or 'jobs.py'} in {app.path}", ""))
    return findings


async def _adapters(policy: Policy) -> list[Finding]:
    home = Home(state_folder(policy.fleet), "doctor", "http://127.0.0.1:0", "none")
    outlook = Outlook(make_adapters(policy, home), time.time, lambda: None)
    outlook.start()
    try:
        await outlook.look(TIMEOUT_S)
        readings, worlds = outlook.readings(policy), outlook.worlds()
    finally:
        await outlook.close()
    findings: list[Finding] = []
    for name, reading in readings.items():
        source = policy.queues[name].source
        if isinstance(reading, Blind):
            findings.append(
                (False, f"queue {name}: {reading.reason}", f"see that source {source} runs and is reachable from here")
            )
        else:
            findings.append((True, f"queue {name}: {reading.waiting} waiting, {reading.running} running", ""))
    for name, world in worlds.items():
        if isinstance(world, Blind):
            findings.append((False, f"pool {name}: {world.reason}", "see its credentials, permissions and network"))
        else:
            findings.append((True, f"pool {name}: can be listed, act: {str(policy.pools[name].act).lower()}", ""))
    return findings


async def _leader(policy: Policy) -> list[Finding]:
    chosen = policy.controller.leader
    if chosen is None:
        return []
    seat: Seat = adapter("fleetd.leaders", chosen.kind)(policy.fleet, chosen.options)
    fix = "without it no controller ever acts"
    try:
        async with asyncio.timeout(TIMEOUT_S):
            lacking = await seat.check()
            if lacking:
                return [(False, line, fix) for line in lacking]
            term = await seat.read()
    except (FleetdError, TimeoutError) as error:
        return [(False, " ".join(str(error).split()) or f"{seat.place}: no answer", fix)]
    finally:
        await seat.close()
    held = f"held by {term.holder}" if term and term.holder else "free"
    return [(True, f"{seat.place}: may be read and written, {held}", "")]


def _controller(policy: Policy) -> Finding:
    try:
        picture = call("GET", "/v1/status", policy.fleet)
    except UnreachableError:
        return True, "controller: none runs here now", ""
    except FleetdError as error:
        return False, f"controller: {error}", "set FLEETD_TOKEN to the operator's token"
    return True, f"controller: runs, epoch {picture['epoch']}, up {picture['uptime_s']:.0f} s", ""
