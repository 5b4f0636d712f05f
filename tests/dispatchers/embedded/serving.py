"""The embedded dispatcher as a process of its own, as tests and benchmarks start it."""

import contextlib
import sys
from pathlib import Path

from tests import servers


def embedded(
    *args: str, data: Path | None = None, port: int | None = None
) -> contextlib.AbstractContextManager[servers.Server]:
    """Start it on a free port; it is ended with the block."""
    more = [*args, *(["--data", str(data)] if data else [])]
    return servers._serve(
        lambda at: [sys.executable, "-m", "fleetd.dispatchers.embedded", "--listen", f"127.0.0.1:{at}", *more], port
    )
