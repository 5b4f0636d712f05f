"""Which bytes a `Range` header asks for (RFC 9110, 14): text to a pair of numbers. Pure.

Promises: what comes back lies within the file, whatever the header says.
"""

import re
from typing import Final

_ONE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.ASCII | re.IGNORECASE)


class UnsatisfiableError(Exception):
    """The range begins behind the end."""


def chosen(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one after the last; None for all of it, as for several ranges or what is none.

    Raises UnsatisfiableError.
    """
    found = _ONE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]):
        return None
    first, last = found[1], found[2]
    if not first:
        if int(last) == 0 or size == 0:
            raise UnsatisfiableError
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise UnsatisfiableError
    return int(first), min(int(last) + 1, size) if last else size
