"""The code that workers run: releases on the shelf, and folders that are watched for development.

Promises: a folder is bundled as it is at one moment, and only once it has been still for a moment; a bundle whose
content is what runs already changes nothing; one that cannot be made is said, and what runs goes on.
"""

import asyncio
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from fleetd.control.loop import Controller, Say
from fleetd.core.model import ActivateCommand, Policy
from fleetd.errors import FleetdError, UsageError
from fleetd.releases.build import snapshot
from fleetd.releases.shelf import Entry, Shelf, open_shelf
from fleetd.releases.stores import MissingError

SNAPSHOTS: Final = "snapshots"
KEEP: Final = 5
Digests = list[str]  # inside of the class, `list` is a method of it
DEBOUNCE_MS: Final = 300
ANEW_S: Final = 2.0  # how soon a folder that vanished is looked at again


class Code:
    """What a controller can give to workers: what was pushed, and snapshots of the folders that its policy watches."""

    def __init__(self, policy: Callable[[], Policy], folder: Path) -> None:
        """`policy` gives the one of the moment; `folder` is the fleet's own. Raises FleetdError for a bad store."""
        self._policy, self._folder = policy, folder
        self._opened = (policy().releases, self._open())
        self._snapshots = open_shelf(str(folder / SNAPSHOTS), ())
        self._digests: dict[str, str] = {}  # of the watched apps

    # ── the shelf

    @property
    def _pushed(self) -> Shelf:
        """The shelf that the policy of the moment names, with its keys: a reload may have changed either."""
        if self._opened[0] != self._policy().releases:
            self._opened = (self._policy().releases, self._open())
        return self._opened[1]

    def _open(self) -> Shelf:
        releases = self._policy().releases
        where = releases.store if "://" in releases.store else str(self._folder / releases.store)
        return open_shelf(where, releases.keys)

    def put(self, path: Path) -> Entry:
        """Verify a bundle and keep it."""
        return self._pushed.put(path)

    def list(self) -> list[Entry]:
        """Return what was pushed, newest first."""
        return self._pushed.list()

    def gc(self, keep: set[str], last: int) -> Digests:
        """Remove all pushed releases but those to keep and the newest `last` of each app."""
        return self._pushed.gc(keep, last)

    def find(self, digest: str) -> Entry:
        """Return a release or a snapshot; raises FleetdError where there is none, or none that the keys vouch for."""
        return self._holder(digest).find(digest)

    def open(self, digest: str) -> BinaryIO:
        """Open a bundle to be read."""
        return self._holder(digest).open(digest)

    def fit(self, app: str, digest: str) -> Entry:
        """Return a release that may be activated for an app; raises FleetdError."""
        entry = self._pushed.find(digest)
        if entry.app != app:
            raise UsageError(f"release {digest[:12]} is of the app {entry.app!r}, not of {app!r}: its project's name")
        return entry

    def _holder(self, digest: str) -> Shelf:
        try:
            self._snapshots.find(digest)
        except MissingError:
            return self._pushed
        return self._snapshots

    # ── folders

    async def look(self, controller: Controller, say: Say) -> None:
        """Bundle every watched folder whose content has changed, and activate what came of it."""
        for app in list(controller.policy.apps.values()):
            if app.path is None:
                continue
            try:
                digest = await asyncio.to_thread(self._bundle, Path(app.path))
            except FleetdError as error:
                say("error", f"app {app.name}: {error}; what runs goes on")
                continue
            if digest != self._digests.get(app.name):
                self._digests[app.name] = digest
                controller.submit(ActivateCommand(app.name, digest, at_once=True))

    async def watch(self, controller: Controller, say: Say) -> None:
        """Look whenever a watched folder changes. Runs for ever."""
        from watchfiles import awatch  # noqa: PLC0415 - only a fleet that watches a folder pays for it

        while True:
            policy = controller.policy
            paths = sorted({app.path for app in policy.apps.values() if app.path})
            if not paths:
                await _reloaded(controller, policy)
                continue
            stop = asyncio.Event()
            ending = asyncio.create_task(_end_on_reload(controller, policy, stop))
            try:
                async for _ in awatch(*paths, debounce=DEBOUNCE_MS, step=DEBOUNCE_MS // 3, stop_event=stop):
                    await self.look(controller, say)
            except OSError as error:
                say("error", f"watched folders: {error}")
                await asyncio.sleep(ANEW_S)
            finally:
                ending.cancel()
            await self.look(controller, say)

    def _bundle(self, folder: Path) -> str:
        """Return the digest of a folder's snapshot, which is on the shelf then; blocks."""
        with tempfile.TemporaryDirectory(prefix="fleetd-snapshot-") as room:
            built = snapshot(folder, Path(room))
            self._snapshots.put(built.path)
        self._snapshots.gc({built.digest, *self._digests.values()}, KEEP)
        return built.digest


async def _reloaded(controller: Controller, policy: Policy) -> None:
    """Wait until the controller has another policy."""
    while controller.policy is policy:
        await controller.ticked.wait()


async def _end_on_reload(controller: Controller, policy: Policy, stop: asyncio.Event) -> None:
    await _reloaded(controller, policy)
    stop.set()
