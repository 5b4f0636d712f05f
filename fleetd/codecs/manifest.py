"""The manifest of a release: what a bundle holds and which jobs it has, readable without running anything. Sans I/O.

Promises: one manifest has one spelling, so that its SHA-256 is the release's name: what is read again must be spelt
exactly as it would be written, and every fault is a ProtocolError in one line that names the field. Signatures are made
over the same bytes; each file is held by its own SHA-256, so the digest vouches for all of the content.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from fleetd.errors import ProtocolError

FORMAT: Final = 1
DIGEST: Final = re.compile("[0-9a-f]{64}")
TARGET: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
LARGEST: Final = 1 << 50
MOST_TEXT: Final = 1024


@dataclass(frozen=True, slots=True)
class File:
    """One file of a bundle: the SHA-256 of its content in hex, and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a bundle holds. `jobs` and `health` are "module:function"; `lock` is the SHA-256 of uv.lock, "" without one.

    `jobs` of a folder may be empty: there `@job` tells at import. `health` is "" where there is no check.
    """

    app: str
    version: str
    kind: Literal["wheel", "folder"]
    requires_python: str
    jobs: dict[str, str]
    health: str
    lock: str
    files: dict[str, File]


def dump_manifest(manifest: Manifest) -> bytes:
    """Return the one spelling of a manifest: JSON with sorted keys, compact, in UTF-8."""
    raw: dict[str, Any] = {"format": FORMAT} | {name: getattr(manifest, name) for name in _FIELDS}
    raw["files"] = {name: {"sha256": file.sha256, "size": file.size} for name, file in manifest.files.items()}
    return json.dumps(raw, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def load_manifest(body: bytes) -> Manifest:
    """Read a manifest; raises ProtocolError."""
    try:
        raw = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"manifest: not JSON: {str(error).splitlines()[0]:.120}") from None
    if not isinstance(raw, dict):
        raise ProtocolError("manifest: must be an object")
    if type(raw.get("format")) is not int or raw["format"] != FORMAT:
        raise ProtocolError(f"manifest: format: {raw.get('format')!r:.20} is not known here, only {FORMAT}")
    for name, (good, wanted) in _FIELDS.items():
        if name not in raw:
            raise ProtocolError(f"manifest: {name}: is missing")
        if not good(raw[name]):
            raise ProtocolError(f"manifest: {name}: {raw[name]!r:.80} is not {wanted}")
    fields = {name: raw[name] for name in _FIELDS}
    manifest = Manifest(**{**fields, "jobs": _jobs(raw["jobs"]), "files": _files(raw["files"])})
    if dump_manifest(manifest) != body:
        extra = sorted(set(raw) - set(_FIELDS) - {"format"})
        why = f"{extra[0]!r:.40}: is not known here" if extra else "is not spelt as it is written: another spelling"
        raise ProtocolError(f"manifest: {why}")
    return manifest


def release_digest(body: bytes) -> str:
    """Return the digest of the release whose manifest this is."""
    return hashlib.sha256(body).hexdigest()


def _text(value: Any) -> bool:
    """Whether this is one line of text: no control characters, and no half of a surrogate pair."""
    return isinstance(value, str) and len(value) <= MOST_TEXT and all(letter.isprintable() for letter in value)


def _named(value: Any) -> bool:
    return _text(value) and value.strip() == value != ""


def _target(value: Any) -> bool:
    return _text(value) and TARGET.fullmatch(value) is not None


def _digest(value: Any) -> bool:
    return isinstance(value, str) and DIGEST.fullmatch(value) is not None


# What a field may be, and what it is called where it is something else.
_FIELDS: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "app": (_named, "a name"),
    "version": (_named, "a version"),
    "kind": (lambda value: value in ("wheel", "folder"), "'wheel' or 'folder'"),
    "requires_python": (_text, "text"),
    "jobs": (lambda value: isinstance(value, dict), "an object"),
    "health": (lambda value: value == "" or _target(value), "module:function"),
    "lock": (lambda value: value == "" or _digest(value), "a SHA-256 in hex"),
    "files": (lambda value: isinstance(value, dict), "an object"),
}


def _jobs(raw: dict[str, Any]) -> dict[str, str]:
    for name, target in raw.items():
        if not _named(name):
            raise ProtocolError(f"manifest: jobs: {name!r:.80} is not a name")
        if not _target(target):
            raise ProtocolError(f"manifest: jobs: {name}: {target!r:.80} is not module:function")
    return dict(raw)


def _files(raw: dict[str, Any]) -> dict[str, File]:
    files: dict[str, File] = {}
    for name, entry in raw.items():
        if not _named(name):
            raise ProtocolError(f"manifest: files: {name!r:.80} is not a name")
        if not isinstance(entry, dict) or set(entry) != {"sha256", "size"} or not _digest(entry["sha256"]):
            raise ProtocolError(f"manifest: files: {name}: must have a sha256 in hex and a size")
        size = entry["size"]
        if type(size) is not int or not 0 <= size <= LARGEST:
            raise ProtocolError(f"manifest: files: {name}: size: {size!r:.40} is not a size")
        files[name] = File(entry["sha256"], size)
    return files
