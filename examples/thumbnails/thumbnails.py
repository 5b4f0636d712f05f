"""Resizes users' pictures. One job: `{"photo": path, "out": path, "size": 256}` in, the thumbnail's path out.

With THUMBNAILS_LEDGER set, each job done adds a line "UNIQUE START" to that file: the proof outside of fleetd that
every picture was made, and made once.
"""

import json
import os
import time
from pathlib import Path

from PIL import Image, ImageOps

from fleetd.worker import Context, job

LARGEST = 4096


@job(timeout_s=60)
def thumbnail(payload: bytes, context: Context) -> str:
    """Make one thumbnail; the file appears whole or not at all."""
    started = time.time()
    order = json.loads(payload)
    photo, out, size = Path(order["photo"]), Path(order["out"]), int(order.get("size", 256))
    if not 1 <= size <= LARGEST:
        raise ValueError(f"size: must be 1 to {LARGEST} pixels, not {size}")
    with Image.open(photo) as image:
        upright = ImageOps.exif_transpose(image).convert("RGB")
    context.progress(1, 2)
    upright.thumbnail((size, size))
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    upright.save(draft, "JPEG", quality=85)
    draft.rename(out)
    _note(context.unique, started)
    return str(out)


def _note(unique: str, started: float) -> None:
    ledger = os.environ.get("THUMBNAILS_LEDGER")
    if ledger:
        handle = os.open(ledger, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, f"{unique} {started:.3f}\n".encode())  # one write: lines of others never mix with ours
        finally:
            os.close(handle)
