"""The work that the pages hand away: served by `python -m fleetd.worker --app examples/web/jobs.py`."""

import time

from fleetd.worker import Cancelled, Context, File, job

PAUSE_S = 0.3


@job
def count_words(text: File, ctx: Context) -> str:
    """Count the words of a text, a line at a time, and slowly, so that there is something to see."""
    lines = text.read().decode(errors="replace").splitlines()
    words = 0
    for number, line in enumerate(lines, 1):
        if ctx.cancelled:
            raise Cancelled
        if "crash" in line:
            raise ValueError(f"line {number} cannot be counted")
        words += len(line.split())
        ctx.progress(number, len(lines))
        time.sleep(PAUSE_S)
    return f"{words} words in {len(lines)} lines"
