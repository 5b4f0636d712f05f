"""An app with weight: numpy, and a table of 200,000 entries. `bench.reload.memory` writes copies of other numbers."""

import numpy as np

from fleetd.worker import job

RELEASE: int = 0
VECTOR = np.arange(100_000.0)
TABLE = {f"key-{number}": number for number in range(200_000)}


@job
def look(payload: bytes) -> str:
    """Look one entry up."""
    key = payload.decode() or "key-4711"
    return f"{RELEASE} {TABLE[key]} {VECTOR[TABLE[key] % len(VECTOR)]:g}"
