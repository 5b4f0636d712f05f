"""Lists in pages: how much is asked for, and where the next page begins.

Promises: a page is cut at what was last on the one before, not at a number of rows, so that nothing is missed or
repeated where the list grows meanwhile. A cursor says nothing to a client and is taken back only by its own list.
"""

import base64
import binascii
import json
from typing import Any, Final

from pydantic import AliasChoices, Field

from fleetd.web.calls import Asked, Name, Whole
from fleetd.web.wire import InvalidError

MOST_ROWS: Final = 1000
USUAL_ROWS: Final = 100
# What it was called before there were cursors; scripts of that time go on.
LIMIT: Final = AliasChoices("limit", "last")


class Page(Asked):
    """A part of a list."""

    limit: Whole = Field(
        default=USUAL_ROWS, ge=1, le=MOST_ROWS, validation_alias=LIMIT, description="The most rows to give."
    )
    cursor: Name | None = Field(default=None, description="Where to go on: `next` of the page before, as it is.")


def dump_cursor(listed: str, *values: str | float) -> str:
    """Return the cursor of what stands in a list at these values."""
    return base64.urlsafe_b64encode(json.dumps([listed, *values]).encode()).decode().rstrip("=")


def load_cursor(text: str, listed: str, *kinds: type[Any]) -> tuple[Any, ...]:
    """Return a cursor's values; raises InvalidError where this list did not give it."""
    wrong = InvalidError("cursor", "was not given here: take `next` of a page as it is, or leave it out")
    try:
        raw = json.loads(base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True))
    except (ValueError, binascii.Error, RecursionError):
        raise wrong from None
    if not isinstance(raw, list) or raw[:1] != [listed] or len(raw) != len(kinds) + 1:
        raise wrong
    if not all(_fits(value, kind) for value, kind in zip(raw[1:], kinds, strict=True)):
        raise wrong
    return tuple(raw[1:])


def _fits(value: Any, kind: type[Any]) -> bool:
    """Whether a value is of a kind; numbers are such that SQLite has them."""
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else kind):
        return False
    if isinstance(value, str):
        return value.isprintable()
    return bool(-(2**62) < value < 2**62)
