"""Follows a policy file: what it holds is taken as soon as it has changed.

Promises: it is the contents that count, looked at once they have been still for a moment; a file that is replaced, or
reached through links (a mounted ConfigMap swaps `..data`), is followed like one that is written; where the system tells
of no changes, the file is looked at all the same, every few seconds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

DEBOUNCE_MS: Final = 300
LOOK_MS: Final = 5000  # some file systems tell of nothing
ANEW_S: Final = 1.0


async def follow(path: Path, changed: Callable[[], Awaitable[None]]) -> None:
    """Call `changed` after each change of the file's contents. Runs for ever."""
    from watchfiles import awatch  # only who follows pays for it

    last = await asyncio.to_thread(_contents, path)
    while True:
        try:
            async for _ in awatch(
                _folder(path),
                watch_filter=None,
                debounce=DEBOUNCE_MS,
                step=DEBOUNCE_MS // 3,
                rust_timeout=LOOK_MS,
                yield_on_timeout=True,
                recursive=False,
            ):
                now = await asyncio.to_thread(_contents, path)
                if now is not None and now != last:
                    last = now
                    await changed()
        except OSError:  # the folder is not there just now
            await asyncio.sleep(ANEW_S)


def _folder(path: Path) -> Path:
    """Return the folder of the name, not of the file that it may link to: links are swapped there."""
    return path.absolute().parent


def _contents(path: Path) -> bytes | None:
    """Return what the file holds; None where there is none at this moment."""
    try:
        return path.read_bytes()
    except OSError:
        return None
