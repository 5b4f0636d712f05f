"""What travels in the place of a large payload or result: a reference to it (a claim check), and the word before a job.

Promises: what is no reference is never taken for one, and what is one is read strictly: every fault is a ProtocolError
in one line that names the field. A reference names no host: `fleetd://FLEET/ID` is looked up where the reader's own
policy or program says, so that no reference can make anybody call an address of its choosing. Sans I/O.

A job whose client wants more than an answer begins with a line of JSON: up to which size a result may come inline, and
under which key it is to be kept. The payload follows as it is. Other jobs begin with their payload, as ever.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

from fleetd.errors import ProtocolError

FORMAT: Final = 1
MARK: Final = b'{"fleetd-reference":'
JOB_MARK: Final = b'{"fleetd-job":'
MOST: Final = 1024
LARGEST: Final = 1 << 50
ID: Final = re.compile("[0-9a-f]{32}")
_SHA: Final = re.compile("[0-9a-f]{64}")
_URI: Final = re.compile("fleetd://([a-z0-9][a-z0-9-]{0,62})/([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Reference:
    """A blob: where it is, the SHA-256 of its content in hex, its size in bytes, and until when it is kept (epoch)."""

    uri: str
    sha256: str
    size: int
    expires_at: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client wants of its job's end: a result above `cap` bytes as a reference, and it kept under `key`."""

    cap: int
    key: str = ""


def blob_uri(fleet: str, blob: str) -> str:
    """Return the address of a blob in its fleet's store."""
    return f"fleetd://{fleet}/{blob}"


def blob_id(reference: Reference, fleet: str = "") -> str:
    """Return the blob's name in the store; raises ProtocolError for one of another store. "": any fleet's."""
    found = _URI.fullmatch(reference.uri)
    if found is None:
        raise ProtocolError(
            f"reference: {reference.uri!r:.100} is refused: only fleetd://FLEET/ID is looked up, in the own store"
        )
    if fleet and found[1] != fleet:
        raise ProtocolError(f"reference: it is of the store of fleet {found[1]}, and this is fleet {fleet}: refused")
    return found[2]


def is_reference(body: bytes) -> bool:
    """Whether this stands for something larger."""
    return body.startswith(MARK)


def dump_reference(reference: Reference) -> bytes:
    """Return the reference as it travels."""
    return json.dumps({"fleetd-reference": FORMAT, **asdict(reference)}, separators=(",", ":")).encode()


def load_reference(body: bytes) -> Reference:
    """Read a reference; raises ProtocolError."""
    return make_reference(_object(body, "fleetd-reference", "reference"))


def make_reference(raw: Mapping[str, Any]) -> Reference:
    """Return the reference of these values; raises ProtocolError."""
    fields = {"uri": _text, "sha256": _sha, "size": _size, "expires_at": _size}
    for name, good in fields.items():
        if name not in raw:
            raise ProtocolError(f"reference: {name}: is missing")
        if not good(raw[name]):
            raise ProtocolError(f"reference: {name}: {raw[name]!r:.80} is none")
    return Reference(**{name: raw[name] for name in fields})


def result_key(function: str, unique: str) -> str:
    """Return the key under which the end of a job is kept."""
    return sha256(f"{function}\0{unique}".encode(errors="surrogateescape")).hexdigest()[:32]


def dump_wish(wish: Wish, payload: bytes) -> bytes:
    """Return a payload with the client's wish before it."""
    head = {"fleetd-job": FORMAT, "cap": wish.cap, "key": wish.key}
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + payload


def load_wish(body: bytes) -> tuple[Wish | None, bytes]:
    """Return the wish, if there is one, and the payload; raises ProtocolError."""
    if not body.startswith(JOB_MARK):
        return None, body
    head, line_end, payload = body.partition(b"\n")
    raw = _object(head, "fleetd-job", "job header")
    cap, key = raw.get("cap"), raw.get("key", "")
    if (
        not line_end
        or not isinstance(cap, int)
        or not _size(cap)
        or not isinstance(key, str)
        or not (key == "" or ID.fullmatch(key))
    ):
        raise ProtocolError("job header: it must be a line with a cap, and a key of 32 hex digits or none")
    return Wish(cap, key), payload


def _object(body: bytes, mark: str, place: str) -> dict[str, Any]:
    if len(body) > MOST:
        raise ProtocolError(f"{place}: {len(body)} bytes, more than the {MOST} allowed")
    try:
        raw = json.loads(body.decode())
    except (ValueError, RecursionError):
        raise ProtocolError(f"{place}: it begins as one, but is no JSON: it was cut or altered") from None
    if not isinstance(raw, dict) or type(raw.get(mark)) is not int or raw[mark] != FORMAT:
        raise ProtocolError(f"{place}: its version is not known here, only {FORMAT}")
    return raw


def _text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _sha(value: Any) -> bool:
    return isinstance(value, str) and _SHA.fullmatch(value) is not None


def _size(value: Any) -> bool:
    return type(value) is int and 0 <= value <= LARGEST
