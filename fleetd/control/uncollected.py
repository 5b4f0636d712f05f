"""Keeps Python's garbage collector out of a decision.

A decision makes tens of thousands of values and not one cycle among them, so that there is nothing to collect. Yet so
many new values make the collector look through all that the fleet remembers, the oftener and the longer the more there
is: a fifth of the time for a thousand queues and ten thousand nodes, more than a quarter for twice as many. Once a
tick is enough.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the collector rest while the body runs. The body must not await: others, who do make cycles, would run."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
