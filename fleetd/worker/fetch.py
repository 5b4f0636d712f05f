"""From a digest to a generation: fetches a release from the controller, stages it, and has it run.

Promises: only what was verified runs; what cannot be fetched is tried again, what cannot be right is refused once and
told; the newest wish counts. Meanwhile jobs go on.
"""

import asyncio
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from fleetd.errors import FleetdError
from fleetd.releases.faults import BundleError
from fleetd.worker.app import AppError, find_app
from fleetd.worker.backoff import backoff_s
from fleetd.worker.generations import Generations
from fleetd.worker.lease import Controller
from fleetd.worker.logs import event
from fleetd.worker.settings import Settings
from fleetd.worker.swaps import Swaps

BACKOFF_CAP_S: Final = 30.0
HELD: Final = 4  # what runs, what ran before, what is on its way, and one that ends its last jobs


class Releases:
    """What this worker is to run, and how it gets there."""

    def __init__(self, settings: Settings, controller: Controller | None, crews: Generations, swaps: Swaps) -> None:
        self._settings = settings
        self._controller = controller
        self._crews = crews
        self._swaps = swaps
        self._wanted = ""
        self._held: dict[str, int] = {}  # handles that keep releases from being removed by others on this machine
        self._news = asyncio.Event()

    def want(self, digest: str) -> None:
        """Have this release of the controller's run."""
        self._wanted = digest
        self._news.set()

    def look_again(self, path: Path) -> None:
        """Have the code at this path run as it is now."""
        try:
            digest = find_app(path).digest
        except AppError as error:
            event(logging.ERROR, "the app cannot be loaded anew; what runs goes on", reason=error)
            return
        self._swaps.pardon(digest)  # who asks has looked at it
        self._swaps.change(replace(self._settings, digest=digest))

    async def run(self) -> None:
        """Stage what is wanted. Runs for ever."""
        failures = 0
        while True:
            if not self._wanted:
                self._news.clear()
                await self._news.wait()
            digest, self._wanted = self._wanted, ""
            if digest in self._swaps.refused:
                continue
            if digest == self._crews.digest:
                self._swaps.stay()
                continue
            try:
                settings = await asyncio.to_thread(self._stage, digest)
            except BundleError as error:
                self._swaps.refuse(digest, str(error))
                continue
            except (FleetdError, OSError) as error:  # the way to it, or this node: neither is the release's fault
                failures += 1
                event(logging.WARNING, "release not fetched; it is tried again", digest=digest[:12], error=error)
                await asyncio.sleep(backoff_s(failures, BACKOFF_CAP_S))
                self._wanted = self._wanted or digest
                continue
            failures = 0
            if not self._wanted:
                self._swaps.change(settings)

    def _stage(self, digest: str) -> Settings:
        """Return the settings of a generation of this release; blocks."""
        from fleetd.releases.stage import Cache  # noqa: PLC0415 - a worker with an app by its path needs none of it

        assert self._controller is not None, "only a controller names releases"
        cache = Cache(self._settings.cache, self._settings.keys)
        staged = cache.stage(digest, partial(self._controller.download, digest))
        self._held[digest] = staged.hold()
        for old in list(self._held)[:-HELD]:
            os.close(self._held.pop(old))
        cache.gc(set(self._held), HELD)
        return replace(self._settings, app=staged.path, digest=digest, python=staged.python)
