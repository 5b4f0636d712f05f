"""The controller's store of releases: a folder, or a bucket of S3-compatible storage.

Promises: a release is listed only once all of it is stored and verified; the keys are asked when it comes, when it is
looked up to be activated and when it goes out, so that a key that is withdrawn counts at once. All functions block.
"""

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from fleetd.codecs.manifest import DIGEST, load_manifest, release_digest
from fleetd.errors import FleetdError, UsageError
from fleetd.releases import bundle
from fleetd.releases.bundle import SUFFIX
from fleetd.releases.faults import BundleError
from fleetd.releases.sign import check_keys, verify
from fleetd.releases.stores import FolderStore, MissingError, ObjectStore, Store

CARD: Final = ".json"
CHUNK: Final = 1024 * 1024
Digests = list[str]  # inside of the class, `list` is a method of it
Card = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """A release on the shelf. `signed`: by a trusted key, where there are any; otherwise by whomever."""

    digest: str
    app: str
    version: str
    kind: str
    size: int
    signed: bool
    pushed_at: float


def open_shelf(where: str, trusted: tuple[str, ...]) -> "Shelf":
    """Open the shelf at a folder or at s3://BUCKET/PREFIX; raises FleetdError where that cannot be."""
    keys = check_keys(trusted)
    if where.startswith("s3://"):
        return Shelf(ObjectStore(where), keys)
    if "://" in where:
        raise UsageError(f"releases.store: {where}: must be a folder or s3://BUCKET/PREFIX")
    return Shelf(FolderStore(Path(where)), keys)


class Shelf:
    """Releases by digest: each a bundle, and a card that tells of it without the bundle being read."""

    def __init__(self, store: Store, trusted: tuple[str, ...]) -> None:
        self.trusted = trusted
        self._store = store

    def put(self, path: Path) -> Entry:
        """Verify a bundle and keep it; one that is here already is kept as it is."""
        with bundle.opened(path, self.trusted, "release") as opened:
            digest, raw, signature = opened.digest, opened.raw, opened.signature
        try:
            return self.find(digest)
        except FleetdError:
            pass  # not here, or not with a signature that counts today: this one takes its place
        card = {
            "manifest": json.loads(raw),
            "signature": signature,
            "size": path.stat().st_size,
            "pushed_at": round(time.time(), 3),
        }
        self._store.put(digest + SUFFIX, path)
        with tempfile.NamedTemporaryFile("w") as file:
            json.dump(card, file)
            file.flush()
            self._store.put(digest + CARD, Path(file.name))
        return self._entry(digest, card)

    def list(self) -> list[Entry]:
        """Return what is here, newest first."""
        digests = [name.removesuffix(CARD) for name in self._store.names() if name.endswith(CARD)]
        found = [entry for digest in digests if (entry := self._told(digest))]
        return sorted(found, key=lambda entry: (-entry.pushed_at, entry.digest))

    def find(self, digest: str) -> Entry:
        """Return a release that may be activated; raises FleetdError where it is not here or not vouched for."""
        card = self._card(digest)
        verify(_raw(card), card["signature"], self.trusted, f"release {digest[:12]}")
        return self._entry(digest, card)

    def open(self, digest: str) -> BinaryIO:
        """Open a release's bundle to be read; one that the keys do not vouch for is not given out."""
        self.find(digest)
        return self._store.open(digest + SUFFIX)

    def fetch(self, digest: str, file: BinaryIO) -> None:
        """Write a release's bundle into a file."""
        with self.open(digest) as source:
            shutil.copyfileobj(source, file, CHUNK)

    def delete(self, digest: str) -> None:
        """Remove a release; its card first, so that nothing is listed that is not all there."""
        self._store.delete(digest + CARD)
        self._store.delete(digest + SUFFIX)

    def gc(self, keep: set[str], last: int) -> Digests:
        """Remove all releases but those to keep and the newest `last` of each app; return their digests."""
        seen: dict[str, int] = {}
        removed: Digests = []
        for entry in self.list():
            seen[entry.app] = seen.get(entry.app, 0) + 1
            if entry.digest not in keep and seen[entry.app] > last:
                self.delete(entry.digest)
                removed.append(entry.digest)
        return removed

    def _told(self, digest: str) -> Entry | None:
        """Return what the card says; None for a release that goes in this moment."""
        try:
            return self._entry(digest, self._card(digest))
        except MissingError:
            return None

    def _card(self, digest: str) -> Card:
        place = f"release {digest[:12]}"
        if not DIGEST.fullmatch(digest):
            raise UsageError(f"{place!r}: a digest has 64 hex digits")
        with self._store.open(digest + CARD) as file:
            body = file.read()
        try:
            card = dict(json.loads(body))
            good = isinstance(card["signature"], str | None) and isinstance(card["size"], int)
            good = good and isinstance(card["pushed_at"], float) and release_digest(_raw(card)) == digest
        except (ValueError, LookupError, TypeError):
            good = False
        if not good:
            raise BundleError(f"{place}: its card in the store was altered; delete it and push the release again")
        return card

    def _entry(self, digest: str, card: Card) -> Entry:
        manifest = load_manifest(_raw(card))
        try:
            verify(_raw(card), card["signature"], self.trusted, digest)
            signed = card["signature"] is not None
        except BundleError:
            signed = False
        pushed_at: float = card["pushed_at"]
        return Entry(digest, manifest.app, manifest.version, manifest.kind, card["size"], signed, pushed_at)


def _raw(card: Card) -> bytes:
    """Return the manifest's bytes, which have one spelling."""
    raw = json.dumps(card["manifest"], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return raw.encode()
