"""Ed25519 signatures: who made a release. A signature is over the manifest, which holds the digest of every file.

A public key is one line, `ed25519:BASE64`; a private key is a PEM file that only its owner may read. A signature is one
line too: the public key that it is by, and the signature in base64.
"""

import base64
import binascii
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from fleetd.errors import UsageError
from fleetd.releases.faults import BundleError, needed, on_disk

SCHEME: Final = "ed25519:"
# Signed before the manifest's bytes: a signature made for anything else can never be taken for one of a release.
PURPOSE: Final = b"fleetd release\n"
MOST_SIGNATURE: Final = 512
_KEY_BYTES: Final = 32
_OTHERS: Final = 0o077


def make_key(out: Path) -> str:
    """Write a new private key to a file that is not there yet and return the public key's line."""
    private = _ed25519().Ed25519PrivateKey.generate()
    forms = needed("cryptography.hazmat.primitives.serialization", "releases", "signing")
    pem = private.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption())
    with on_disk(out, "write the key"):
        try:
            handle = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise UsageError(f"{out}: is there already; a key is never overwritten") from None
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
    return _line(private.public_key())


def sign(manifest: bytes, key: Path) -> str:
    """Return the signature's line over a manifest, made with the private key in a file."""
    private = _load(key)
    return f"{_line(private.public_key())} {base64.b64encode(private.sign(PURPOSE + manifest)).decode()}"


def check_keys(lines: Iterable[str]) -> tuple[str, ...]:
    """Return public keys as they were given; raises UsageError for one that is none."""
    kept = tuple(lines)
    for line in kept:
        if _bytes_of(line) is None:
            raise UsageError(f"{line!r:.80} is no public key; it must be {SCHEME}BASE64, as `fleetd release key` said")
    return kept


def verify(manifest: bytes, signature: str | None, trusted: tuple[str, ...], place: str) -> None:
    """Refuse a manifest that none of the trusted keys signed. With no trusted keys nothing is asked for."""
    if not trusted:
        return
    if not signature:
        raise BundleError(f"{place}: is not signed, and signatures are asked for; build it with --key")
    key, _, made = signature.partition(" ")
    known = {_bytes_of(line): line for line in check_keys(trusted)}
    raw = _bytes_of(key)
    if raw is None or raw not in known:
        raise BundleError(f"{place}: is signed by {key!r:.80}, which is none of the trusted keys")
    if not _valid(raw, made, manifest):
        raise BundleError(f"{place}: its signature is wrong: it was altered after it was signed")


def _valid(key: bytes, made: str, manifest: bytes) -> bool:
    invalid = needed("cryptography.exceptions", "releases", "verifying a signature").InvalidSignature
    try:
        signature = base64.b64decode(made, validate=True)
        _ed25519().Ed25519PublicKey.from_public_bytes(key).verify(signature, PURPOSE + manifest)
    except (binascii.Error, ValueError, invalid):
        return False
    return True


def _load(path: Path) -> Any:
    with on_disk(path, "read the key"):
        mode, pem = path.stat().st_mode, path.read_bytes()
    if mode & _OTHERS:
        raise UsageError(f"{path}: others than its owner may read this key; chmod 600 it, or make a new one")
    forms = needed("cryptography.hazmat.primitives.serialization", "releases", "signing")
    try:
        key = forms.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, _ed25519().Ed25519PrivateKey):
        raise UsageError(f"{path}: is no Ed25519 private key in PEM without a password; see `fleetd release key`")
    return key


def _line(public: Any) -> str:
    return SCHEME + base64.b64encode(public.public_bytes_raw()).decode()


def _bytes_of(line: str) -> bytes | None:
    try:
        raw = base64.b64decode(line.removeprefix(SCHEME), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if line.startswith(SCHEME) and len(raw) == _KEY_BYTES else None


def _ed25519() -> Any:
    return needed("cryptography.hazmat.primitives.asymmetric.ed25519", "releases", "signing")
