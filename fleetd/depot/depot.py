"""What the controller keeps for jobs: blobs until they expire, and how jobs ended, for those who ask later.

Promises: what is counted as room is what was announced, so that a transfer that began ends; what does not fit is
refused in one line and nothing gives way for it before its time; what is over its time is given out no more, and
swept. All functions block and may be called from several threads.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, Final

from fleetd.blobs.line import Where
from fleetd.codecs.reference import Reference, blob_uri
from fleetd.core.model import FilesPolicy, Policy
from fleetd.depot.faults import AbsentError, ConflictError, FullError, GoneError
from fleetd.depot.rooms import FolderRoom, Intake, Room, open_room
from fleetd.errors import FleetdError
from fleetd.releases.stores import MissingError

CARD: Final = ".blob"
BURIED_S: Final = 24 * 3600.0  # so long it is said of a blob that it expired, rather than that it never was
MOST_BURIED: Final = 10_000
HALF_S: Final = 6 * 3600.0  # so long what was sent half waits for the rest
CARD_BYTES: Final = 512  # what a blob costs beside its data


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a blob. `sha256`: "" until all of it is here."""

    size: int
    expires_at: int
    sha256: str = ""


class Depot:
    """The blobs of one fleet. `documents` are for the records of jobs (depot/records.py)."""

    def __init__(self, policy: Callable[[], Policy], folder: Path, clock: Callable[[], float] = time.time) -> None:
        """`folder`: the fleet's own. Raises FleetdError where the store cannot be."""
        self.policy, self.clock, self._folder = policy, clock, folder
        self.lock = threading.RLock()
        self._opened: tuple[str, Room] | None = None
        self._cards: dict[str, Card] = {}
        self._buried: dict[str, int] = {}  # expired blobs: when
        self._begun = clock()
        self._moved: dict[str, float] = {}  # blobs that are being sent: when their sender last asked
        _ = self.room

    @property
    def files(self) -> FilesPolicy:
        """The policy of the moment."""
        return self.policy().files

    @property
    def room(self) -> Room:
        """Where the policy of the moment says; opened anew where a reload has changed that."""
        where = self.files.store
        with self.lock:
            if self._opened is None or self._opened[0] != where:
                room = open_room(where if "://" in where else str(self._folder / where))
                self._cards = dict(_cards(room))
                self._opened = (where, room)
            return self._opened[1]

    @property
    def used(self) -> int:
        """How many bytes are taken or announced."""
        with self.lock:
            return sum(card.size + CARD_BYTES for card in self._cards.values())

    # ── taking in

    def begin(self, blob: str, size: int, keep_s: float | None) -> Card:
        """Make room for a blob; one that is here or half here stays, and longer where asked. Raises FullError."""
        room, until = self.room, int(self.clock() + min(keep_s or self.files.keep_s, self.files.longest_s)) + 1
        with self.lock:
            card = self._cards.get(blob)
            if card is not None and card.expires_at <= self.clock():
                self._remove(blob)
                card = None
            if card is not None and card.size != size:
                raise ConflictError(f"file {blob[:12]}: was begun with {card.size} bytes, and now has {size}")
            if card is None:
                self._fit(size)
            card = Card(size, until) if card is None else replace(card, expires_at=max(until, card.expires_at))
            self._write(room, blob, card)
            self._moved[blob] = self.clock()
        return card

    def next(self, blob: str) -> Where | None:
        """Return where the next bytes go; None where all are here."""
        card, room = self.find(blob), self.room
        have = room.have(blob, card.size)
        self._moved[blob] = self.clock()
        return None if card.sha256 or have >= card.size else room.to(blob, have, card.size)

    @contextmanager
    def taking(self, blob: str, offset: int) -> Iterator[Intake]:
        """Take bytes in; raises ConflictError."""
        card = self.find(blob)
        with self._own_room(blob).taking(blob, offset, card.size) as intake:
            yield intake

    def done(self, blob: str, sha256: str) -> Reference:
        """Take a blob as whole and return its reference, with the SHA-256 that it has here where that can be told.

        Where that is not the sender's, what it sent is removed; what was whole before stays, as references may lead to
        it. Raises ConflictError where a part is missing.
        """
        card, room = self.find(blob), self.room
        was_whole = bool(card.sha256)
        if not was_whole:
            have = room.have(blob, card.size)
            if have < card.size:
                raise ConflictError(f"file {blob[:12]}: {have} of its {card.size} bytes are here; send the rest")
            card = replace(card, sha256=(room.digest(blob, card.size) if card.size else None) or sha256)
        with self.lock:
            if card.sha256 == sha256:
                self._write(room, blob, card)
            elif not was_whole:
                self._remove(blob)
        return Reference(blob_uri(self.policy().fleet, blob), card.sha256, card.size, card.expires_at)

    def keep(self, blob: str, until: int) -> None:
        """Keep a blob at least so long: what refers to it is kept until then."""
        with self.lock:
            card = self.find(blob)
            if card.expires_at < until:
                self._write(self.room, blob, replace(card, expires_at=until))

    # ── giving out

    def find(self, blob: str) -> Card:
        """Return what is known of a blob; raises AbsentError or GoneError."""
        _ = self.room
        with self.lock:
            card = self._cards.get(blob)
            if card is not None and card.expires_at > self.clock():
                return card
            if card is not None or blob in self._buried:
                ago_s = self.clock() - (card.expires_at if card else self._buried[blob])
                raise GoneError(f"file {blob[:12]}: expired {ago_s:.0f} s ago: submit the job with its file again")
        raise AbsentError(f"file {blob[:12]}: is not in the store of fleet {self.policy().fleet}")

    def whence(self, blob: str, offset: int) -> tuple[Card, Where]:
        """Return where a blob's bytes from `offset` on are; raises ConflictError where it is not whole yet."""
        card, room = self.find(blob), self.room
        if not card.sha256:
            raise ConflictError(f"file {blob[:12]}: is still being sent")
        if offset > card.size:
            raise AbsentError(f"file {blob[:12]}: has {card.size} bytes, and not one at {offset}")
        if not offset and (have := room.have(blob, card.size)) < card.size:
            raise AbsentError(f"file {blob[:12]}: truncated: {have} of its {card.size} bytes are left in the store")
        return card, room.whence(blob, offset, card.size)

    def open(self, blob: str, offset: int) -> BinaryIO:
        """Open a blob of the own folder."""
        self.find(blob)
        return self._own_room(blob).open(blob, offset)

    # ── over

    def sweep(self) -> int:
        """Remove what has expired; return how many blobs."""
        now, _ = self.clock(), self.room
        with self.lock:
            old = [blob for blob, card in self._cards.items() if self._over(blob, card, now)]
            for blob in old:
                self._buried[blob] = min(self._cards[blob].expires_at, int(now))
                self._remove(blob)
            for blob in [blob for blob, at in self._buried.items() if now - at > BURIED_S]:
                del self._buried[blob]
            while len(self._buried) > MOST_BURIED:
                del self._buried[next(iter(self._buried))]
        return len(old)

    def _over(self, blob: str, card: Card, now: float) -> bool:
        """Whether a blob has expired, or was begun by somebody who is not coming back."""
        return card.expires_at <= now or (not card.sha256 and now - self._moved.get(blob, self._begun) > HALF_S)

    def _fit(self, size: int) -> None:
        most, used = self.files.most, self.used
        if used + size + CARD_BYTES <= most:
            return
        self.sweep()
        used = self.used
        if used + size + CARD_BYTES > most:
            next_s = min((card.expires_at for card in self._cards.values()), default=0) - self.clock()
            when = f"; the next to expire goes in {next_s:.0f} s" if self._cards else ""
            raise FullError(
                f"files: the store is full: {used} of its {most} bytes are in use, and this file has {size}{when}; "
                "raise files.most"
            )

    def _own_room(self, blob: str) -> FolderRoom:
        room = self.room
        if not isinstance(room, FolderRoom):
            raise AbsentError(f"file {blob[:12]}: its bytes are in the bucket, not here")
        return room

    def _write(self, room: Room, blob: str, card: Card) -> None:
        room.write(blob + CARD, json.dumps(asdict(card)).encode())
        self._cards[blob] = card

    def _remove(self, blob: str) -> None:
        """Remove a blob, its card last: what a crash leaves is removed by the next sweep."""
        room = self.room
        room.drop(blob)
        room.delete(blob + CARD)
        self._cards.pop(blob, None)
        self._moved.pop(blob, None)


def _cards(room: Room) -> Iterator[tuple[str, Card]]:
    for name in room.names():
        if not name.endswith(CARD):
            continue
        try:
            yield name.removesuffix(CARD), Card(**json.loads(room.read(name)))
        except MissingError:
            continue
        except (ValueError, TypeError):
            raise FleetdError(f"files: {name}: was altered in the store; remove it") from None
