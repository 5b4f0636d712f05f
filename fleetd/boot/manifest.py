"""What a node image consists of: its manifest, and who signed it.

    kernel, initrd, base, app     the parts, each named by its content, so that a new image never writes over an old one
    image.json                    the manifest: parts with sizes and SHA-256, kernel arguments, packages; no time in it
    image.json.sig                the signature over it, one line

Promises: what `load_image` returns is whole, and signed where keys are trusted; nothing in it leads out of its folder.
Whether the parts are what it says is `check_parts`'s business, or that of whoever hands them out.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fleetd.errors import FleetdError
from fleetd.releases.faults import BundleError, on_disk
from fleetd.releases.sign import sign, verify

MANIFEST: Final = "image.json"
SIGNATURE: Final = "image.json.sig"
PARTS: Final = ("kernel", "initrd", "base", "app")
FORMAT: Final = 1
MOST: Final = 1 << 20
# Signed before the manifest: a release's signature can never be taken for an image's.
PURPOSE: Final = b"node image\n"
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_ARGUMENT: Final = re.compile(r"[!-~]{1,256}")  # what a kernel command line can hold between two spaces


@dataclass(frozen=True, slots=True)
class Part:
    """One file of an image."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Image:
    """An image. `arguments` are the kernel's by default, `packages` the SHA-256 of each package that is in it."""

    version: str
    kernel: str
    parts: Mapping[str, Part]
    arguments: tuple[str, ...]
    packages: Mapping[str, str]

    def over_the_wire(self) -> int:
        """Return how many bytes a boot fetches."""
        return sum(part.size for part in self.parts.values())


def load_image(folder: Path, keys: Sequence[str] = ()) -> Image:
    """Read the manifest of an image; raises FleetdError where it is missing, altered or signed by none of the keys."""
    path = folder / MANIFEST
    with on_disk(path, "read the image's manifest"):
        with path.open("rb") as file:
            raw = file.read(MOST + 1)
        signature = folder / SIGNATURE
        line = signature.read_text("utf-8", "replace").strip() if signature.exists() else None
    verify(PURPOSE + raw, line, tuple(keys), str(path))
    try:
        if len(raw) > MOST:
            raise ValueError(f"larger than {MOST >> 20} MiB")  # noqa: TRY301
        return _image(json.loads(raw))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BundleError(f"{path}: is no manifest of an image: {type(error).__name__}: {error}") from None


def check_parts(folder: Path, image: Image) -> None:
    """Read every part; raises FleetdError for the first that is missing or not what the manifest says."""
    for what in PARTS:
        part = image.parts[what]
        path = folder / part.name
        with on_disk(path, f"read the {what}"), path.open("rb") as file:
            size, digest = path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()
        if size != part.size:
            raise FleetdError(f"{path}: has {size} bytes, and the manifest says {part.size}; build the image anew")
        if digest != part.sha256:
            raise FleetdError(f"{path}: its SHA-256 is {digest[:12]}…, not {part.sha256[:12]}…; build the image anew")


def write_image(folder: Path, image: Image, key: Path | None) -> None:
    """Write the manifest, signed if there is a key, and only then take away parts of an image that was here before."""
    raw = (json.dumps(_plain(image), indent=1, sort_keys=True) + "\n").encode()
    line = sign(PURPOSE + raw, key) if key else None
    with on_disk(folder, "write the image's manifest"):
        if line is None:
            (folder / SIGNATURE).unlink(missing_ok=True)
        else:
            _put(folder / SIGNATURE, f"{line}\n".encode())
        _put(folder / MANIFEST, raw)
        kept = {part.name for part in image.parts.values()}
        for what in PARTS:
            for old in folder.glob(f"{what}-*"):
                if old.name not in kept:
                    old.unlink()


def _put(path: Path, content: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(content)
    new.replace(path)


def _plain(image: Image) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": image.version,
        "kernel": image.kernel,
        "arguments": list(image.arguments),
        "parts": {what: asdict(part) for what, part in image.parts.items()},
        "packages": dict(image.packages),
    }


def _image(told: dict[str, Any]) -> Image:
    if told["format"] != FORMAT:
        raise ValueError(f"format {told['format']!r:.20}, and this fleetd reads {FORMAT}")
    if set(told["parts"]) != set(PARTS):
        raise ValueError(f"the parts must be {', '.join(PARTS)}")
    return Image(
        version=str(told["version"]),
        kernel=str(told["kernel"]),
        parts={what: _part(**fields) for what, fields in told["parts"].items()},
        arguments=tuple(_matched(_ARGUMENT, argument) for argument in told["arguments"]),
        packages={str(name): _matched(_DIGEST, digest) for name, digest in told["packages"].items()},
    )


def _part(name: str, size: int, sha256: str) -> Part:
    if type(size) is not int or size <= 0:
        raise ValueError(f"{size!r:.20} is no size")
    return Part(_matched(_NAME, name), size, _matched(_DIGEST, sha256))


def _matched(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r:.80} is not allowed here")
    return text
