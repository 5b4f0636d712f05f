"""What was asked of AWS for an order, written down before it is asked: one file an order, in the state folder.

Promises: a ClientToken and its whole request are on the disk before they leave, so that after any crash the same
request can be sent again and is answered with the same instances. A file is replaced as a whole. Blocking: to be called
from a thread.
"""

import contextlib
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from fleetd.core.model import Seconds
from fleetd.errors import ProviderError

KEPT_S: Final = 86400.0  # AWS forgets a token sooner
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(slots=True)
class Attempt:
    """One request. `answer` is None until it is known: then the raw instances that it started."""

    token: str
    market: str
    request: dict[str, Any]
    at: Seconds  # of the wall's clock, which outlives the controller
    answer: list[dict[str, Any]] | None = None


@dataclass(slots=True)
class Entry:
    """All that was asked for one order."""

    key: str
    attempts: list[Attempt] = field(default_factory=list)


class Ledger:
    """The files of one pool."""

    def __init__(self, place: str, folder: Path, clock: Callable[[], Seconds] = time.time) -> None:
        """Nothing is read or made yet."""
        self._place, self._folder, self.clock = place, folder, clock

    def read(self, key: str) -> Entry:
        """Return what was asked for an order: nothing, for one that is not known."""
        try:
            raw = json.loads(self._file(key).read_bytes())
            return Entry(raw["key"], [Attempt(**attempt) for attempt in raw["attempts"]])
        except FileNotFoundError:
            return Entry(key)
        except OSError as error:
            raise self._trouble(error) from None
        except (ValueError, TypeError, LookupError):
            raise ProviderError(
                f"{self._place}: {self._file(key)} cannot be read; look for instances of order {key}, then remove it"
            ) from None

    def write(self, entry: Entry) -> None:
        """Have it on the disk, when this returns."""
        file = self._file(entry.key)
        try:
            if not self._folder.is_dir():
                self._folder.mkdir(parents=True, exist_ok=True)
                _sync(self._folder.parent)
            draft = file.with_suffix(".new")
            with draft.open("w") as out:
                json.dump(asdict(entry), out)
                out.flush()
                os.fsync(out.fileno())
            draft.replace(file)
            _sync(self._folder)
        except OSError as error:
            raise self._trouble(error) from None

    def recent(self, within_s: Seconds) -> list[Entry]:
        """Return what was asked lately; remove what is old."""
        now, found = self.clock(), []
        for file in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ProviderError):  # one that cannot be read is told when its order comes
                age_s = now - file.stat().st_mtime
                if age_s > KEPT_S:
                    file.unlink()
                elif age_s <= within_s:
                    found.append(self.read(file.stem))
        return found

    def _file(self, key: str) -> Path:
        return self._folder / f"{_UNSAFE.sub('_', key)}.json"

    def _trouble(self, error: OSError) -> ProviderError:
        return ProviderError(f"{self._place}: {self._folder}: {error.strerror}; nothing is launched unwritten")


def _sync(folder: Path) -> None:
    """Have the folder's own entries on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
