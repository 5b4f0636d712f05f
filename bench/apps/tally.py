"""The tally: every no-op job of every runtime adds one record to a file, and that is how completions are counted.

One append of 16 bytes, the monotonic time and the pid: the same few microseconds for all, and no broker's own word.
"""

import os
import time
from struct import Struct
from typing import Final

VARIABLE: Final = "BENCH_TALLY"
BROKER: Final = "BENCH_BROKER"
RECORD: Final = Struct("=dQ")
_fd = -1


def tick() -> None:
    """Note one completion. The file is opened by the process that runs the job, after any fork."""
    global _fd  # noqa: PLW0603 - one descriptor for each process
    if _fd < 0:
        _fd = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(_fd, RECORD.pack(time.monotonic(), os.getpid()))
